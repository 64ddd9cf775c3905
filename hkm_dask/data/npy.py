"""The header of a `.npy` file, parsed without trusting it."""

from __future__ import annotations

import ast
import math
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from hkm_dask.errors import InputError

NPY_MAGIC = b"\x93NUMPY"
MAX_NPY_HEADER = 2**16


@dataclass(frozen=True)
class NpyHeader:
    """What the header of a `.npy` file promises.

    Attributes
    ----------
    shape : tuple of int
        Shape of the array.
    dtype : np.dtype
        As stored, byte order included.
    fortran_order : bool
        Whether columns are contiguous.
    offset : int
        Bytes before the data.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    offset: int

    @property
    def data_bytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(file: BinaryIO, label: str) -> NpyHeader:
    """Parse the header of a `.npy` stream without trusting it: no pickles, no allocation by what it says.

    Parameters
    ----------
    file : binary file
        At its beginning; left at the first byte of the data.
    label : str
        What to call it in messages.

    Returns
    -------
    NpyHeader
        What it promises; whether the data is as long is the caller's to check.

    Raises
    ------
    InputError
        When it is no `.npy`, truncated, or holds pickled objects.
    """
    start = file.read(10)
    if len(start) < 10 or not start.startswith(NPY_MAGIC):
        raise InputError(f"{label} should be a .npy file, its first bytes are not; save it with numpy.save")
    if start[6] not in (1, 2, 3):
        raise InputError(f"{label}: .npy version={start[6]} should be 1, 2 or 3; save it with numpy.save")
    start += b"" if start[6] == 1 else file.read(2)
    damaged = InputError(f"{label}: the .npy header is damaged or truncated; copy or save the file again")
    try:
        (length,) = struct.unpack("<H" if start[6] == 1 else "<I", start[8:])
    except struct.error:
        raise damaged from None
    text = file.read(length) if length <= MAX_NPY_HEADER else b""
    if len(text) < length or length > MAX_NPY_HEADER:
        raise damaged
    try:
        header = ast.literal_eval(text.decode("utf-8" if start[6] == 3 else "latin-1").strip())
        shape, descr, fortran = header["shape"], header["descr"], header["fortran_order"]
        dtype = np.lib.format.descr_to_dtype(descr)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError, UnicodeDecodeError):
        raise damaged from None
    if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) and isinstance(fortran, bool)):
        raise damaged
    if dtype.hasobject:
        raise InputError(f"{label} holds pickled objects, which are never loaded; save plain numbers")
    return NpyHeader(shape, dtype, fortran, len(start) + length)


def check_npy_length(header: NpyHeader, n_bytes: int, label: str) -> None:
    """Refuse a `.npy` that is shorter or longer than its header says.

    Parameters
    ----------
    header : NpyHeader
        What the header promises.
    n_bytes : int
        Length of the whole `.npy`, header included.
    label : str
        What to call it in messages.

    Raises
    ------
    InputError
        Naming both lengths, in bytes.

    Examples
    --------
    >>> check_npy_length(NpyHeader((2, 3), np.dtype("f4"), False, 128), 140, "a.npy")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: a.npy: n_bytes=140 should be 152 by its header (2, 3) float32; copy or save it again
    """
    promised = header.offset + header.data_bytes
    if n_bytes != promised:
        raise InputError(
            f"{label}: n_bytes={n_bytes} should be {promised} by its header {header.shape} {header.dtype}; "
            "copy or save it again"
        )
