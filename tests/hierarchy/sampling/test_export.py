import csv
import errno
import os
import re
import resource
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hkm_dask.data import layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.embedding.embed import Encoder, embed
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe
from hkm_dask.hierarchy.sampling import export
from hkm_dask.hierarchy.sampling.export import SUFFIXES, check_target, write_subset
from hkm_dask.hierarchy.sampling.id_lists import read_id_list
from hkm_dask.ingestion.ingest import ingest
from tests.data.stores import Disk

N = 20
LABELS_1 = np.array([-1 if row == 7 else row % 5 for row in range(N)], dtype="i4")
LABELS_2 = np.array([2, 0, 1, -1, 2], dtype="i4")
LABELS_3 = np.array([1, 0, 1], dtype="i4")
SQUARED = np.arange(N, dtype="f4") ** 2
ROWS = np.array([0, 3, 3, 7, 19])
LONGITUDES = np.where(np.arange(N) == 3, np.nan, np.arange(N) / 8 - 1)
PLACES = np.array([f"place {row}" for row in range(N)], dtype=object)


def put(group: Path, name: str, values: np.ndarray, dim: str) -> None:
    store.create_array(group, name, shape=values.shape, dtype=values.dtype, chunks=(6,), dims=(dim,))
    open_array(group / name).write(0, values)


def make_pool(folder: Path, ids: Any = None) -> Pool:
    return ingest(np.arange(2.0 * N).reshape(N, 2), folder / "pool.zarr", ids=ids)


def make_tree(folder: Path, pool: Pool | None) -> Path:
    tree = folder / "tree.zarr"
    attributes: dict[str, Any] = {"format": layout.TREE_FORMAT, "format_version": layout.FORMAT_VERSION}
    if pool is not None:
        attributes |= {"pool": pool.path, "pool_fingerprint": pool.fingerprint}
    store.create_group(tree, attributes)
    for number, labels in enumerate((LABELS_1, LABELS_2, LABELS_3), start=1):
        put(tree / f"level_{number}", "labels", labels, f"cluster_{number - 1}" if number > 1 else "sample")
    put(tree / "level_1", "distances", SQUARED, "sample")
    store.mark_complete(tree)
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path, make_pool(tmp_path, ids=[f"id-{row}" for row in range(N)]))


def expected() -> dict[str, list[Any]]:
    """What the columns should be, one row at a time."""
    columns: dict[str, list[Any]] = {n: [] for n in ("row", "id", "level_1", "level_2", "level_3", "distance")}
    for row in ROWS.tolist():
        first = int(LABELS_1[row])
        second = int(LABELS_2[first]) if first >= 0 else -1
        third = int(LABELS_3[second]) if second >= 0 else -1
        for name, value in zip(columns, (row, f"id-{row}", first, second, third, float(row)), strict=True):
            columns[name].append(value)
    return columns


def test_npy_has_the_row_numbers(tree: Path, tmp_path: Path) -> None:
    out = write_subset(tmp_path / "out.npy", ROWS, tree)
    numbers = np.load(out, allow_pickle=False)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == ROWS.tolist()


def test_parquet_has_rows_ids_labels_and_distances(tree: Path, tmp_path: Path) -> None:
    table = pq.read_table(write_subset(tmp_path / "out.parquet", ROWS, tree))
    assert table.to_pydict() == expected()
    assert [str(field.type) for field in table.schema] == ["int64", "string", "int32", "int32", "int32", "float"]


def test_csv_has_the_same_columns(tree: Path, tmp_path: Path) -> None:
    with write_subset(tmp_path / "out.csv", ROWS, tree).open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    wanted = expected()
    assert list(records[0]) == list(wanted)
    for name, values in wanted.items():
        assert [type(values[0])(row[name]) for row in records] == values


def test_txt_has_one_id_per_line(tree: Path, tmp_path: Path) -> None:
    assert write_subset(tmp_path / "out.txt", ROWS, tree).read_text() == "id-0\nid-3\nid-3\nid-7\nid-19\n"


def test_without_ids_rows_stand_for_themselves(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, make_pool(tmp_path))
    assert write_subset(tmp_path / "out.txt", ROWS, tree).read_text() == "0\n3\n3\n7\n19\n"
    assert "id" not in pq.read_table(write_subset(tmp_path / "out.parquet", ROWS, tree)).column_names


class Places:
    """Twenty rows with their places."""

    name, fingerprint, ids = "places", "places-1", None

    def __init__(self) -> None:
        self.columns = {"longitude": lambda: iter([LONGITUDES]), "place": lambda: iter([PLACES])}

    def __len__(self) -> int:
        return N

    def read(self, first: int, last: int) -> list[np.ndarray]:
        return list(np.ones((last - first, 2), np.float32))


class Rows(Encoder):
    """Takes rows as they are."""

    name, fingerprint, n_features = "rows", "rows-1", 2

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(prepared)


