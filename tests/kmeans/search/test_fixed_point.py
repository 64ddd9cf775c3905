"""Exact sums, against Python's fractions."""

from fractions import Fraction

import numpy as np
import pytest

from hkm_dask.errors import InputError
from hkm_dask.kmeans.search.fixed_point import FixedPointSum

RNG = np.random.default_rng(5)
#: From far rows' squared distances down to what float32 tells apart, and zeros.
VALUES = np.concatenate([RNG.chisquare(16, 900), 2.0 ** RNG.uniform(-60, 90, 200), np.zeros(3), [2.0**-80, 2.0**99.5]])
WEIGHTS = RNG.integers(1, 1 << 14, len(VALUES))


def exact(values: np.ndarray, weights: np.ndarray, scale: float) -> int:
    return sum(int(Fraction(v) * Fraction(scale)) * w for v, w in zip(values.tolist(), weights.tolist(), strict=True))


@pytest.mark.parametrize("log_scale", [-3, 20, 45, 90])
@pytest.mark.parametrize("total_weight", [1 << 25, 1 << 33, 1 << 56])
def test_sums_are_exact_in_any_order_and_chunking(log_scale: int, total_weight: int) -> None:
    scale = 2.0**log_scale
    for weights in (WEIGHTS, np.ones_like(WEIGHTS)):
        expected = exact(VALUES, weights, scale)
        for n_chunks in (1, 3, 50):
            total = FixedPointSum(scale, 100 + log_scale, total_weight)
            for chunk in np.array_split(RNG.permutation(len(VALUES)), n_chunks):
                total.add(VALUES[chunk], weights[chunk] if weights is WEIGHTS else weights[:0])
            assert total.total() == expected


def test_limbs_sum_to_the_total() -> None:
    total = FixedPointSum(2.0**45, 145, 1 << 25)
    total.add(VALUES, WEIGHTS)
    assert total.combine((total.limbs(VALUES) * WEIGHTS).sum(axis=1)) == total.total()
    assert (total.limbs(VALUES) < 2**total.limb_bits).all()
    assert (total.limbs(VALUES) >= 0).all()


def test_few_bits_take_one_limb() -> None:
    assert len(FixedPointSum(2.0**30, 40, 1 << 20).limbs(VALUES[:5])) == 1
    assert len(FixedPointSum(2.0**30, 43, 1 << 20).limbs(VALUES[:5])) == 2


def test_the_largest_weight_of_the_largest_value_does_not_overflow() -> None:
    total = FixedPointSum(1.0, 90, 1 << 30)
    total.add(np.array([2.0**90 - 2.0**38]), np.array([1 << 30]))
    assert total.total() == (2**90 - 2**38) << 30


def test_weights_beyond_int64_are_refused() -> None:
    with pytest.raises(InputError, match=r"total_weight=.* should be <="):
        FixedPointSum(1.0, 90, (1 << 61) + 1)
