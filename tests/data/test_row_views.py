"""Subsets and unit rows equal the rows they are derived from, with any chunking."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.compute.staging import memory_of_blocks
from hkm_dask.data import row_views, rows
from hkm_dask.errors import InputError
from tests.data.tables import CHUNK, KINDS, N, each_kind, values, zarr_rows

# --- subsets ----------------------------------------------------------------------------------------------------------


@given(
    index=st.sets(st.integers(0, N - 1), min_size=1).map(lambda rows: np.array(sorted(rows))),
    max_bytes=st.integers(1, 400),
    min_blocks=st.integers(1, 30),
)
def test_subset_blocks_end_where_chunks_end(
    tmp_path_factory: pytest.TempPathFactory, index: np.ndarray, max_bytes: int, min_blocks: int
) -> None:
    base = zarr_rows(tmp_path_factory.mktemp("subset"), values())
    subset = row_views.SubsetRows(base, index)
    bounds = subset.bounds(max_bytes, min_blocks)
    assert (bounds[0], bounds[-1]) == (0, len(index))
    assert (np.diff(bounds) > 0).all()
    for start, stop in itertools.pairwise(bounds.tolist()):
        touched = index[start:stop] // CHUNK
        assert start == 0 or touched[0] != index[start - 1] // CHUNK
        assert stop - start <= max(1, max_bytes // subset.row_bytes) or touched[0] == touched[-1]


def test_a_subset_of_a_subset_is_one(tmp_path: Path) -> None:
    base = zarr_rows(tmp_path, values())
    inner = row_views.SubsetRows(base, np.arange(0, N, 2))
    outer = row_views.SubsetRows(inner, np.array([1, 5, 10]))
    assert outer.base is base
    assert outer.index.tolist() == [2, 10, 20]
    np.testing.assert_array_equal(outer.read(0, 3), values()[[2, 10, 20]])
    assert outer.key != inner.key


@pytest.mark.parametrize("at_once", [1, 3, 1 << 16])
def test_a_subset_that_travels_reads_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(row_views, "_NUMBERS_AT_ONCE", at_once)
    here = row_views.SubsetRows(zarr_rows(tmp_path, values()), np.arange(1, N, 2))
    np.save(tmp_path / "numbers.npy", here.index)
    here.travel_by(str(tmp_path / "numbers.npy"))
    there = pickle.loads(pickle.dumps(here))
    assert isinstance(there.index, row_views.StoredNumbers)
    assert memory_of_blocks(there) == memory_of_blocks(here)
    assert memory_of_blocks(there)[2] == 0
    n = len(here.index)
    for start, stop in [(0, n), (2, 5), (3, 3)]:
        assert there.read(start, stop).tobytes() == here.read(start, stop).tobytes()
    for places in ([], [0], [1, 2, 7], list(range(n))):
        assert there.take(np.array(places, np.int64)).tobytes() == here.take(np.array(places, np.int64)).tobytes()
        assert there.index[np.array(places, np.int64)].tolist() == here.index[places].tolist()
    assert there.bounds(8).tolist() == here.bounds(8).tolist()
    assert there.index[n - 1] == here.index[n - 1]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "n_samples=0 should be at least 1"),
        ([1, 1], "row numbers should not repeat"),
        ([2, 1], "should be sorted"),
        ([0, N], "should lie within 0..22"),
        ([-1], "should lie within"),
    ],
)
def test_bad_subsets_are_refused(index: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        row_views.SubsetRows(rows.ArrayRows(values()), np.array(index, dtype=np.int64))


# --- unit rows --------------------------------------------------------------------------------------------------------


@given(
    array=hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements=st.floats(-100, 100, width=16),
    ),
    data=st.data(),
)
def test_unit_rows_depend_on_nothing_but_the_row(array: np.ndarray, data: st.DataObject) -> None:
    whole = row_views.unit_rows(array)
    wide = array.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    expected = np.divide(wide, norms[:, None], out=np.zeros_like(wide), where=norms[:, None] > 0)
    np.testing.assert_allclose(whole, expected, rtol=1e-7, atol=1e-45)
    start = data.draw(st.integers(0, len(array) - 1))
    stop = data.draw(st.integers(start + 1, len(array)))
    assert row_views.unit_rows(array[start:stop]).tobytes() == whole[start:stop].tobytes()
    assert row_views.unit_rows(array[start : start + 1]).tobytes() == whole[start : start + 1].tobytes()


def test_large_blocks_of_unit_rows_are_the_same_rows() -> None:
    array = np.random.default_rng(0).normal(size=(5000, 70)).astype(np.float32)
    one_by_one = np.concatenate([row_views.unit_rows(array[row : row + 1]) for row in range(len(array))])
    assert row_views.unit_rows(array).tobytes() == one_by_one.tobytes()


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-30, 1.0, 1e30, 1e200, 1e300])
def test_no_row_is_too_long_or_too_short_to_normalize(scale: float) -> None:
    np.testing.assert_allclose(row_views.unit_rows(np.array([[3.0, 4.0]]) * scale), [[0.6, 0.8]], rtol=1e-6)


@each_kind
def test_unit_rows_over_anything(tmp_path: Path, kind: str) -> None:
    base = KINDS[kind](tmp_path, values("f2"))
    found = row_views.UnitRows(base)
    expected = row_views.unit_rows(values("f2"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.read(3, 9), expected[3:9])
    np.testing.assert_array_equal(found.take(np.array([0, 20])), expected[[0, 20]])
    # Rows grow from 2 to 4 bytes a value; a block must not.
    bounds = found.bounds(60 * found.row_bytes // 4)
    assert np.diff(bounds).max() <= 15
    assert set(bounds.tolist()) <= {*range(0, N, base.chunk_rows), N, *bounds.tolist()}
