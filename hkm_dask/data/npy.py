"""`.npy` files: safe parsing of headers, and files of known shape that several tasks write in pieces."""

from __future__ import annotations

import ast
import io
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from hkm_dask.data.files import as_buffer, careful
from hkm_dask.data.objects import Location, ObjectPath
from hkm_dask.errors import InputError

NPY_MAGIC: bytes = npy_format.MAGIC_PREFIX
#: Maximum bytes of a header: NumPy's own limit, to protect the parser.
MAX_NPY_HEADER = 10_000
_VERSIONS = ((1, 0), (2, 0), (3, 0))
#: Maximum bytes of the header of an array that this package wrote.
_HEADER_BYTES = 1024
#: Before 3.11.8 and 3.12.2, Python may fail if two threads parse at the same time (gh-106905).
_parsing = threading.Lock()


@dataclass(frozen=True)
class NpyHeader:
    """The parsed header of a `.npy` file."""

    shape: tuple[int, ...]
    dtype: np.dtype  # as stored, with byte order
    fortran_order: bool  # whether columns are contiguous
    offset: int  # bytes before the data

    @property
    def data_bytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(file: IO[bytes], label: str, n_bytes: int | None = None) -> NpyHeader:
    """Parse the header of a `.npy` stream with NumPy, without trusting it: nothing is allocated by its claims.

    InputError if it is not a `.npy`, truncated, holds pickled objects, or if `n_bytes`, the length of the whole `.npy`,
    differs from what the header implies.
    """
    # NumPy would read as many bytes as the header claims to have, up to 4 GiB.
    start = io.BytesIO(file.read(npy_format.MAGIC_LEN + 4 + MAX_NPY_HEADER))
    try:
        version = npy_format.read_magic(start)
    except ValueError:
        raise InputError(
            f"{label} should be a .npy file, but does not begin like one; save it with numpy.save"
        ) from None
    if version not in _VERSIONS:
        shown = f"{version[0]}.{version[1]}" if version[1] else version[0]
        raise InputError(f"{label}: .npy version={shown} should be 1, 2 or 3; save it with numpy.save")
    try:
        shape, fortran_order, dtype = _read_header(start, version)
        sound = all(type(size) is int and size >= 0 for size in shape)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, TokenError, LookupError, OverflowError):
        sound = False
    if not sound:
        raise InputError(f"{label}: the .npy header is damaged or truncated; copy or save the file again")
    if dtype.hasobject:
        raise InputError(f"{label} holds pickled objects, which are never loaded; save plain numbers, or texts as str")
    header = NpyHeader(shape, dtype, fortran_order, start.tell())
    promised = header.offset + header.data_bytes
    if n_bytes not in (None, promised):
        raise InputError(
            f"{label}: n_bytes={n_bytes} should be {promised} by its header {shape} {dtype}; copy or save it again"
        )
    return header


def _read_header(start: io.BytesIO, version: tuple[int, int]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Have NumPy parse a header, after the magic bytes; it may raise exceptions of many types."""
    with _parsing:
        if version == (1, 0):
            return npy_format.read_array_header_1_0(start, max_header_size=MAX_NPY_HEADER)
        if version == (3, 0):
            # NumPy has no public reader of version 3, which is version 2 in UTF-8 without the quirks of Python 2.
            length = int.from_bytes(start.read(4), "little")
            ast.literal_eval(start.read(length).decode("utf-8"))
            start.seek(npy_format.MAGIC_LEN)
        return npy_format.read_array_header_2_0(start, max_header_size=MAX_NPY_HEADER)


def read_npy(file: IO[bytes], label: str, n_bytes: int | None = None) -> np.ndarray:
    """Read a whole `.npy` stream, of `n_bytes` if known; raises InputError as `read_npy_header` does.

    >>> stream = io.BytesIO(b"".join(npy_pieces(np.arange(4.0).reshape(2, 2), 16)))
    >>> read_npy(stream, "x.npy")
    array([[0., 1.],
           [2., 3.]])
    """
    header = read_npy_header(file, label, n_bytes)
    file.seek(header.offset)
    values = np.empty(math.prod(header.shape), header.dtype)
    if file.readinto(as_buffer(values)) != header.data_bytes:  # type: ignore[attr-defined]
        raise InputError(f"{label}: the .npy is truncated; copy or save the file again")
    return values.reshape(header.shape, order="F" if header.fortran_order else "C")


def read_npy_rows(place: Location, start: int, stop: int) -> np.ndarray:
    """Read rows `start` to `stop` of a `.npy` file of this package, without reading the others."""

    def read() -> np.ndarray:
        header = _header(place)
        shape = (stop - start, *header.shape[1:])
        width = math.prod(shape[1:]) * header.dtype.itemsize
        offset, n_bytes = header.offset + start * width, shape[0] * width
        if isinstance(place, ObjectPath):
            data = bytearray(place.read(offset, n_bytes)[0] if n_bytes else b"")
            return np.frombuffer(data, header.dtype).reshape(shape)
        return np.fromfile(place, header.dtype, math.prod(shape), offset=offset).reshape(shape)

    return careful(read, f"reading {place}")


def _header(place: Location) -> NpyHeader:
    if isinstance(place, ObjectPath):
        return _header_of_object(place)
    with place.open("rb") as file:
        return read_npy_header(file, str(place))


@lru_cache(maxsize=4096)
def _header_of_object(place: ObjectPath) -> NpyHeader:
    """Cache headers, to save requests: a name is never reused for another array."""
    return read_npy_header(io.BytesIO(place.read(0, _HEADER_BYTES)[0]), place.url)


def npy_pieces(array: np.ndarray, n_bytes: int) -> Iterator[bytes | memoryview]:
    """Yield the contents of a `.npy` file, header first, in pieces of at most `n_bytes`.

    >>> b"".join(npy_pieces(np.arange(4.0), 16))[-16:] == np.array([2.0, 3.0]).tobytes()
    True
    """
    values = np.ascontiguousarray(array)
    header = io.BytesIO()
    npy_format.write_array_header_1_0(header, npy_format.header_data_from_array_1_0(values))
    yield header.getvalue()
    buffer = as_buffer(values)
    for start in range(0, len(buffer), n_bytes):
        yield buffer[start : start + n_bytes]


def create_npy(path: str | Path, shape: tuple[int, int], dtype: np.dtype) -> int:
    """Create a sparse `.npy` file of zeros; returns the offset of its first row in bytes.

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
        header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with target.open("wb") as file:
            npy_format.write_array_header_1_0(file, header)
            offset = file.tell()
            file.truncate(offset + shape[0] * shape[1] * dtype.itemsize)
        return offset

    return careful(create, f"making {target}")


def write_npy_rows(path: str | Path, offset: int, start: int, rows: np.ndarray) -> None:
    """Write rows, in the file's dtype, from row `start` on, to a file for which `create_npy` returned `offset`."""
    values = np.ascontiguousarray(rows)

    def write() -> None:
        with Path(path).open("r+b", buffering=0) as file:
            write_at(file.fileno(), values, offset + start * values.shape[1] * values.itemsize)

    careful(write, f"writing {path}")


def write_at(fd: int, values: np.ndarray, position: int) -> None:
    """Write all bytes of an array to an open file, starting at a byte position."""
    left = as_buffer(values)
    while left:
        done = os.pwrite(fd, left, position)
        left, position = left[done:], position + done
