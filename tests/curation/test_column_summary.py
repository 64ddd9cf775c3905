"""Column summaries describe the existing values, not the missing ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hkm_dask.curation.column_summary import summarize_columns
from hkm_dask.data.pool import Pool
from hkm_dask.ingestion.ingest import ingest

COLUMNS = {
    "n": [1, None, 3, 8],
    "score": [0.5, None, float("nan"), 2.5],
    "caption": ["a", None, "b", "a"],
    "nsfw": [True, None, False, True],
}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pq.write_table(pa.table({"v": np.eye(4).tolist(), **COLUMNS}), tmp_path / "a.parquet")
    return ingest(tmp_path / "a.parquet", tmp_path / "p.zarr", keep=list(COLUMNS))


def test_what_is_missing_is_not_counted(pool: Pool) -> None:
    facts = summarize_columns(pool, None)
    numbers = np.array([1.0, 3.0, 8.0])
    assert facts["n"] == pytest.approx({"n": 3, "mean": 4.0, "min": 1.0, "max": 8.0, "std": numbers.std()})
    assert facts["score"] == pytest.approx({"n": 2, "mean": 1.5, "min": 0.5, "max": 2.5, "std": 1.0})
    assert facts["caption"] == {"n_values": 2, "shares": {"a": 2 / 3, "b": 1 / 3}}
    assert facts["nsfw"] == {"n_values": 2, "shares": {"True": 2 / 3, "False": 1 / 3}}
    assert summarize_columns(pool, np.array([1]))["caption"] == {"n_values": 0, "shares": {}}
