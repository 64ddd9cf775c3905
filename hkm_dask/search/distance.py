"""The package's one definition of squared distance: computed directly in float64, as eight interleaved sums.

As their order is fixed, labels and stored distances are functions of the row and the centroid alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hkm_dask.compute.jit import kernel
from hkm_dask.search.simd import sum_of_squares


@njit(inline="always")
def squared_distance(x: Any, c: Any) -> Any:
    """Squared L2 distance of two float32 vectors, computed directly in float64."""
    return sum_of_squares(x, c)


@kernel("void(f4[:,::1], f8[::1])")
def nearest_others(rows, squared):  # type: ignore[no-untyped-def]
    """Write the squared distance of each row to its nearest row that is not a copy of it; infinity if there is none."""
    for i in range(rows.shape[0]):
        squared[i] = np.inf
    for i in range(rows.shape[0]):
        for j in range(i):
            distance = squared_distance(rows[i], rows[j])
            if distance > 0.0:
                squared[i] = min(squared[i], distance)
                squared[j] = min(squared[j], distance)
