"""Scratch files of rows, written in pieces by several tasks: an `.npy` of known shape, no memory map."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from hkm_dask.data.files import as_buffer, careful


def create_npy(path: str | Path, shape: tuple[int, int], dtype: np.dtype) -> int:
    """Make an `.npy` file of zeros without writing them.

    Parameters
    ----------
    path : path-like
    shape : (int, int)
    dtype : np.dtype

    Returns
    -------
    int
        Bytes before the first row.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     offset = create_npy(f"{folder}/a.npy", (3, 2), np.dtype("f4"))
    ...     write_npy_rows(f"{folder}/a.npy", offset, 1, np.ones((2, 2), "f4"))
    ...     np.load(f"{folder}/a.npy")
    array([[0., 0.],
           [1., 1.],
           [1., 1.]], dtype=float32)
    """
    target = Path(path)

    def create() -> int:
        target.parent.mkdir(parents=True, exist_ok=True)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with target.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
            file.truncate(offset + shape[0] * shape[1] * dtype.itemsize)
        return offset

    return careful(create, f"making {target}")


def write_npy_rows(path: str | Path, offset: int, start: int, rows: np.ndarray) -> None:
    """Write rows to their place in a file made by `create_npy`.

    Parameters
    ----------
    path : path-like
    offset : int
        As `create_npy` returned it.
    start : int
        Number of the first row.
    rows : ndarray, shape (n, n_features)
        In the dtype of the file.
    """
    values = np.ascontiguousarray(rows)

    def write() -> None:
        fd = os.open(path, os.O_WRONLY)
        try:
            view, at = as_buffer(values), offset + start * values.shape[1] * values.itemsize
            while view:
                done = os.pwrite(fd, view, at)
                view, at = view[done:], at + done
        finally:
            os.close(fd)

    careful(write, f"writing {path}")
