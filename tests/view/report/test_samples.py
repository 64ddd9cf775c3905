"""Representation of rows in a report."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hkm_dask.ingestion.ingest import ingest
from hkm_dask.view.report.samples import open_samples


def test_a_missing_caption_is_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": np.eye(3).tolist(), "caption": ["a", None, "c"]}), tmp_path / "a.parquet")
    pool = ingest(tmp_path / "a.parquet", tmp_path / "p.zarr", keep=["caption"])
    samples = open_samples(pool, 3, captions=None, images=None)
    samples.load([0, 1, 2])
    assert samples._captions == {0: "a", 1: "", 2: "c"}
