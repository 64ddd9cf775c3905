"""`cuTensorMapEncodeTiled` of the CUDA driver, for the copies that hopper_on_cpu.h supports."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

import numpy as np

from tests.emulated import memory

N_BYTES = 128
_LAYOUT = "=5Q2I"  # magic, address, width, lines, stride; width and lines of a box
_MAGIC = int.from_bytes(b"nsor-map", "little")
_INVALID_VALUE = 1


def encode_tiled(
    tensor_map: ctypes.c_void_p, data_type: int, rank: ctypes.c_uint32, address: ctypes.c_void_p,
    dims: Sequence[int], strides: Sequence[int], box: Sequence[int], steps: Sequence[int], interleave: int,
    swizzle: int, promotion: int, fill: int,
) -> int:  # fmt: skip
    """Describe a float16 matrix; raises an error for arguments that the driver rejects."""
    at, start = tensor_map.value or 0, address.value or 0
    if (data_type, rank.value, interleave, swizzle, fill, list(steps)) != (6, 2, 0, 3, 0, [1, 1]):
        raise NotImplementedError("the emulator copies matrices of float16, in lines swizzled by 128 bytes")
    fits = all(0 < n <= 256 for n in box) and 2 * box[0] <= 128 and all(0 < n <= 1 << 32 for n in dims)
    if at % 64 or start % 16 or strides[0] % 16 or not fits or not 0 <= promotion <= 3:
        return _INVALID_VALUE
    described = struct.pack(_LAYOUT, _MAGIC, start, *dims, strides[0], *box)
    ctypes.memmove(at, described, len(described))
    return 0


def matrix_of(tensor_map: np.ndarray) -> np.ndarray:
    """Return the bytes of device memory that a tensor map describes."""
    magic, start, width, n_lines, stride, *_ = struct.unpack_from(_LAYOUT, tensor_map.tobytes())
    if magic != _MAGIC:
        raise TypeError("a numpy.ndarray passed by value should be what cuTensorMapEncodeTiled wrote")
    return memory.span(start, (n_lines - 1) * stride + 2 * width)
