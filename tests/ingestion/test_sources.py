"""Sources form one table with ids and columns, or are refused with the reason."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.data.rows import ArrayRows
from hkm_dask.errors import InputError
from hkm_dask.events import subscribe
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.ingestion.sources import Segment, open_sources
from tests.ingestion.pools import TINY, ids_of, read_all, tidy, values


@settings(max_examples=40)
@given(cuts=st.lists(st.integers(1, 56), max_size=6), drop=st.booleans())
def test_sources_cut_anywhere_are_one_table(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], drop: bool
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    x = values()
    if drop:
        x[[0, 9, 10, 11, 30, 56], 1] = np.nan
    kept = np.flatnonzero(np.isfinite(x).all(axis=1))
    bounds = [0, *sorted(set(cuts)), 57]
    tables = [x[start:stop] for start, stop in itertools.pairwise(bounds)]
    pool = ingest(tables, folder / "p.zarr", chunk_mb=TINY, drop_nonfinite=drop)
    np.testing.assert_array_equal(read_all(pool), x[kept])
    np.testing.assert_array_equal(pool.mean, x[kept].mean(axis=0, dtype=np.float64).astype(np.float32))
    if drop:
        assert ids_of(pool) == kept.tolist()


@given(start=st.integers(0, 30), n=st.integers(1, 30), chunk=st.integers(1, 12), max_bytes=st.integers(1, 400))
def test_pieces_cover_a_segment_by_whole_chunks(start: int, n: int, chunk: int, max_bytes: int) -> None:
    table = ArrayRows(np.zeros((60, 2), np.float32))
    table.chunk_rows = chunk
    pieces = list(Segment(table, start, start + n).pieces(max_bytes))
    assert [row for piece in pieces for row in range(*piece)] == list(range(start, start + n))
    assert all(first % chunk == 0 for first, _ in pieces[1:])
    assert all((last - first) * 8 <= max(max_bytes, 8 * chunk) for first, last in pieces)


def test_mixed_sources(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(5, 1, "f2"))
    np.savez(tmp_path / "b.npz", values(6, 2, "f8"))
    (tmp_path / "c").mkdir()
    np.save(tmp_path / "c" / "0.npy", np.asfortranarray(values(7, 3)))
    ingest(values(8, 4), tmp_path / "d.zarr")
    sources = [tmp_path / "a.npy", str(tmp_path / "b.npz"), tmp_path / "c", tmp_path / "d.zarr", values(9, 5)]
    pool = ingest(sources, tmp_path / "p.zarr", chunk_mb=TINY / 2)
    expected = [values(5, 1, "f2"), values(6, 2, "f8"), values(7, 3), values(8, 4), values(9, 5)]
    np.testing.assert_array_equal(read_all(pool), np.concatenate([table.astype("f4") for table in expected]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [], "sources=\\[\\] should name at least one source"),
        (lambda folder: folder / "nothing.npy", "does not exist"),
        (lambda folder: folder, "should hold \\*.npy, .* or be a Zarr store, it holds none of them"),
        (lambda folder: np.zeros(3), r"shape=\(3,\) should be \(n_samples, n_features\)"),
        (lambda folder: np.zeros((0, 3)), "n_samples=0 should be at least 1"),
        (lambda folder: np.zeros((3, 0)), "n_features=0 should be at least 1"),
        (lambda folder: [np.zeros((3, 2)), np.zeros((3, 4))], r"n_features=4 should be 2 as in array in memory"),
        (lambda folder: np.array([["a"]]), "should be float16, float32, float64 or an integer"),
        (lambda folder: np.zeros((2, 2), complex), "dtype=complex128 should be"),
        (lambda folder: 7, "embeddings=int should be an array"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=message):
        ingest(make(tmp_path / "in"), tmp_path / "out" / "p.zarr")
    tidy(tmp_path / "out")


def test_sources_given_twice_are_told(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in "ab":
        np.save(tmp_path / "shards" / f"{name}.npy", values(3))
    told = list[str]()
    with subscribe(lambda event: told.append(str(event.fields.get("message")))):
        assert open_sources([tmp_path / "shards", tmp_path / "shards" / "b.npy", values(3), values(3)]).n_rows == 15
        open_sources(tmp_path / "shards")
    assert told == [f"rows are there as often as their source is given: {tmp_path / 'shards' / 'b.npy'} more than once"]
