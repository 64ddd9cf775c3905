"""The fused search on Hopper (compute capability 9.0), with the kernel of search_hopper.cu."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.errors import ComputeError
from hkm_dask.search.cuda.kernels import launch

#: Centroids of a tile; biases are padded with infinity to a multiple of it.
TILE_COLUMNS = 256
#: Rows of a block; blocks of a thread-block cluster; threads of a block.
_TILE_ROWS, _CLUSTER, _THREADS = 128, 2, 384
#: The half of a centroid tile that each block of a cluster fetches; coordinates of a step.
_BOX_COLUMNS, _DEPTH = TILE_COLUMNS // _CLUSTER, 64
#: Bytes of shared memory: six steps of rows and four of centroids, barriers, and alignment to 1024 bytes.
SHARED_BYTES = (6 * _TILE_ROWS + 4 * TILE_COLUMNS) * 2 * _DEPTH + 2 * 6 * 8 + 1024
#: From this many centroids on, non-contiguous rows are gathered first, as TMA tile copies cannot do that: it moves 4
#: bytes per value and saves a third of the products. Modeled, not measured.
LEAST_FOR_GATHERED = 512
# CUtensorMapDataType, -Swizzle, -L2promotion; 0 means none in the other enumerations.
_FLOAT16, _SWIZZLE_128_BYTES, _L2_256_BYTES = 6, 3, 3
_ALIGNMENT, _N_BYTES = 64, 128


@cache
def is_available() -> bool:
    """Tell whether the device is a Hopper whose driver can encode tensor maps; ``HKM_HOPPER=0`` disables it."""
    if os.environ.get("HKM_HOPPER") == "0":
        return False
    import cupy

    return int(cupy.cuda.Device().compute_capability) // 10 == 9 and encoder() is not None


def nearest_two(
    rows: Any, centroids: Any, bias: Any, alpha: np.float32, unit: np.int32, best: Any, second: Any, index: Any
) -> None:
    """Write the two best scores of every row, and the best unit of `unit` columns; see search_hopper.cu.

    Rows and centroids are float16, C-contiguous, of a width that is a multiple of 8; `bias` is float32 per centroid,
    padded with infinity to a multiple of `TILE_COLUMNS`. The outputs (n_rows,) are float32, float32 and int32.
    """
    n_rows, width = rows.shape
    launch(
        "nearest_two_hopper", rows, _CLUSTER * -(-n_rows // (_TILE_ROWS * _CLUSTER)), _THREADS,
        tensor_map(rows, (_TILE_ROWS, _DEPTH)), tensor_map(centroids, (_BOX_COLUMNS, _DEPTH)),
        bias, alpha, np.int64(n_rows), np.int32(len(centroids)), np.int32(width), unit, best, second, index,
        shared_bytes=SHARED_BYTES,
    )  # fmt: skip


# -- tensor maps of matrices for tile copies (TMA), encoded by the driver ----------------------------------------------


@cache
def encoder() -> Any | None:
    """Return the driver's `cuTensorMapEncodeTiled`; None without a driver, or with one older than CUDA 12."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    except (OSError, AttributeError):
        return None


def tensor_map(matrix: Any, box: tuple[int, int]) -> NDArray[np.void]:
    """Encode a `CUtensorMap` for a matrix that is fetched in swizzled boxes of 128-byte lines.

    The matrix is float16 (n_lines, width), C-contiguous, with a width that is a multiple of 8. `box` is the number of
    lines, and of columns, at most 64.
    """
    encode = encoder()
    if encode is None:
        raise ComputeError("the driver has no cuTensorMapEncodeTiled; it should be of CUDA 12 or newer")
    room = np.zeros(_N_BYTES + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    out = room[start : start + _N_BYTES].view(f"V{_N_BYTES}")
    n_lines, width = matrix.shape
    # The innermost dimension comes first; strides, in bytes, are those of all other dimensions.
    status = encode(
        ctypes.c_void_p(out.ctypes.data), _FLOAT16, ctypes.c_uint32(2), ctypes.c_void_p(matrix.data.ptr),
        (ctypes.c_uint64 * 2)(width, n_lines), (ctypes.c_uint64 * 1)(matrix.strides[0]),
        (ctypes.c_uint32 * 2)(box[1], box[0]), (ctypes.c_uint32 * 2)(1, 1), 0, _SWIZZLE_128_BYTES, _L2_256_BYTES, 0,
    )  # fmt: skip
    if status:
        raise ComputeError(f"cuTensorMapEncodeTiled refused a matrix of shape {matrix.shape} (error {status})")
    return out
