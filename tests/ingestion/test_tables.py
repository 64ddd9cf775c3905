"""Columns of Parquet and Arrow become exact rows, ids and columns of a pool, or are refused with the reason."""

import itertools
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import Event, subscribe
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.ingestion.sources import open_sources
from hkm_dask.ingestion.table_files import ParquetTable
from hkm_dask.ingestion.tables import TableRows
from tests.ingestion.pools import TINY, D, ids_of, read_all, tidy, values

LISTS: dict[str, Callable[[pa.DataType], pa.DataType]] = {
    "list": pa.list_,
    "large_list": pa.large_list,
    "fixed_size_list": lambda kind: pa.list_(kind, D),
    "tensor": lambda kind: pa.fixed_shape_tensor(kind, (D,)),
}


def lists(x: np.ndarray, kind: str = "list") -> pa.Array:
    target = LISTS[kind](pa.from_numpy_dtype(x.dtype))
    rows = pa.array(list(x), getattr(target, "storage_type", target))
    return pa.ExtensionArray.from_storage(target, rows) if kind == "tensor" else rows


def write(table: pa.Table, path: Path, rows_per_group: int = 10) -> Path:
    """Write a table as its suffix says: parquet, an Arrow stream (`.arrow`) or an Arrow file (`.feather`)."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows_per_group)
        return path
    new = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_group)
    return path


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 56), max_size=3),
    per_group=st.integers(1, 60),
    suffix=st.sampled_from([".parquet", ".arrow", ".feather"]),
    kind=st.sampled_from([*LISTS]),
    dtype=st.sampled_from(["f2", "f4", "f8"]),
    span=st.tuples(st.integers(0, 56), st.integers(1, 57)),
    max_bytes=st.integers(1, 400),
)
def test_tables_cut_anywhere_are_what_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
    per_group: int,
    suffix: str,
    kind: str,
    dtype: str,
    span: tuple[int, int],
    max_bytes: int,
) -> None:
    folder, x = tmp_path_factory.mktemp("tables"), values(dtype=dtype)
    whole = pa.table({"text": [f"row {i}" for i in range(57)], "vector": lists(x, kind), "id": np.arange(57) * 3})
    for number, (start, stop) in enumerate(itertools.pairwise([0, *sorted(set(cuts)), 57])):
        write(whole.slice(start, stop - start), folder / f"part-{number}{suffix}", per_group)
    sources = open_sources(sorted(folder.iterdir()), ids="id", keep=["text"])
    assert (sources.n_rows, sources.dtype) == (57, x.dtype)
    start, stop = min(span), max(span[0] + 1, span[1])
    pieces = [piece for segment in sources.segments(start, stop) for piece in segment.stream(max_bytes)]
    assert all(len(piece) == 1 or piece.nbytes <= max_bytes for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), x[start:stop])
    assert sources.ids is not None
    assert np.concatenate(list(sources.ids())).tolist() == list(range(0, 171, 3))
    assert np.concatenate(list(sources.columns["text"]())).tolist() == whole["text"].to_pylist()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_rows_left_out_leave_their_ids_and_columns_out(tmp_path: Path, suffix: str) -> None:
    x = values()
    x[[0, 9, 10, 40, 56], 2] = np.nan
    table = pa.table({"n": range(57), "vector": lists(x), "id": [f"i{i}" for i in range(57)]})
    source = write(table, tmp_path / f"a{suffix}", 13)
    pool = ingest(source, tmp_path / "p.zarr", ids="id", keep=["n"], chunk_mb=TINY, drop_nonfinite=True)
    kept = np.flatnonzero(np.isfinite(x).all(axis=1))
    np.testing.assert_array_equal(read_all(pool), x[kept])
    assert (ids_of(pool), pool.column("n").tolist()) == ([f"i{i}" for i in kept], kept.tolist())


def test_missing_lists_and_values_are_told_by_row(tmp_path: Path) -> None:
    for kind in (pa.list_(pa.float32(), 2), pa.list_(pa.float64())):
        rows = pa.array([[1.0, 2.0], None, [3.0, None], [5.0, 6.0]], kind)
        write(pa.table({"v": rows, "id": list("abcd")}), tmp_path / "a.parquet", 3)
        with pytest.raises(
            InputError, match=r"n_nonfinite_rows=2 should be 0, .* rows 1, 2 \(the first: row 1 of .*a.p"
        ):
            ingest(tmp_path / "a.parquet", tmp_path / "p.zarr")
        options = {"ids": "id", "drop_nonfinite": True, "overwrite": True}
        pool = ingest(tmp_path / "a.parquet", tmp_path / "q.zarr", **options)
        assert (read_all(pool).tolist(), ids_of(pool)) == ([[1, 2], [5, 6]], ["a", "d"])


def test_columns_of_every_kind_keep_what_is_missing(tmp_path: Path) -> None:
    columns = {
        "score": pa.array([0.5, None, np.nan, 2.0], pa.float32()),
        "label": pa.array([7, 8, None, 10], pa.uint8()),
        "caption": pa.array(["ä", None, "", "=1"], pa.large_string()),
        "nsfw": pa.array([True, False, None, True]),
        "source": pa.array(["x", "y", None, "x"]).dictionary_encode(),
        "nothing": pa.nulls(4),
        "half": pa.array(np.arange(4, dtype="f2")),
    }
    x = values(4)
    for suffix in (".parquet", ".arrow"):
        source = write(pa.table({**columns, "v": lists(x)}), tmp_path / f"a{suffix}", 3)
        pool = ingest(source, tmp_path / f"p{suffix}.zarr", keep=list(columns))
        assert pool.columns == tuple(columns)
        for name, column in columns.items():
            given = pool.column(name)
            expected = [None if v is None else v for v in column.to_pylist()]
            np.testing.assert_equal(given.tolist(), expected, err_msg=name)
            np.testing.assert_equal(pool.column(name, np.array([2, 0])).tolist(), [expected[2], expected[0]])
        assert pool.column("label").dtype == np.int64
        assert [pool.column(name).dtype for name in ("score", "half")] == [np.float32] * 2
        assert not np.ma.isMaskedArray(pool.column("half"))


def test_a_pool_of_a_pool_has_its_columns(tmp_path: Path) -> None:
    table = pa.table({"v": lists(values()), "n": [None, *range(56)], "word": [f"w{i}" for i in range(57)]})
    pool = ingest(write(table, tmp_path / "a.parquet"), tmp_path / "p.zarr", keep=["n", "word"], chunk_mb=TINY)
    copy = ingest(pool.path, tmp_path / "q.zarr", dtype="float16")
    assert (copy.columns, copy.column("n").tolist()) == (("n", "word"), [None, *range(56)])
    twice = ingest([pool.path, pool.path], tmp_path / "r.zarr", keep="word")
    assert (twice.columns, twice.column("word").tolist()) == (("word",), [f"w{i}" for i in range(57)] * 2)
    with pytest.raises(InputError, match=r"keep='url' should be a column of .*p.zarr \(n, word\); choose one"):
        ingest(pool.path, tmp_path / "s.zarr", keep=["url"])


def test_decimal_numbers_are_floats_if_floats_hold_them(tmp_path: Path) -> None:
    prices = [Decimal("12.30"), None, Decimal("-0.01"), Decimal("9999999999999.99")]
    columns = {"price": pa.array(prices, pa.decimal128(38, 2)), "sum": pa.array([1, 2, 3, None], pa.decimal128(38, 0))}
    source = write(pa.table({"v": lists(values(4)), **columns}), tmp_path / "a.parquet")
    pool = ingest(source, tmp_path / "p.zarr", keep=list(columns))
    assert pool.column("price").tolist() == [12.3, None, -0.01, 9999999999999.99]
    assert pool.column("sum").tolist() == [1.0, 2.0, 3.0, None]
    for long in (2**53 + 1, 10**38 - 1):
        write(pa.table({"v": lists(values(4)), "n": pa.array([1, 2, None, long], pa.decimal128(38, 0))}), source)
        with pytest.raises(InputError, match=r"keep='n' of .*a.parquet should have at most 15 digits, .* to text"):
            ingest(source, tmp_path / "q.zarr", keep="n")


def test_a_column_in_float32_stays_so(tmp_path: Path) -> None:
    scores = {
        "a": pa.array([0.1, None], pa.float32()),
        "b": pa.array([0.2, 0.3], pa.float32()),
        "c": pa.array([0.1, 1]),
    }
    for name, numbers in scores.items():
        write(pa.table({"v": lists(values(2)), "score": numbers}), tmp_path / f"{name}.parquet")
    pool = ingest([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "ab.zarr", keep="score")
    assert pool.column("score").dtype == np.float32
    assert ingest(pool.path, tmp_path / "copy.zarr").column("score").dtype == np.float32
    assert (str(pool.to_pandas().dtypes["score"]), pool.to_xarray()["score"].dtype) == ("float32", np.float32)
    wide = ingest([tmp_path / "a.parquet", tmp_path / "c.parquet"], tmp_path / "ac.zarr", keep="score")
    assert wide.column("score").tolist() == [float(np.float32(0.1)), None, 0.1, 1.0]


def test_whole_numbers_and_floats_of_several_files_are_floats(tmp_path: Path) -> None:
    for name, numbers in {"a": pa.array([1, 2]), "b": pa.nulls(2), "c": pa.array([0.5, 4])}.items():
        write(pa.table({"v": lists(values(2)), "n": numbers}), tmp_path / f"{name}.parquet")
    pool = ingest([tmp_path / f"{name}.parquet" for name in "abc"], tmp_path / "p.zarr", keep=["n"])
    assert pool.column("n").tolist() == [1.0, 2.0, None, None, 0.5, 4.0]
    write(pa.table({"v": lists(values(2)), "n": pa.array([2**53 + 1, None])}), tmp_path / "e.parquet")
    with pytest.raises(InputError, match=r"e.parquet\[v\] should be at most 2\*\*53, .* would round 9007199254740993"):
        ingest([tmp_path / "e.parquet", tmp_path / "c.parquet"], tmp_path / "q.zarr", keep=["n"])
    write(pa.table({"v": lists(values(2)), "n": ["x", "y"]}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match="keep='n' should be of one type in all sources; convert it to text"):
        ingest([tmp_path / "a.parquet", tmp_path / "d.parquet"], tmp_path / "q.zarr", keep=["n"])


TABLE = {
    "v": lists(values(4)),
    "w": lists(values(4)),
    "text": ["a", "b", "c", "d"],
    "big": pa.array([1, 2, 3, 2**63], pa.uint64()),
    "when": pa.array([1, 2, 3, 4], pa.timestamp("s")),
    "time": pa.array([1, 2, 3, 4], pa.duration("s")),
    "words": [["a"], ["b"], [], []],
    "gaps": ["a", None, "c", "d"],
    "ragged": [[1.0, 2.0], [3.0, 4.0], [5.0], [6.0, 7.0]],
    "empty": pa.nulls(4, pa.list_(pa.float32())),
    "row": [1, 2, 3, 4],
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"column=None should be one of the columns of lists of .*a.parquet \(v, w, ragged, empty\); choose"),
        ({"column": "vector"}, r"column='vector' should be a column of .*a.parquet \(v, w, text, .*\); choose one"),
        ({"column": "text"}, r"a.parquet\[text\]: type=string should be a list of numbers; choose another column"),
        ({"column": "words"}, r"a.parquet\[words\]: type=list<.*> should be a list of numbers"),
        ({"column": "ragged"}, r"row 2 of .*a.parquet\[ragged\]: n_features=1 should be 2 as in the rows before it; f"),
        ({"column": "empty"}, r"a.parquet\[empty\]: all lists are missing; choose another column"),
        ({"column": "v", "ids": "url"}, "ids='url' should be a column of"),
        ({"column": "v", "ids": "when"}, r"ids='when' of .*: type=timestamp.* should be integers or strings"),
        ({"column": "v", "ids": "gaps"}, "ids='gaps' of .*: 1 are missing; choose another column"),
        ({"column": "v", "ids": "big"}, "id=9223372036854775808 should be below 2"),
        ({"column": "v", "keep": ["url"]}, "keep='url' should be a column of"),
        ({"column": "v", "keep": ["w"]}, r"keep='w' of .*: type=list<.*> should be numbers, text, dates, times, true"),
        ({"column": "v", "keep": ["time"]}, "keep='time' of .* dates, times, true or false; convert it to text"),
        ({"column": "v", "ids": "TEXT"}, "ids='TEXT' should be a column of .*; did you mean text?"),
        ({"column": "v", "ids": "url", "keep": ["txt", "time"]}, "ids='url'(.*\n)keep='txt' .*(.*\n)keep='time'"),
        ({"column": "v", "keep": ["big"]}, r"keep='big' of .*a.parquet should be below 2\*\*63; convert the column"),
        ({"column": "v", "keep": ["row"]}, "keep='row' should not be a name that subsets have of their own; rename"),
        ({"column": "v", "keep": ["text", "text"]}, "keep='text' should come once; leave it out"),
        ({"column": "v", "keep": ["../text", "level_1"]}, r"keep='../text' should be of a-z, .*\n.*keep='level_1'"),
    ],
)
def test_columns_that_cannot_be_taken_are_named(tmp_path: Path, options: dict, message: str) -> None:
    write(pa.table(TABLE), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        ingest(tmp_path / "a.parquet", tmp_path / "p.zarr", **options)
    tidy(tmp_path, "a.parquet")


def test_a_table_without_embeddings_says_so(tmp_path: Path) -> None:
    write(pa.table({"id": [1, 2], "x": [0.5, 1.0]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet has none of the columns of lists that embeddings may be; bring"):
        ingest(tmp_path / "a.parquet", tmp_path / "p.zarr")


def test_lists_of_other_lengths_in_another_file_are_refused(tmp_path: Path) -> None:
    write(pa.table({"v": lists(values(4))}), tmp_path / "a.parquet")
    write(pa.table({"v": lists(values(4)[:, :3])}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b.parquet\[v\]: n_features=3 should be 4 as in .*a.parquet\[v\]"):
        ingest([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "p.zarr")


@pytest.mark.faults
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_damaged_tables_are_refused(tmp_path: Path, suffix: str) -> None:
    source = write(pa.table({"v": lists(values()), "id": range(57)}), tmp_path / f"a{suffix}")
    data = source.read_bytes()
    for damaged in (data[: len(data) // 2], data[:8] + bytes(len(data) - 8), b""):
        source.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"a{suffix} should be an? (parquet|Arrow) file, but cannot be read"):
            ingest(source, tmp_path / "p.zarr", ids="id")
        tidy(tmp_path, source.name)


def test_a_table_replaced_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    source = write(pa.table({"v": lists(values())}), tmp_path / "a.parquet")
    rows = TableRows(ParquetTable(source), "v")
    np.testing.assert_array_equal(rows.read(9, 31), values()[9:31])
    np.testing.assert_array_equal(rows.take(np.array([3, 20, 55])), values()[[3, 20, 55]])
    write(pa.table({"v": lists(values(80))}), source)
    with pytest.raises(StoreError, match=r"a.parquet was replaced or written to meanwhile; run the command again"):
        rows.read(0, 3)


def test_a_group_of_rows_is_never_whole_in_memory(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100_000, 64)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 64)
    pq.write_table(pa.table({"v": column}), tmp_path / "a.parquet", row_group_size=len(x))
    del column
    rows, before, most, n = TableRows(ParquetTable(tmp_path / "a.parquet"), "v"), pa.total_allocated_bytes(), 0, 0
    for piece in rows.stream(0, len(x), 2**18):
        np.testing.assert_array_equal(piece, x[n : n + len(piece)])
        n, most = n + len(piece), max(most, pa.total_allocated_bytes() - before)
    assert n == len(x)
    assert most < x.nbytes / 4  # what arrives in it is 4 MB, whatever the size of the group


def test_what_folders_tell_is_a_column(tmp_path: Path) -> None:
    x = values()
    table = pa.table({"v": lists(x), "source": ["web", "a book/ä"] * 28 + [None], "n": range(57)})
    pq.write_to_dataset(table, tmp_path / "t", partition_cols=["source"])
    pool = ingest(tmp_path / "t", tmp_path / "p.zarr", keep=["source", "n"])
    n, source = pool.column("n"), pool.column("source")
    assert sorted(n) == [*range(57)]
    np.testing.assert_array_equal(pool.rows().read(0, 57), x[n])
    assert source.tolist() == [table["source"][int(i)].as_py() for i in n]
    with pytest.raises(InputError, match=r"keep='sourse' should be .* \(v, n, source\); did you mean source\?"):
        ingest(tmp_path / "t", tmp_path / "q.zarr", keep=["sourse"])
    with pytest.raises(
        InputError, match=r"ids='source' should be a column in .*, but is in the names of its folders; i"
    ):
        ingest(tmp_path / "t", tmp_path / "q.zarr", ids="source")


def test_dates_and_times_are_carried_as_text_that_sorts_as_they_do(tmp_path: Path) -> None:
    moments = [0, 1_700_000_000_000_001, None, -1]
    columns = {
        "utc": pa.array(moments, pa.timestamp("us", "UTC")),
        "zone": pa.array(moments, pa.timestamp("us", "Europe/Berlin")),
        "local": pa.array(moments, pa.timestamp("us")),
        "day": pa.array([0, 19_675, None, -1], pa.date32()),
        "hour": pa.array([0, 3661, None, 1], pa.time32("s")),
    }
    write(pa.table({"v": lists(values(4)), **columns}), tmp_path / "a.parquet")
    pool = ingest(tmp_path / "a.parquet", tmp_path / "p.zarr", keep=list(columns))
    assert pool.column("utc").tolist() == pool.column("zone").tolist() == [
        "1970-01-01 00:00:00.000000Z", "2023-11-14 22:13:20.000001Z", None, "1969-12-31 23:59:59.999999Z",
    ]  # fmt: skip
    assert pool.column("day").tolist() == ["1970-01-01", "2023-11-14", None, "1969-12-31"]
    assert pool.column("hour").tolist() == ["00:00:00.000", "01:01:01.000", None, "00:00:01.000"]
    del columns["zone"], columns["hour"]  # a zone loses its name, and Arrow reads no hours
    for name, column in columns.items():
        back = pa.array(pool.column(name).tolist(), pa.string())
        assert back.cast(column.type).equals(column), name


@pytest.mark.parametrize(("value", "kind"), [(10**18, pa.timestamp("us")), (-(10**17), pa.timestamp("us", "UTC"))])
def test_dates_beyond_what_text_can_tell_are_refused(tmp_path: Path, value: int, kind: pa.DataType) -> None:
    write(pa.table({"v": lists(values(2)), "when": pa.array([0, value], kind)}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"keep='when' of .* should be in the years 0 to 9999 but some are not; f"):
        ingest(tmp_path / "a.parquet", tmp_path / "p.zarr", keep=["when"])
    tidy(tmp_path, "a.parquet")


def test_columns_that_stay_behind_unasked_are_named(tmp_path: Path) -> None:
    write(pa.table({"v": lists(values(4)), "id": list("abcd"), "url": list("wxyz")}), tmp_path / "a.parquet")
    events: list[Event] = []
    with subscribe(events.append):
        ingest(tmp_path / "a.parquet", tmp_path / "q.zarr", ids="id")
        ingest(tmp_path / "a.parquet", tmp_path / "r.zarr", keep=["url"])
        assert "note" not in [event.kind for event in events]
        ingest(tmp_path / "a.parquet", tmp_path / "p.zarr")
    assert [event.fields["message"] for event in events if event.kind == "note"] == [
        "only embeddings are stored, not the columns id, url; --ids COLUMN stores one as ids, --keep stores others"
    ]
