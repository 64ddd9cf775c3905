"""Exact sums of float64 values in fixed point: integers of any length, kept in pieces (limbs) of int64.

Integer addition is associative, so a sum does not depend on the order, on the tiles or on the device. One int64 would
have to choose between values far apart; limbs hold all of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hkm_dask.compute.backend import array_module, to_host
from hkm_dask.compute.jit import kernel
from hkm_dask.errors import InputError


class FixedPointSum:
    """Sum of ``trunc(value * scale) * weight`` over values from 0 to below ``2**n_bits / scale``, as a Python integer.

    Values are split into limbs by powers of two, which is exact in float64, and each limb is summed in int64. What is
    added on a device stays there until `total` asks for it.

    Parameters
    ----------
    scale : float
        Units per one: a power of two.
    n_bits : int
        Bits of the largest ``value * scale``.
    total_weight : int
        Largest sum of the weights, or number of the values.

    Raises
    ------
    InputError
        Weights leave no bits to the limbs.

    Examples
    --------
    >>> total = FixedPointSum(scale=4.0, n_bits=100, total_weight=1000)
    >>> total.add(np.array([0.25, 2.0**90]))
    >>> total.add(np.array([0.5]), np.array([3]))
    >>> total.total() == 1 + 2**92 + 2 * 3
    True
    """

    def __init__(self, scale: float, n_bits: int, total_weight: int) -> None:
        self.limb_bits = 62 - (max(total_weight, 1) - 1).bit_length()
        if self.limb_bits < 1:
            raise InputError(f"total_weight={total_weight} should be <= 2**61; scale the weights down")
        n_limbs = max(1, -(-n_bits // self.limb_bits))
        #: Units of the highest limb per one; each limb below has 2**limb_bits units per unit of the one above.
        self._scale = math.ldexp(scale, -self.limb_bits * (n_limbs - 1))
        self._base = 2.0**self.limb_bits
        self._sums: Any = np.zeros(n_limbs, np.int64)

    def add(self, values: Any, weights: Any = None) -> None:
        """Add float64 values, times their int64 weights; where those are empty, all are 1."""
        weighted = weights is not None and len(weights) > 0
        if array_module(values) is np:
            values = np.ascontiguousarray(values)
            _add_limbs(values, weights if weighted else _NO_WEIGHTS, self._scale, self._base, self._sums)
        else:
            limbs = self.limbs(values)
            if isinstance(self._sums, np.ndarray):
                self._sums = array_module(values).asarray(self._sums)
            self._sums += (limbs * weights if weighted else limbs).sum(axis=1)

    def limbs(self, values: Any) -> Any:
        """Split float64 values into int64 (n_limbs, n), the highest first, for sums such as running ones."""
        xp = array_module(values)
        limbs = xp.empty((len(self._sums), len(values)), xp.int64)
        rest = values * self._scale
        for limb in limbs[:-1]:
            whole = xp.trunc(rest)
            limb[...] = whole
            rest = (rest - whole) * self._base
        limbs[-1] = rest  # drops what is below a unit
        return limbs

    def combine(self, sums: Any) -> int:
        """The sum that sums of limbs (n_limbs,) stand for."""
        total = 0
        for limb in to_host(sums).tolist():
            total = (total << self.limb_bits) + limb
        return total

    def total(self) -> int:
        """Everything added so far; waits for the device that added it."""
        return self.combine(self._sums)


_NO_WEIGHTS = np.empty(0, np.int64)


@kernel("void(f8[::1], i8[::1], f8, f8, i8[::1])")
def _add_limbs(values, weights, scale, base, sums):  # type: ignore[no-untyped-def]
    """Add the limbs of values to their sums, the highest first; empty `weights` are all 1."""
    for i in range(values.shape[0]):
        rest = values[i] * scale
        weight = weights[i] if weights.shape[0] > 0 else 1
        for limb in range(sums.shape[0]):
            whole = np.int64(rest)
            sums[limb] += whole * weight
            rest = (rest - np.float64(whole)) * base
