"""Division of a node's total among its children, as evenly as their capacities allow, or by weights.

Child j with capacity s_j and weight w_j gets min(n·w_j, s_j), where n is the real number for which these sum to the
total N of the node. With equal weights, n is rounded down, and the remainder, less than one each, goes to random
children with capacity left. With weights, each share n·w_j is rounded down or up at random such that its mean is the
share and the sum is N, by systematic sampling: the children, in random order, are intervals of a line with the lengths
of their shares, and N equally spaced points with a random offset are put on it; each child gets the number of points in
its interval. All nodes of a level are solved at once, in int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import random_bits, stream_key
from hkm_dask.hierarchy.sorting.members import starts

Ints = NDArray[np.int64]


def share_out(capacities: Ints, indptr: Ints, totals: Ints, *, key: int, weights: Ints | None = None) -> Ints:
    """Divide each node's total among its children, optionally by integer weights >= 1.

    Weights below 2**30 are exact, however large capacities and totals are.

    >>> share_out(np.array([50, 50, 3]), np.array([0, 3]), np.array([33]), key=0, weights=np.array([1, 2, 2]))
    array([10, 20,  3])
    """
    if weights is None or (weights == weights[:1]).all():
        return fill_targets(capacities, indptr, totals, key=key)
    return _fill_by_weight(capacities, weights // np.gcd.reduce(weights), indptr, totals, key)


def hierarchical_targets(
    indptr: Sequence[Ints],
    members: Sequence[Any],
    leaf_sizes: Sequence[Ints],
    size: int,
    multiplier: int = 1,
    seed: int = 0,
    weights: Sequence[Ints | None] | None = None,
) -> Ints:
    """Return the samples to draw from every level-1 cluster, computed from the top of the tree down; sum to `size`.

    `indptr` and `members` are the children of the clusters of each level, level 1 first (whose members are not used),
    `leaf_sizes` the samples below them, and `weights` those of the clusters of each level, as in `share_out`.

    For example, a large and a small top cluster, where the children of the large one hold 90 and 10 samples:

    >>> indptr = [np.array([0, 90, 100, 105]), np.array([0, 2, 3])]
    >>> members = [np.arange(105), np.array([0, 1, 2])]
    >>> hierarchical_targets(indptr, members, [np.array([90, 10, 5]), np.array([100, 5])], 25)
    array([10, 10,  5])
    """
    levels = weights or [None] * len(indptr)
    whole, total = np.array([0, len(leaf_sizes[-1])]), np.array([size])
    key = stream_key(seed, "target", "top")
    targets = share_out(leaf_sizes[-1] * multiplier, whole, total, key=key, weights=levels[-1])
    for t in range(len(indptr) - 1, 0, -1):
        children, of_level = members[t], levels[t - 1]
        shared = share_out(
            leaf_sizes[t - 1][children] * multiplier, indptr[t], targets, key=stream_key(seed, "target", t),
            weights=None if of_level is None else of_level[children],
        )  # fmt: skip
        targets = np.zeros(len(leaf_sizes[t - 1]), np.int64)
        targets[children] = shared
    return targets


def fill_targets(capacities: Ints, indptr: Ints, totals: Ints, *, key: int) -> Ints:
    """Divide each node's total among its children as evenly as their capacities allow.

    Children of node i are ``indptr[i]:indptr[i + 1]``; no total exceeds the capacity of its children. `key`, from
    `stream_key`, decides which children get one of the remainder.

    >>> fill_targets(np.array([1, 5, 9]), np.array([0, 3]), np.array([9]), key=0)
    array([1, 4, 4])
    """
    n_children = np.diff(indptr)
    node = np.repeat(np.arange(len(totals)), n_children)
    order = np.lexsort((capacities, node))
    sorted_capacities = capacities[order]
    prefix = np.concatenate([[0], np.cumsum(sorted_capacities)])
    below = prefix[:-1] - prefix[indptr[:-1]][node]
    # If every child from position i on got as much as child i, would that exceed the total?
    position = np.arange(len(capacities)) - indptr[:-1][node]
    followers = n_children[node] - position
    too_much = below + followers * sorted_capacities > totals[node]
    first = np.full(len(totals), -1, np.int64)
    hits = np.flatnonzero(too_much)[::-1]
    first[node[hits]] = hits
    level = np.full(len(totals), np.iinfo(np.int64).max)
    short = first >= 0
    level[short] = (totals[short] - below[first[short]]) // followers[first[short]]
    targets = np.minimum(capacities, level[node])
    left = totals - np.diff(np.concatenate([[0], np.cumsum(targets)])[indptr])
    return targets + _give_one(capacities > targets, indptr, node, left, key)


def _give_one(able: NDArray[np.bool_], indptr: Ints, node: Ints, left: Ints, key: int) -> Ints:
    """Give one each to `left` random children per node among those that are able to take it."""
    keys = random_bits(key, np.arange(len(able)))
    order = np.lexsort((keys, ~able, node))
    rank = np.empty(len(able), np.int64)
    rank[order] = np.arange(len(able)) - indptr[:-1][node[order]]
    return (able & (rank < left[node])).astype(np.int64)


def _fill_by_weight(capacities: Ints, weights: Ints, indptr: Ints, totals: Ints, key: int) -> Ints:
    node = np.repeat(np.arange(len(totals)), np.diff(indptr))
    order = np.lexsort((*_digits(capacities, weights), node))
    capacity, weight = capacities[order], weights[order]
    # If child i and those after it, which fill up later, share what the children before it leave, is child i full?
    left = totals[node] - (starts(capacity)[:-1] - starts(capacity)[indptr[:-1]][node])
    behind = starts(weight)[indptr[1:]][node] - starts(weight)[:-1]
    share, _ = _multiply_divide(weight, np.maximum(left, 0), behind)
    hits = np.flatnonzero((left < 0) | (capacity > share))[::-1]
    first = indptr[1:].copy()  # the first child of each node that is not filled
    first[node[hits]] = hits
    open_ = np.arange(len(order)) >= first[node]
    shared = capacity
    if open_.any():
        of_node, open_children = node[open_], order[open_]
        some = first < indptr[1:]
        amounts, lengths = (np.zeros(len(totals), np.int64) for _ in range(2))
        amounts[some], lengths[some] = left[first[some]], behind[first[some]]
        shared = capacity.copy()
        shared[open_] = _round_at_random(weight[open_], of_node, amounts, lengths, open_children, key)
    targets = np.empty_like(shared)
    targets[order] = shared
    return targets


def _round_at_random(weights: Ints, node: Ints, amounts: Ints, lengths: Ints, numbers: Ints, key: int) -> Ints:
    """Round ``amount * weight / length`` to neighboring integers that sum to each node's amount (systematic sampling).

    `lengths` are the sums of the weights of each node, and `numbers` identify its children.
    """
    order = np.lexsort((random_bits(key, numbers), node))
    node, ends = node[order], starts(weights[order])[1:]
    ends = ends - (ends - weights[order])[np.searchsorted(node, node)]
    whole, rest = _multiply_divide(ends, amounts[node], lengths[node])
    points = random_bits(stream_key(key, "point"), np.arange(len(lengths))) % np.maximum(lengths, 1).astype(np.uint64)
    whole += rest + points.astype(np.int64)[node] >= lengths[node]
    given = np.diff(whole, prepend=0)
    begins = np.flatnonzero(np.diff(node, prepend=-1))
    given[begins] = whole[begins]
    out = np.empty_like(given)
    out[order] = given
    return out


def _digits(numerators: Ints, denominators: Ints) -> tuple[Ints, Ints, Ints]:
    """Return keys that sort fractions, most significant last: 64 bits separate denominators below 2**30."""
    whole, rest = np.divmod(numerators, denominators)
    high, rest = np.divmod(rest << 32, denominators)
    return (rest << 32) // denominators, high, whole


def _multiply_divide(a: Ints, b: Ints, divisor: Ints) -> tuple[Ints, Ints]:
    """Return quotient and remainder of ``a * b`` by `divisor`, for 0 <= a <= divisor < 2**54 and b >= 0, exactly.

    >>> _multiply_divide(np.array([2**53]), np.array([2**62]), np.array([2**53 + 1]))
    (array([4611686018427387392]), array([512]))
    """
    quotient, rest = np.zeros_like(a), np.zeros_like(a)
    n_digits = -(-int(b.max(initial=0)).bit_length() // 8)
    for shift in range(8 * n_digits - 8, -1, -8):  # long division, eight bits at a time
        more, rest = np.divmod((rest << 8) + a * ((b >> shift) & 255), divisor)
        quotient = (quotient << 8) + more
    return quotient, rest
