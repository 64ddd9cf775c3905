"""The same table of rows in all supported forms."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from hkm_dask.data import row_views, rows, store
from hkm_dask.data.chunks import open_array

N, D = 23, 3
CHUNK = 5


def values(dtype: str = "f4", n: int = N) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, D)).astype(dtype)


def zarr_rows(folder: Path, array: np.ndarray) -> rows.ZarrRows:
    store.create_array(folder, "a", shape=array.shape, dtype=array.dtype, chunks=(CHUNK, D), dims=("sample", "feature"))
    open_array(folder / "a").write(0, array)
    return rows.ZarrRows(folder, "a")


def foreign_rows(folder: Path, array: np.ndarray) -> rows.ZarrRows:
    made = zarr.create_array(str(folder / "f"), shape=array.shape, dtype=array.dtype, chunks=(4, 2), zarr_format=2)
    made[:] = array
    return rows.ZarrRows(folder / "f")


def memory_rows(folder: Path, array: np.ndarray) -> rows.Rows:
    made = zarr.create_array({}, shape=array.shape, dtype=array.dtype, chunks=(4, D))
    made[:] = array
    return rows.as_rows(made)


def npy_rows(folder: Path, array: np.ndarray) -> rows.NpyRows:
    np.save(folder / "a.npy", array)
    return rows.NpyRows(folder / "a.npy")


def fortran_rows(folder: Path, array: np.ndarray) -> rows.NpyRows:
    return npy_rows(folder, np.asfortranarray(array))


def subset_rows(folder: Path, array: np.ndarray) -> row_views.SubsetRows:
    padded = np.full((2 * len(array), D), np.nan, array.dtype)
    padded[1::2] = array
    return row_views.SubsetRows(zarr_rows(folder, padded), np.arange(1, len(padded), 2))


KINDS: dict[str, Callable[[Path, np.ndarray], rows.Rows]] = {
    "array": lambda folder, array: rows.ArrayRows(array),
    "npy": npy_rows,
    "fortran": fortran_rows,
    "zarr": zarr_rows,
    "foreign": foreign_rows,
    "memory": memory_rows,
    "subset": subset_rows,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=True)
    return file.getvalue()
