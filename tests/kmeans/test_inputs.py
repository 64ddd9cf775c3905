"""Inputs of every kind are converted to rows, and outputs have the same kind."""

from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows, NpyRows
from hkm_dask.errors import InputError
from hkm_dask.kmeans.inputs import is_dask_array, is_stored, like_input, over_blocks, rows_of, simplified

X = np.arange(24, dtype=np.float32).reshape(8, 3)


def test_kinds_are_told_apart() -> None:
    assert is_dask_array(da.from_array(X))
    assert not is_dask_array(X)
    assert is_stored("pool.zarr")
    assert is_stored(ArrayRows(X))
    assert not is_stored(X)


def test_a_dask_array_is_computed_once_into_memory_or_a_file(tmp_path: Path) -> None:
    with Runner(n_threads=2, work_dir=tmp_path) as runner:
        with rows_of(da.from_array(X, chunks=(3, 2)), runner) as rows:
            assert isinstance(rows, ArrayRows)
            np.testing.assert_array_equal(rows.array, X)
        runner.memory_budget = 100
        with rows_of(da.from_array(X, chunks=(3, 2)), runner) as rows:
            assert isinstance(rows, NpyRows)
            np.testing.assert_array_equal(rows.read(0, 8), X)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (da.from_array(X)[da.from_array(X)[:, 0] > 3], "should be known"),
        (da.from_array(X[0]), "should be"),
        (da.from_array(X.astype(str)), "X.dtype="),
    ],
)
def test_dask_arrays_that_hold_no_table_of_numbers_are_refused(x: da.Array, message: str) -> None:
    with Runner(n_threads=1) as runner, pytest.raises(InputError, match=message), rows_of(x, runner):
        pass


def test_data_arrays_give_their_own_array() -> None:
    assert simplified(xr.DataArray(X), 0) is X
    assert is_dask_array(simplified(xr.DataArray(X).chunk(4), 0))


def test_answers_over_blocks_are_lazy_and_keep_their_dimension() -> None:
    answer = over_blocks(lambda block, *, add: block[:, 0] + add, da.from_array(X, chunks=(3, 2)), {"add": 1},
                         dtype=np.dtype(np.float32))  # fmt: skip
    np.testing.assert_array_equal(answer.compute(), X[:, 0] + 1)
    words = xr.DataArray(X, dims=("word", "feature"), coords={"word": list("abcdefgh")})
    named = like_input(np.stack([X[:, 0], X[:, 1]], axis=1), words, "level", "labels")
    assert named.dims == ("word", "level")
    assert named.sel(word="c").values.tolist() == [6, 7]
