"""Exact fixed-point sums: of float64 values, as integers of any length in int64 pieces (limbs), and of rows.

Integer addition is associative, so a sum does not depend on the order, the tiles or the device. A single int64 could
not resolve small values beside very large ones; limbs represent all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module, to_host
from hkm_dask.compute.jit import kernel
from hkm_dask.errors import InputError

_NO_WEIGHTS = np.empty(0, np.int64)


@kernel("void(f8[::1], i8[::1], f8, f8, f8, i8[:,::1])")
def add_limbs(values, weights, scale, base, limit, sums):  # type: ignore[no-untyped-def]
    """Add the limbs of values to their sums, the highest limb first; if `weights` is empty, all are 1."""
    for i in range(values.shape[0]):
        rest = values[i] * scale
        weight = weights[i] if weights.shape[0] > 0 else 1
        for limb in range(sums.shape[1]):
            whole = np.int64(rest)
            sums[0, limb] += whole * weight
            if values[i] <= limit:
                sums[1, limb] += whole * weight
            rest = (rest - np.float64(whole)) * base


class FixedPointSum:
    """Sum of ``trunc(value * scale) * weight``, for values >= 0 and below ``2**n_bits / scale``, as a Python integer.

    Values are split into limbs by powers of two, which is exact in float64, and each limb is summed in int64. Sums made
    on a device stay there until `total` is called. `scale` is a power of two; `total_weight` is the largest possible
    sum of the weights, or number of values; values up to `limit` are also summed separately, see `near`. Raises
    InputError if the weights leave no bits for the limbs.

    >>> total = FixedPointSum(scale=4.0, n_bits=100, total_weight=1000)
    >>> total.add(np.array([0.25, 2.0**90]))
    >>> total.add(np.array([0.5]), np.array([3]))
    >>> total.total() == 1 + 2**92 + 2 * 3
    True
    """

    def __init__(self, scale: float, n_bits: int, total_weight: int, limit: float = math.inf) -> None:
        self.limb_bits = 62 - (max(total_weight, 1) - 1).bit_length()
        if self.limb_bits < 1:
            raise InputError(f"total_weight={total_weight} should be <= 2**61; scale the weights down")
        n_limbs = max(1, -(-n_bits // self.limb_bits))
        #: Units of the highest limb per 1; a unit of each limb is 2**limb_bits units of the next lower one.
        self._scale = math.ldexp(scale, -self.limb_bits * (n_limbs - 1))
        self._base = 2.0**self.limb_bits
        self._limit = limit
        self._sums: Any = np.zeros((2, n_limbs), np.int64)

    def add(self, values: Any, weights: Any = None, add_limbs: Callable[..., None] = add_limbs) -> None:
        """Add float64 values times their int64 weights; if `weights` is empty, all are 1.

        For values on a device, `add_limbs` is that of its engine.
        """
        xp, weights = array_module(values), _NO_WEIGHTS if weights is None else weights
        self._sums = xp.asarray(self._sums)
        add_limbs(xp.ascontiguousarray(values), weights, self._scale, self._base, self._limit, self._sums)

    def limbs(self, values: Any) -> Any:
        """Split float64 values into limbs, int64 (n_limbs, n), the highest first, for uses such as cumulative sums."""
        xp = array_module(values)
        limbs = xp.empty((self._sums.shape[1], len(values)), xp.int64)
        rest = values * self._scale
        for limb in limbs[:-1]:
            whole = xp.trunc(rest)
            limb[...] = whole
            rest = (rest - whole) * self._base
        limbs[-1] = rest  # truncates what is below one unit
        return limbs

    def combine(self, sums: Any) -> int:
        """Return the integer represented by the sums of the limbs (n_limbs,)."""
        total = 0
        for limb in to_host(sums).tolist():
            total = (total << self.limb_bits) + limb
        return total

    def total(self) -> int:
        """Return the sum of all values so far; waits for a device that is still adding."""
        self._sums = to_host(self._sums)
        return self.combine(self._sums[0])

    def near(self) -> int | None:
        """Return the sum of the values up to `limit`; None if the limit is infinite."""
        self._sums = to_host(self._sums)
        return None if self._limit == math.inf else self.combine(self._sums[1])


#: Rows split at once into two columns per feature.
_SPLIT_ROWS = 1 << 14


@dataclass(frozen=True)
class RowUnits:
    """Conversion of rows to integers, whose int64 sums are exact and do not depend on the order.

    A value becomes a multiple of ``1 / scale``. If that is too coarse for most rows, because a few lie far from all
    others, the remainder is kept as well, in units ``2**n_bits`` times as fine (`is_split`). Sums then have two columns
    per feature, all coarse ones first.

    >>> units = RowUnits(scale=0.25, n_bits=10, is_split=True)
    >>> units.whole(np.float32([[9.5, 1024.0]]))
    array([[ 2, 256, 384,   0]])
    >>> units.values(units.whole(np.float32([[9.5, 1024.0]])))
    array([[   9.5, 1024. ]])
    """

    scale: float
    n_bits: int
    is_split: bool = False

    def n_columns(self, n_features: int) -> int:
        """Return the number of columns of a sum of rows."""
        return 2 * n_features if self.is_split else n_features

    def add_rows(self, engine: Any, rows: Any, labels: Any, weights: Any, sums: Any, counts: Any) -> None:
        """Add rows to the sums of their clusters, with an engine; see `cpu.kernels.add_rows`."""
        if not self.is_split:
            engine.add_rows(rows, labels, weights, self.scale, sums, counts)
        elif array_module(rows) is not np:
            engine.add_rows(rows, labels, weights, self.scale, sums, counts, 2.0**self.n_bits)
        else:
            for some in _slices(len(rows)):
                engine.add_rows(self._split(rows[some]), labels[some], weights[some], 1.0, sums, counts)

    def move_rows(self, engine: Any, rows: Any, before: Any, after: Any, weights: Any, sums: Any, counts: Any) -> None:
        """Update sums for the rows whose label changed; see `cpu.kernels.move_rows`."""
        if not self.is_split:
            engine.move_rows(rows, before, after, weights, self.scale, sums, counts)
        elif array_module(rows) is not np:
            engine.move_rows(rows, before, after, weights, self.scale, sums, counts, 2.0**self.n_bits)
        else:
            for some in _slices(len(rows)):
                pieces = self._split(rows[some])
                engine.move_rows(pieces, before[some], after[some], weights[some], 1.0, sums, counts)

    def whole(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """Convert rows to integers, shape (n_rows, n_columns)."""
        units = self._split(rows) if self.is_split else rows.astype(np.float64) * self.scale
        return np.rint(units).astype(np.int64)

    def values(self, sums: NDArray[np.int64]) -> NDArray[np.float64]:
        """Convert sums (n_clusters, n_columns) to float64, shape (n_clusters, n_features)."""
        if not self.is_split:
            return sums / self.scale
        coarse, fine = np.split(sums, 2, axis=1)
        return (coarse + fine * 2.0**-self.n_bits) / self.scale

    def _split(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Split float32 rows into coarse and fine units, as float32: each has a subset of the bits, so it is exact."""
        units = rows.astype(np.float64) * self.scale
        coarse = np.rint(units)
        return np.concatenate([coarse, (units - coarse) * 2.0**self.n_bits], axis=1).astype(np.float32)


def _slices(n: int) -> list[slice]:
    return [slice(low, low + _SPLIT_ROWS) for low in range(0, n, _SPLIT_ROWS)]
