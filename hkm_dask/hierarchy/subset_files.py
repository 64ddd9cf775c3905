"""Subsets read again: the row numbers in a file that `hkm sample` wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data.npy import read_npy
from hkm_dask.errors import InputError
from hkm_dask.untrusted import open_regular, reading


def read_rows(path: str | os.PathLike[str], n_rows: int) -> NDArray[np.int64]:
    """Read row numbers of a pool from a file that `hkm sample` wrote, sorted.

    ``.npy``, or the column ``row`` of ``.parquet`` and ``.csv``. InputError where the file is something else, or has
    other numbers.
    """
    suffix = Path(path).suffix
    wanted = f"subset={path} should be an .npy, .parquet or .csv file of `hkm sample`"
    with reading(f"{wanted}, it cannot be read", "write it again"):
        if suffix == ".npy":
            rows = _read_npy(path)
        elif suffix in (".parquet", ".csv"):
            import pyarrow.dataset as ds

            open_regular(path).close()
            table = ds.dataset(str(path), format=suffix[1:]).to_table(columns=["row"])
            rows = table.column("row").to_numpy()
        else:
            raise InputError(f"{wanted}; write one of these")
    if rows.dtype.kind not in "iu":
        raise InputError(f"subset={path} should hold whole numbers, it holds {rows.dtype}; write row numbers")
    outside = int(np.count_nonzero((rows < 0) | (rows >= n_rows)))
    if outside:
        raise InputError(f"subset={path} should be row numbers below {n_rows}, {outside} are not; is it of this pool?")
    return np.sort(rows.astype(np.int64))


def _read_npy(path: str | os.PathLike[str]) -> NDArray[Any]:
    with open_regular(path) as file:
        try:
            rows = read_npy(file, "it", os.fstat(file.fileno()).st_size)
        except InputError as error:
            raise ValueError(str(error)) from None
    if rows.ndim != 1:
        raise ValueError(f"its shape is {rows.shape}")
    return rows
