"""Shares by weight, against the rule in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.hierarchy.sampling.shares import fill_targets, share_out

LARGE = 2**30 - 1


def real_shares(capacities: list[int], weights: list[int], total: int) -> list[Fraction]:
    """min(n w, s) at the n where they add up to the total: children are filled up one by one, as n grows."""
    full: set[int] = set()
    while True:
        others = [j for j in range(len(capacities)) if j not in full]
        left = total - sum(capacities[j] for j in full)
        if not others:
            return [Fraction(s) for s in capacities]
        n = Fraction(left, sum(weights[j] for j in others))
        if more := {j for j in others if capacities[j] <= n * weights[j]}:
            full |= more
        else:
            return [min(n * w, Fraction(s)) for w, s in zip(weights, capacities, strict=True)]


children = st.tuples(st.integers(0, 12) | st.integers(0, 2**40), st.integers(1, 9) | st.integers(1, LARGE))


@st.composite
def families(draw: st.DrawFn) -> tuple[list[list[tuple[int, int]]], list[int]]:
    nodes = draw(st.lists(st.lists(children, max_size=6), min_size=1, max_size=5))
    return nodes, [draw(st.integers(0, sum(s for s, _ in node))) for node in nodes]


@given(families(), st.integers(0, 2**64 - 1))
def test_shares_are_those_of_the_rule_in_fractions(
    family: tuple[list[list[tuple[int, int]]], list[int]], key: int
) -> None:
    nodes, totals = family
    flat = [child for node in nodes for child in node]
    capacities, weights = (np.array([child[i] for child in flat], np.int64) for i in (0, 1))
    indptr = np.cumsum([0, *map(len, nodes)])
    shares = share_out(capacities, indptr, np.array(totals), key=key, weights=weights)
    for i, (node, total) in enumerate(zip(nodes, totals, strict=True)):
        given_ = shares[indptr[i] : indptr[i + 1]].tolist()
        wanted = real_shares([s for s, _ in node], [w for _, w in node], total)
        assert sum(given_) == total
        assert all(abs(g - w) < 1 for g, w in zip(given_, wanted, strict=True))
        assert all(g <= s for g, (s, _) in zip(given_, node, strict=True))


@pytest.mark.parametrize(
    ("capacities", "weights", "total", "expected"),
    [
        ([100, 100], [1, 2], 30, [10, 20]),
        ([100, 100, 100], [10, 1, 1], 12, [10, 1, 1]),
        ([5, 100, 100], [10, 1, 1], 25, [5, 10, 10]),  # the first gives all, the others make up for it
        ([0, 7], [3, 1], 7, [0, 7]),
        ([2**40, 2**40], [1, 3], 2**39, [2**37, 3 * 2**37]),
    ],
)
def test_shares_worked_out_by_hand(capacities: list[int], weights: list[int], total: int, expected: list[int]) -> None:
    bounds = np.array([0, len(capacities)])
    shares = share_out(np.array(capacities), bounds, np.array([total]), key=0, weights=np.array(weights))
    assert shares.tolist() == expected


def test_the_mean_of_a_share_is_the_share_even_where_there_is_one_to_give() -> None:
    n, weights = 4000, np.array([1, 9, 4, 6])
    totals, bounds = np.ones(n, np.int64), np.arange(0, 4 * n + 1, 4)
    shares = share_out(np.full(4 * n, 9), bounds, totals, key=stream_key(0), weights=np.tile(weights, n))
    observed, expected = shares.reshape(n, 4).sum(axis=0), n * weights / weights.sum()
    # Chi-square with 3 degrees of freedom passes 16.3 once in 1000.
    assert ((observed - expected) ** 2 / expected).sum() < 16.3


def test_equal_weights_are_no_weights() -> None:
    capacities, bounds, totals = np.array([1, 9, 9, 9, 5]), np.array([0, 4, 5]), np.array([9, 5])
    plain = fill_targets(capacities, bounds, totals, key=5)
    assert share_out(capacities, bounds, totals, key=5, weights=np.full(5, 700)).tolist() == plain.tolist()
    assert share_out(capacities, bounds, totals, key=5).tolist() == plain.tolist()
