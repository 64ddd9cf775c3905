"""Conversion of the estimators' inputs to `Rows`, and of their outputs to the kind of the input."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from hkm_dask.compute.backend import off_device
from hkm_dask.compute.runner import Runner
from hkm_dask.data import layout
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.pool import Pool
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows, as_rows, check_unmasked
from hkm_dask.errors import InputError

if TYPE_CHECKING:
    import dask.array as da


def is_dask_array(x: Any) -> bool:
    """Tell whether `x` is a Dask array, without importing Dask."""
    return type(x).__module__.split(".")[0] == "dask" and hasattr(x, "map_blocks") and hasattr(x, "rechunk")


def is_stored(x: Any) -> bool:
    """Tell whether `x` is a table of rows on disk, or names one: a path, a pool, a Zarr array or `Rows`."""
    return isinstance(x, str | os.PathLike | zarr.Array | Pool | Rows)


def simplified(x: Any, memory_budget: int) -> Any:
    """Unwrap a DataArray, and copy data on a GPU to the host.

    A DataArray that is not in memory yet and would take more than a quarter of `memory_budget` becomes a Dask array.
    """
    if isinstance(x, xr.DataArray):
        # xarray reads an array that was opened without chunks as a whole when it is first accessed.
        waits = not getattr(x.variable, "_in_memory", True)
        if x.chunks is None and waits and x.nbytes > memory_budget // 4:
            x = x.chunk("auto")
        x = x.data
    check_unmasked(x, "X")
    return off_device(x)


@contextmanager
def rows_of(x: Any, runner: Runner) -> Iterator[Rows]:
    """Yield the rows of a validated input for the duration of the context.

    The input is an array in memory, a Dask array, or anything that `is_stored` accepts. A Dask array is computed once:
    into memory if it takes no more than a quarter of the runner's budget, else block by block into a file in its work
    folder. Raises InputError if it is not 2-D, has unknown chunk sizes or is not numeric.
    """
    if not is_dask_array(x):
        yield as_rows(x)
        return
    x = _checked(x)
    if runner.fits_in_memory(x.nbytes):
        yield ArrayRows(off_device(x.compute(**runner.scheduler)), "Dask array")
        return
    path = runner.work_dir / f"input-{uuid.uuid4().hex}.npy"
    try:
        _spool(x, path, runner)
        yield NpyRows(path, label="Dask array", scratch=True)
    finally:
        path.unlink(missing_ok=True)


def _checked(x: da.Array) -> da.Array:
    if np.isnan(x.shape).any():
        raise InputError(f"X.shape={x.shape} should be known; call X.compute_chunk_sizes() first")
    layout.check_shape(x.shape, "Dask array")
    read_as = layout.float_dtype(x.dtype)
    if read_as is None:
        raise InputError(f"X.dtype={x.dtype} should be float16, float32, float64 or an integer; convert it first")
    return x.astype(read_as, copy=False).rechunk({1: -1})


@dataclass(frozen=True)
class _Target:
    """A `.npy` file as a target of `dask.array.store`: blocks of rows are written in any order, from any process."""

    path: str
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype

    def __setitem__(self, index: tuple[slice, slice], block: Any) -> None:
        write_npy_rows(self.path, self.offset, index[0].start or 0, np.asarray(simplified(block, 0)))


def _spool(x: da.Array, path: Path, runner: Runner) -> None:
    import dask.array as da

    shape = (int(x.shape[0]), int(x.shape[1]))
    target = _Target(str(path.absolute()), create_npy(path, shape, x.dtype), shape, x.dtype)
    # Dask accepts any object with __setitem__, although its type annotations name arrays only.
    da.store([x], [cast("Any", target)], lock=False, **runner.scheduler)


def over_blocks(
    function: Callable[..., NDArray[Any]],
    x: da.Array,
    arguments: dict[str, Any],
    *,
    dtype: np.dtype,
    n_columns: int | None = None,
) -> da.Array:
    """Apply a function lazily to the row blocks of a Dask array.

    The function gets a block of rows and `arguments`; arrays among these are sent once per worker, not with every
    block. It returns `n_columns` values of `dtype` per row, or a 1-D array if `n_columns` is None.
    """
    from dask.delayed import delayed

    arguments = {k: delayed(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    x = x.rechunk({1: -1})
    map_blocks: Callable[..., da.Array] = x.map_blocks
    if n_columns is None:
        return map_blocks(function, **arguments, drop_axis=1, dtype=dtype, meta=np.empty(0, dtype))
    chunks = (x.chunks[0], (n_columns,))
    return map_blocks(function, **arguments, chunks=chunks, dtype=dtype, meta=np.empty((0, 0), dtype))


def like_input(answer: Any, x: xr.DataArray, column: str | None, name: str) -> xr.DataArray:
    """Wrap an answer for the samples of a DataArray in a DataArray with their dimension and coordinates.

    `column` names the second dimension, if there is one, and `name` the result.

    >>> x = xr.DataArray(np.zeros((2, 3)), dims=("word", "feature"), coords={"word": ["a", "b"]})
    >>> like_input(np.array([1, 0]), x, None, "labels").sel(word="b").item()
    0
    """
    dims = x.dims[:1] if column is None else (x.dims[0], column)
    coords = {key: one for key, one in x.coords.items() if set(one.dims) <= {x.dims[0]}}
    return xr.DataArray(answer, dims=dims, coords=coords, name=name)
