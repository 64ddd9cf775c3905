"""Exact sums, against Python's fractions."""

from fractions import Fraction

import numpy as np
import pytest

from hkm_dask.errors import InputError
from hkm_dask.search.fixed_point import FixedPointSum, RowUnits
from hkm_dask.search.worker import worker_engine

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


def test_values_up_to_a_limit_are_summed_by_themselves() -> None:
    total, near = FixedPointSum(2.0**45, 145, 1 << 25, 2.0**30), FixedPointSum(2.0**45, 145, 1 << 25)
    total.add(VALUES, WEIGHTS)
    near.add(VALUES[VALUES <= 2.0**30], WEIGHTS[VALUES <= 2.0**30])
    assert total.near() == near.total() < total.total()
    assert near.near() is None


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


# -- rows -------------------------------------------------------------------------------------------------------------


def some_rows(n: int, d: int, *, largest: float) -> np.ndarray:
    rows = RNG.normal(size=(n, d)).astype(np.float32)
    rows[::50] *= np.float32(largest / 8)
    return rows


@pytest.mark.parametrize("largest", [8.0, 2.0**40, 2.0**60])
def test_split_sums_of_rows_are_exact(largest: float) -> None:
    n, d, n_bits = 700, 5, 48
    scale = 2.0**n_bits / largest
    units, rows, finest = RowUnits(scale, n_bits, is_split=True), some_rows(n, d, largest=largest), scale * 2.0**n_bits
    labels, weights = RNG.integers(-1, 4, n).astype(np.int32), RNG.integers(1, 9, n)
    sums, counts = np.zeros((4, units.n_columns(d)), np.int64), np.zeros(4, np.int64)
    units.add_rows(worker_engine(), rows, labels, weights, sums, counts)
    for j in range(4):
        own = np.flatnonzero(labels == j)
        assert counts[j] == weights[own].sum()
        for f in range(d):
            true = sum(Fraction(float(rows[i, f])) * int(weights[i]) for i in own)
            actual = Fraction(int(sums[j, f])) / Fraction(scale) + Fraction(int(sums[j, d + f])) / Fraction(finest)
            assert abs(actual - true) <= Fraction(int(weights[own].sum()), 2) / Fraction(finest)
            assert units.values(sums)[j, f] == pytest.approx(float(true), rel=1e-12, abs=1e-9)


def test_split_sums_follow_moves_of_rows() -> None:
    units, rows = RowUnits(2.0**-10, 48, is_split=True), some_rows(20_000, 3, largest=2.0**58)
    before, after = (RNG.integers(0, 4, 20_000).astype(np.int32) for _ in range(2))
    unweighted, engine = np.empty(0, np.int64), worker_engine()
    sums, counts = np.zeros((2, 4, 6), np.int64), np.zeros((2, 4), np.int64)
    units.add_rows(engine, rows, before, unweighted, sums[0], counts[0])
    units.move_rows(engine, rows, before, after, unweighted, sums[0], counts[0])
    units.add_rows(engine, rows, after, unweighted, sums[1], counts[1])
    np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(units.whole(rows[after == 2]).sum(axis=0), sums[1, 2])
