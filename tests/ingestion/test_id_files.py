"""Ids in a separate file belong to the rows in order, or are refused with the reason."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hkm_dask.errors import InputError
from hkm_dask.ingestion.ingest import ingest
from tests.ingestion.pools import ids_of, tidy, values

NAMES = [f"ä {i}" for i in range(57)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", values())
    return tmp_path / "a.npy"


def test_ids_of_every_kind_of_file(tmp_path: Path, source: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.arange(57, dtype="u2")[::-1])
    np.save(tmp_path / "names.npy", np.array(NAMES))
    (tmp_path / "names.txt").write_bytes("\r\n".join(NAMES).encode("utf-8-sig"))
    pq.write_table(pa.table({"name": NAMES}), tmp_path / "names.parquet", row_group_size=9)
    for number, (file, ids) in enumerate(
        {
            "numbers.npy": list(range(56, -1, -1)),
            "names.npy": NAMES,
            "names.txt": NAMES,
            "names.parquet": NAMES,
        }.items()
    ):
        assert ids_of(ingest(source, tmp_path / f"{number}.zarr", ids_file=tmp_path / file)) == ids, file


def test_a_table_of_ids_may_have_further_columns(tmp_path: Path, source: Path) -> None:
    x = values()
    x[3] = np.inf
    np.save(source, x)
    pq.write_table(pa.table({"url": NAMES, "n": range(57)}), tmp_path / "t.parquet")
    pool = ingest(
        source, tmp_path / "p.zarr", ids_file=tmp_path / "t.parquet", ids="n", keep=["url"], drop_nonfinite=True
    )
    assert ids_of(pool) == [0, 1, 2, *range(4, 57)]
    assert pool.column("url").tolist() == NAMES[:3] + NAMES[4:]


@pytest.mark.parametrize(
    ("file", "ids", "message"),
    [
        ("absent.npy", None, "ids_file=.*absent.npy does not exist; check the path"),
        ("few.npy", None, "few.npy: n_ids=9 should be 57, one per row"),
        ("few.txt", None, "few.txt: n_ids=9 should be 57, one per row"),
        ("many.txt", None, "many.txt: n_ids is above 57, it should be one per row; one id on each line"),
        ("few.parquet", None, "few.parquet: n_ids=9 should be 57, one per row"),
        ("wide.npy", None, r"wide.npy: shape=\(57, 2\) should have one dimension; give one id per row"),
        ("floats.npy", None, "floats.npy: dtype=float64 should be integers or strings; convert them to strings"),
        ("two.parquet", None, r"ids=None should be one of the columns of .*two.parquet \(a, b\); choose one"),
        ("semicolons.csv", "id", r"semicolons.csv should have ',' between its columns, 'id;url' is one name by ','; s"),
        ("two.parquet", "c", r"ids='c' should be a column of .*two.parquet \(a, b\); choose one"),
        ("few.npy", "c", "ids='c' does not apply to .*few.npy, which has no columns; leave it out"),
        ("ids.json", "x", "ids.json should be .npy, .txt, .csv, .tsv, .parquet or .arrow; convert it"),
        ("latin.txt", None, "latin.txt should be UTF-8 text, but cannot be read"),
        ("few.npy", NAMES, "ids_file and ids should not both hold the ids; leave one out"),
    ],
)
def test_what_are_no_ids_is_refused(tmp_path: Path, source: Path, file: str, ids: object, message: str) -> None:
    folder = tmp_path / "ids"
    folder.mkdir()
    np.save(folder / "few.npy", np.arange(9))
    np.save(folder / "wide.npy", np.zeros((57, 2), int))
    np.save(folder / "floats.npy", np.zeros(57))
    (folder / "few.txt").write_text("x\n" * 9)
    (folder / "many.txt").write_text("x\n" * 58)
    (folder / "latin.txt").write_bytes("ä\n".encode("latin-1") * 57)
    (folder / "ids.json").write_text("x\n" * 57)
    (folder / "semicolons.csv").write_text("id;url\n" + "x;y\n" * 57)
    pq.write_table(pa.table({"a": range(9)}), folder / "few.parquet")
    pq.write_table(pa.table({"a": range(57), "b": range(57)}), folder / "two.parquet")
    with pytest.raises(InputError, match=message):
        ingest(source, tmp_path / "p.zarr", ids_file=folder / file, ids=ids)
    tidy(tmp_path, "a.npy", "ids")
