"""The package's one definition of cosine: of rows as stored, in float64, as eight sums in fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hkm_dask.compute.jit import kernel


@njit(inline="always")
def inner(x: Any, y: Any) -> Any:
    """Return the inner product of two float32 vectors in float64."""
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
    """Return the cosine of float32 vectors with these positive squared norms; exactly 1 for copies, never more."""
    return min(1.0, inner(x, y) / np.sqrt(x_norm * y_norm))


@kernel("void(f4[:,::1], f8[::1])")
def squared_norms(rows, norms):  # type: ignore[no-untyped-def]
    """Write the squared norm of every row."""
    for i in range(rows.shape[0]):
        norms[i] = inner(rows[i], rows[i])


@kernel("void(f4[:,::1], f4[:,::1], i8[::1], i8[::1], f8[::1])")
def measure_cosines(left, right, i, j, cosines):  # type: ignore[no-untyped-def]
    """Write the cosine of every pair of a row of `left` and a row of `right`, none of which is zero."""
    for p in range(i.shape[0]):
        x, y = left[i[p]], right[j[p]]
        cosines[p] = cosine_of(x, y, inner(x, x), inner(y, y))