def test_what_a_pool_knows_of_its_rows_comes_along(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, embed(Places(), tmp_path / "pool.zarr", Rows()))
    table = pq.read_table(write_subset(tmp_path / "out.parquet", ROWS, tree))
    assert table.column_names == ["row", "longitude", "place", "level_1", "level_2", "level_3", "distance"]
    np.testing.assert_array_equal(table["longitude"].to_numpy(), LONGITUDES[ROWS])
    assert table["place"].to_pylist() == PLACES[ROWS].tolist()
    lines = write_subset(tmp_path / "out.csv", ROWS, tree).read_text().splitlines()
    assert lines[2] == "3,nan,place 3,3,-1,-1,3.0"
    assert write_subset(tmp_path / "out.txt", ROWS, tree).read_text().splitlines() == ROWS.astype(str).tolist()


def test_columns_of_a_table_come_along_with_what_is_missing_in_them(tmp_path: Path) -> None:
    columns = {
        "label": [None if row == 3 else row * 2 for row in range(N)],
        "nsfw": [None if row == 7 else row % 2 == 0 for row in range(N)],
        "caption": [None if row == 19 else f"=text {row}" for row in range(N)],
        "score": [None if row == 0 else row / 4 for row in range(N)],
    }
    columns["rating"] = pa.array([row / 10 for row in range(N)], pa.float32())
    table = pa.table({"v": np.arange(2.0 * N).reshape(N, 2).tolist(), **columns})
    pq.write_table(table, tmp_path / "a.parquet")
    tree = make_tree(tmp_path, ingest(tmp_path / "a.parquet", tmp_path / "pool.zarr", keep=list(columns)))
    written = pq.read_table(write_subset(tmp_path / "out.parquet", ROWS, tree))
    assert [str(written.schema.field(name).type) for name in columns] == [
        "int64", "bool", "string", "double", "float",
    ]  # fmt: skip
    assert written["rating"] == table["rating"].take(ROWS)
    for name, values in list(columns.items())[:-1]:
        assert written[name].to_pylist() == [values[row] for row in ROWS]
    lines = write_subset(tmp_path / "out.csv", ROWS, tree).read_text().splitlines()
    assert lines[1:3] == ["0,0,True,'=text 0,,0.0,0,2,1,0.0", "3,,False,'=text 3,0.75,0.3,3,-1,-1,3.0"]


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, make_pool(tmp_path, ids=np.arange(N) * 1000))
    table = pq.read_table(write_subset(tmp_path / "out.parquet", ROWS, tree))
    assert str(table.schema.field("id").type) == "int64"
    assert table["id"].to_pylist() == (ROWS * 1000).tolist()


def test_a_tree_of_an_array_has_no_pool_to_ask(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, None)
    assert write_subset(tmp_path / "out.txt", ROWS, tree).read_text().splitlines()[-1] == "19"


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".csv", ".txt"])
def test_however_it_is_cut_into_blocks_the_file_is_the_same(
    tree: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_subset(tmp_path / f"whole{suffix}", ROWS, tree)
    monkeypatch.setattr(export, "BLOCK_ROWS", 2)
    cut = write_subset(tmp_path / f"cut{suffix}", ROWS, tree)
    if suffix == ".parquet":
        assert pq.read_table(whole).equals(pq.read_table(cut))
        assert pq.ParquetFile(cut).num_row_groups == 3
    else:
        assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".csv", ".txt"])
def test_an_empty_subset_is_an_empty_file_of_its_kind(tree: Path, tmp_path: Path, suffix: str) -> None:
    out = write_subset(tmp_path / f"out{suffix}", np.zeros(0, dtype=np.int64), tree)
    if suffix == ".npy":
        assert np.load(out).shape == (0,)
    elif suffix == ".parquet":
        assert pq.read_table(out).column_names == list(expected())
    elif suffix == ".csv":
        assert out.read_text() == ",".join(expected()) + "\n"
    else:
        assert out.read_text() == ""


@pytest.mark.parametrize("rows", [[3, 0], [-1, 2], [0, N], [0.5], [[0, 1]]])
def test_rows_that_cannot_be_are_refused(tree: Path, tmp_path: Path, rows: list[Any]) -> None:
    with pytest.raises(InputError, match="rows="):
        write_subset(tmp_path / "out.npy", np.array(rows), tree)
    assert not list(tmp_path.glob("*out.npy*"))


def test_targets_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"should end in one of \.npy, \.parquet, \.csv, \.txt; "):
        check_target(tmp_path / "out.xlsx")
    with pytest.raises(InputError, match="should end in one of"):
        check_target(tmp_path / "out")
    (tmp_path / "out.npy").touch()
    with pytest.raises(InputError, match=r"should be in a folder, '.*/out\.npy' is none; "):
        check_target(tmp_path / "out.npy" / "absent" / "out.npy")
    with pytest.raises(InputError, match="should be a new file; "):
        check_target(tmp_path / "out.npy")


