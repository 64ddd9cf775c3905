"""Matrices in device memory as Hopper's copies of tiles (TMA) take them, described by the driver's own function."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.errors import ComputeError

# CUtensorMapDataType, -Swizzle, -L2promotion; the other enumerations are 0 for nothing of the kind.
_FLOAT16, _SWIZZLE_128_BYTES, _L2_256_BYTES = 6, 3, 3
_ALIGNMENT, _N_BYTES = 64, 128


@cache
def encoder() -> Any | None:
    """Return `cuTensorMapEncodeTiled` of the driver; None where there is no driver, or one from before CUDA 12."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    except (OSError, AttributeError):
        return None


def tensor_map(matrix: Any, box: tuple[int, int]) -> NDArray[np.void]:
    """Describe a matrix that is fetched in boxes of 128-byte lines, swizzled.

    Parameters
    ----------
    matrix : cupy.ndarray of float16, shape (n_lines, width)
        C-contiguous, with a width that is a multiple of 8.
    box : (int, int)
        Lines and columns; 64 columns at most.

    Returns
    -------
    ndarray of void, shape (1,)
        A `CUtensorMap`, as CuPy passes it to a kernel by value.
    """
    encode = encoder()
    if encode is None:
        raise ComputeError("the driver has no cuTensorMapEncodeTiled; it should be of CUDA 12 or newer")
    room = np.zeros(_N_BYTES + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    out = room[start : start + _N_BYTES].view(f"V{_N_BYTES}")
    n_lines, width = matrix.shape
    # Fastest first; the strides are those of all others, in bytes.
    status = encode(
        ctypes.c_void_p(out.ctypes.data), _FLOAT16, ctypes.c_uint32(2), ctypes.c_void_p(matrix.data.ptr),
        (ctypes.c_uint64 * 2)(width, n_lines), (ctypes.c_uint64 * 1)(matrix.strides[0]),
        (ctypes.c_uint32 * 2)(box[1], box[0]), (ctypes.c_uint32 * 2)(1, 1), 0, _SWIZZLE_128_BYTES, _L2_256_BYTES, 0,
    )  # fmt: skip
    if status:
        raise ComputeError(f"cuTensorMapEncodeTiled refused a matrix of shape {matrix.shape} (error {status})")
    return out
