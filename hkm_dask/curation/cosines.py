"""The definition of cosine similarity in this package: of rows as stored, in float64, as eight sums in fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hkm_dask.compute.jit import kernel


@njit(inline="always")
def inner(x: Any, y: Any) -> Any:
    """Compute the inner product of two float32 vectors in float64."""
    n = x.shape[0]
    whole = n - n % 8
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
    for i in range(0, whole, 8):
        a0 += np.float64(x[i]) * np.float64(y[i])
        a1 += np.float64(x[i + 1]) * np.float64(y[i + 1])
        a2 += np.float64(x[i + 2]) * np.float64(y[i + 2])
        a3 += np.float64(x[i + 3]) * np.float64(y[i + 3])
        a4 += np.float64(x[i + 4]) * np.float64(y[i + 4])
        a5 += np.float64(x[i + 5]) * np.float64(y[i + 5])
        a6 += np.float64(x[i + 6]) * np.float64(y[i + 6])
        a7 += np.float64(x[i + 7]) * np.float64(y[i + 7])
    for i in range(whole, n):
        a0 += np.float64(x[i]) * np.float64(y[i])
    return ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7))


@njit(inline="always")
def cosine_of(x: Any, y: Any, x_norm: Any, y_norm: Any) -> Any:
    """Compute the cosine of two float32 vectors, given their squared norms (> 0); 1 for copies, and never above 1."""
    return min(1.0, inner(x, y) / np.sqrt(x_norm * y_norm))


@kernel("void(f4[:,::1], f8[::1])")
def squared_norms(rows, norms):  # type: ignore[no-untyped-def]
    """Write the squared norm of every row to `norms`."""
    for i in range(rows.shape[0]):
        norms[i] = inner(rows[i], rows[i])


@kernel("void(f4[:,::1], f4[:,::1], i8[::1], i8[::1], f8[::1])")
def measure_cosines(left, right, i, j, cosines):  # type: ignore[no-untyped-def]
    """Write the cosine of each pair (row `i` of `left`, row `j` of `right`) to `cosines`; the rows are not zero."""
    for p in range(i.shape[0]):
        x, y = left[i[p]], right[j[p]]
        cosines[p] = cosine_of(x, y, inner(x, x), inner(y, y))
