"""The package's one definition of squared distance: computed directly in float64, as eight interleaved sums.

As their order is fixed, labels and stored distances are functions of the row and the centroid alone.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from hkm_dask.compute.jit import kernel


@njit(inline="always")
def squared_distance(x: np.ndarray, c: np.ndarray) -> float:
    """Squared L2 distance of two float32 vectors, computed directly in float64."""
    n = x.shape[0]
    whole = n - n % 8
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
    for i in range(0, whole, 8):
        t = np.float64(x[i]) - np.float64(c[i])
        a0 += t * t
        t = np.float64(x[i + 1]) - np.float64(c[i + 1])
        a1 += t * t
        t = np.float64(x[i + 2]) - np.float64(c[i + 2])
        a2 += t * t
        t = np.float64(x[i + 3]) - np.float64(c[i + 3])
        a3 += t * t
        t = np.float64(x[i + 4]) - np.float64(c[i + 4])
        a4 += t * t
        t = np.float64(x[i + 5]) - np.float64(c[i + 5])
        a5 += t * t
        t = np.float64(x[i + 6]) - np.float64(c[i + 6])
        a6 += t * t
        t = np.float64(x[i + 7]) - np.float64(c[i + 7])
        a7 += t * t
    for i in range(whole, n):
        t = np.float64(x[i]) - np.float64(c[i])
        a0 += t * t
    return ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7))


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