@contextmanager
def nobody() -> Iterator[None]:
    """Root may write anywhere: be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_read_only_folder_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders may not be entered by everybody
        Path(folder).chmod(0o555)
        for name in ("out.npy", "absent/out.npy"):
            with nobody(), pytest.raises(InputError, match="should be in a writable folder; "):
                check_target(Path(folder, name))


def test_a_folder_that_is_missing_is_made(tree: Path, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        assert write_subset(tmp_path / suffix[1:] / "deep" / f"out{suffix}", ROWS, tree).is_file()


def test_spaces_in_names_do_no_harm(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    assert write_subset(tmp_path / "a folder" / "my subset.npy", ROWS, tree).is_file()


def test_another_pool_under_the_same_name_is_refused(tree: Path, tmp_path: Path) -> None:
    ingest(np.ones((N, 2)), tmp_path / "pool.zarr", ids=[str(row) for row in range(N)], overwrite=True)
    with pytest.raises(StoreError, match="should be the one the tree was built from"):
        write_subset(tmp_path / "out.parquet", ROWS, tree)
    assert write_subset(tmp_path / "out.npy", ROWS, tree).is_file()


def test_a_pool_that_is_gone_is_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "pool.zarr").rename(tmp_path / "moved.zarr")
    with pytest.raises(StoreError, match=r"pool\.zarr is missing"):
        write_subset(tmp_path / "out.txt", ROWS, tree)


def test_what_is_no_tree_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"pool\.zarr is a pool, but should be a tree; `hkm cluster` makes trees"):
        write_subset(tmp_path / "out.npy", ROWS, tmp_path / "pool.zarr")
    with pytest.raises(StoreError, match="absent"):
        write_subset(tmp_path / "out.npy", ROWS, tmp_path / "absent.zarr")


@pytest.mark.parametrize("text", ["two\nlines", "\r", "", "\ufeffa"])
def test_ids_that_no_line_holds_are_not_written_as_lines(tmp_path: Path, text: str) -> None:
    tree = make_tree(tmp_path, make_pool(tmp_path, ids=[text if row == 3 else str(row) for row in range(N)]))
    with pytest.raises(InputError, match=f"{re.escape(f'id={text!r}')} should be without line breaks, not empty, and"):
        write_subset(tmp_path / "out.txt", ROWS, tree)
    assert not list(tmp_path.glob("*out.txt*"))
    with write_subset(tmp_path / "out.csv", ROWS, tree).open(newline="", encoding="utf-8") as file:
        assert [row["id"].lstrip("'") for row in csv.DictReader(file)] == ["0", text, text, "7", "19"]


@pytest.mark.faults
def test_no_text_of_a_csv_begins_like_a_formula(tmp_path: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "'=1+1", "''-1", "a=1", "'x", "", " =x", *map(str, range(12, N))]
    tree = make_tree(tmp_path, make_pool(tmp_path, ids=texts))
    told: list[str] = []
    with subscribe(lambda event: told.append(event.fields.get("message", ""))):
        out = write_subset(tmp_path / "out.csv", np.arange(N), tree)
    with out.open(newline="", encoding="utf-8") as file:
        written = [row["id"] for row in csv.DictReader(file)]
    assert written == ["'" + text for text in texts[:8]] + texts[8:]
    assert told == ["8 texts that begin like a formula are prefixed by ', which .parquet does not need"]
    pool = open_pool(tmp_path / "pool.zarr")
    for some in (np.arange(N), np.arange(6), np.array([6, 7])):  # read back, ids are what they were
        listed = read_id_list(write_subset(tmp_path / f"{len(some)}.csv", some, tree), pool, N, "exclude_ids")
        assert listed.numbers(pool, N).tolist() == some.tolist()
    assert pq.read_table(write_subset(tmp_path / "out.parquet", np.arange(N), tree))["id"].to_pylist() == texts


@pytest.mark.faults
@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".csv", ".txt"])
def test_a_file_that_outgrows_its_limit_is_a_full_disk(tree: Path, tmp_path: Path, suffix: str) -> None:
    rows = np.sort(np.random.default_rng(0).integers(0, N, 50_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StoreError, match="the disk is full"):
            write_subset(tmp_path / f"out{suffix}", rows, tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.zarr", "tree.zarr"]


@pytest.mark.faults
@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".csv", ".txt"])
def test_a_full_disk_is_named_and_leaves_nothing(
    tree: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, subset: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(export._WRITERS, suffix, fail)
    with pytest.raises(StoreError, match="the disk is full"):
        write_subset(tmp_path / f"out{suffix}", ROWS, tree)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.zarr", "tree.zarr"]


@pytest.mark.faults
def test_a_subset_is_on_the_disk_before_it_has_its_name(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    disk, replace, lost = Disk(monkeypatch), os.replace, []

    def renaming(partial: Path, path: Path) -> None:
        lost.append(disk.lost(Path(partial)))
        replace(partial, path)

    monkeypatch.setattr(os, "replace", renaming)
    write_subset(tmp_path / "out" / "subset.csv", ROWS, tree)
    assert lost == [[]]
    assert disk.lost(tmp_path / "out") == []


@pytest.mark.faults
def test_a_lost_chunk_of_labels_is_an_error_not_a_cluster_0(tree: Path, tmp_path: Path) -> None:
    (tree / "level_1" / "labels" / "c" / "0").unlink()
    with pytest.raises(StoreError, match="is missing"):
        write_subset(tmp_path / "out.parquet", ROWS, tree)
