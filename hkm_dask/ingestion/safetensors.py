"""Tensors of `.safetensors` files as rows; the format is so simple that the header is parsed here.

Eight bytes give the length of a JSON object, which maps names to dtype, shape and the range of bytes after it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hkm_dask.data.files import open_input
from hkm_dask.data.ids import Pieces, plain_ids, stream_values
from hkm_dask.data.rows import NpyRows
from hkm_dask.errors import InputError
from hkm_dask.ingestion.tables import Column, array_column
from hkm_dask.untrusted import open_regular, parse_json, reading

#: Most bytes of a header, the same limit as in the safetensors library.
MAX_HEADER_BYTES = 100_000_000
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
_WHOLE = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
_COLUMNS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?", **_WHOLE}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its name, its dtype in the format's notation, its shape and its byte offset."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the header of a file; raises InputError if it is damaged or does not match the size of the file."""
    with (
        reading(f"{path} should be a .safetensors file, but cannot be read", "copy or save it again"),
        open_input(path) as file,
    ):
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"its header has {length:,} bytes")
        header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _tensor(name, entry, 8 + length, size) for name, entry in header.items()}
    if not tensors:
        raise InputError(f"{path} should hold a tensor, but has none; save it again")
    return tensors


def _tensor(name: str, entry: dict[str, object], start: int, size: int) -> Tensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise ValueError(f"{name!r:.80} is not described")
    first, last = offsets
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise ValueError(f"{name!r:.80} has a shape or a place that cannot be")
    stored = (_DTYPES | _COLUMNS).get(dtype)
    n_bytes = last - first if stored is None else math.prod(shape) * np.dtype(stored).itemsize
    if last - first != n_bytes or start + last > size:
        raise ValueError(f"{name!r:.80} has {last - first:,} bytes, the file {size:,}")
    return Tensor(name, dtype, tuple(shape), start + first)


class SafetensorsRows(NpyRows):
    """Rows of a tensor of float16, float32, float64 or bfloat16 (which is read as float32)."""

    def __init__(self, path: Path, tensor: Tensor) -> None:
        label = f"{path}[{tensor.name}]"
        if tensor.dtype not in _DTYPES:
            raise InputError(f"{label}: dtype={tensor.dtype} should be F16, BF16, F32 or F64; convert it first")
        stored = np.dtype(_DTYPES[tensor.dtype])
        self._is_bfloat16 = tensor.dtype == "BF16"
        self.path = str(path)
        self._place(tensor.shape, stored, tensor.offset, path.stat(), label)
        if self._is_bfloat16:
            self.dtype = np.dtype(np.float32)

    def _deliver(self, rows: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        if self._is_bfloat16 and rows.dtype == np.uint16:
            # A bfloat16 is the upper half of a float32.
            rows = np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
        return super()._deliver(rows, out)


def tensor_ids(path: Path, tensor: Tensor) -> Pieces:
    """Return the ids in a tensor, read in pieces; raises InputError if it is not a column of integers."""
    pieces, label = _column_pieces(path, tensor), f"{path}[{tensor.name}]"
    if tensor.dtype not in _WHOLE:
        raise InputError(f"{label}: dtype={tensor.dtype} should be whole numbers; give the ids as a file (ids_file)")
    return lambda: (plain_ids(values, label) for values in pieces())


def tensor_column(path: Path, tensor: Tensor) -> Column:
    """Return a tensor as a column to keep; raises InputError unless it has one value per row."""
    return array_column(
        np.dtype(_COLUMNS.get(tensor.dtype, "V")), _column_pieces(path, tensor), f"{path}[{tensor.name}]"
    )


def _column_pieces(path: Path, tensor: Tensor) -> Pieces:
    if len(tensor.shape) != 1:
        fact = f"{path}[{tensor.name}]: shape={tensor.shape} should have one dimension"
        raise InputError(f"{fact}; give one value per row")
    return partial(_values, path, tensor)


def _values(path: Path, tensor: Tensor) -> Iterator[np.ndarray]:
    fact = f"{path} should be a .safetensors file, but cannot be read"
    with reading(fact, "copy it again"), open_regular(path) as file:
        file.seek(tensor.offset)
        yield from stream_values(file, np.dtype(_COLUMNS[tensor.dtype]), tensor.shape[0], f"{path}[{tensor.name}]")
