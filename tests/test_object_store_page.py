"""The page on object stores runs from top to bottom, against a real S3 server."""

import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tests.object_store import ObjectStore
from tests.pages import run_page


@pytest.mark.slow
def test_the_page_runs(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(folder: Path) -> None:
        rng = np.random.default_rng(0)
        np.save(folder / "embeddings.npy", rng.normal(size=(300, 4)).astype("f4"))
        np.save(folder / "new.npy", rng.normal(size=(50, 4)).astype("f4"))

    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{object_store.endpoint}/my-bucket", method="PUT")).close()
    run = run_page("docs/object-stores.md", tmp_path, prepare)
    assert len(run.namespace["rows"]) == 100
    assert run.namespace["tree"].hkm.n_samples == 350
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.npy", "new.npy", "rows.parquet"]
