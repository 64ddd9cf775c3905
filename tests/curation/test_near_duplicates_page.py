"""The page on near-duplicates runs from top to bottom."""

from pathlib import Path

import numpy as np

from hkm_dask.ingestion.ingest import ingest
from tests.pages import run_page


def prepare(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 24)).astype(np.float32)
    near = x[:300] + 0.1 * rng.normal(size=(300, 24)).astype(np.float32)
    ingest(np.concatenate([x, near]), folder / "pool.zarr")


def test_the_page_runs(tmp_path: Path) -> None:
    run = run_page("docs/near-duplicates.md", tmp_path, prepare)
    assert len(run.namespace["found"].removed) == 300
    assert len(run.namespace["pairs"]) >= 1
