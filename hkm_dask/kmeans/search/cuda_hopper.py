"""The fused search on Hopper (compute capability 9.0), by the kernel of search_hopper.cu."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np

from hkm_dask.kmeans.search import tensor_map
from hkm_dask.kmeans.search.cuda_kernels import launch

#: Centroids of a tile: biases are infinite up to a multiple of it.
TILE_COLUMNS = 256
#: Rows of a block; blocks of a cluster; threads of a block.
_TILE_ROWS, _CLUSTER, _THREADS = 128, 2, 384
#: Half of a tile of centroids, which each block of a cluster fetches; coordinates of a step.
_BOX_COLUMNS, _DEPTH = TILE_COLUMNS // _CLUSTER, 64
#: Bytes of shared memory: six steps of rows and four of centroids, barriers, and what begins at a multiple of 1024.
SHARED_BYTES = (6 * _TILE_ROWS + 4 * TILE_COLUMNS) * 2 * _DEPTH + 2 * 6 * 8 + 1024
#: Centroids from which rows that do not lie in a run are gathered first, as copies of tiles cannot do that: it moves 4
#: bytes a value, and saves a third of the products. A model; not measured.
LEAST_FOR_GATHERED = 512


@cache
def is_available() -> bool:
    """Whether the device is a Hopper, with a driver that describes matrices to it; ``HKM_HOPPER=0`` says no."""
    if os.environ.get("HKM_HOPPER") == "0":
        return False
    import cupy

    return int(cupy.cuda.Device().compute_capability) // 10 == 9 and tensor_map.encoder() is not None


def nearest_two(
    rows: Any, centroids: Any, bias: Any, alpha: np.float32, unit: np.int32, best: Any, second: Any, index: Any
) -> None:
    """Write the two best scores of every row, and the best unit of `unit` columns; see search_hopper.cu.

    Parameters
    ----------
    rows, centroids : cupy.ndarray of float16, shape (n_rows, width), (n_centroids, width)
        C-contiguous, with a width that is a multiple of 8.
    bias : cupy.ndarray of float32
        Of every centroid, and infinite up to a multiple of `TILE_COLUMNS`.
    best, second, index : cupy.ndarray of float32, float32, int32, shape (n_rows,)
        Written to.
    """
    n_rows, width = rows.shape
    launch(
        "nearest_two_hopper", rows, _CLUSTER * -(-n_rows // (_TILE_ROWS * _CLUSTER)), _THREADS,
        tensor_map.tensor_map(rows, (_TILE_ROWS, _DEPTH)), tensor_map.tensor_map(centroids, (_BOX_COLUMNS, _DEPTH)),
        bias, alpha, np.int64(n_rows), np.int32(len(centroids)), np.int32(width), unit, best, second, index,
        shared_bytes=SHARED_BYTES,
    )  # fmt: skip
