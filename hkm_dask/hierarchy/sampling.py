"""Balanced subsets of exact size: targets from the top of the tree downward, then a draw in every level-1 cluster.

At a node that is to give N leaves, child j with s_j leaves gives min(n, s_j), where n is the largest integer with
Σ min(n, s_j) ≤ N; the rest, less than one each, goes to random children that have more. (The paper's integer n that
minimizes |N - Σ min(n, s_j)| misses the target: arXiv:2405.15613 §3.3.) All nodes of a level are solved at once, by a
sort within segments and prefix sums.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import random_bits, stream_key
from hkm_dask.compute.memory import DRAWN_ROWS
from hkm_dask.errors import InputError, is_whole
from hkm_dask.events import emit
from hkm_dask.hierarchy import selection
from hkm_dask.hierarchy.members import group_by_label
from hkm_dask.hierarchy.tree import open_hierarchy
from hkm_dask.hierarchy.tree_arrays import TreeArrays

STRATEGIES = ("hierarchical", "flat")
WITHIN = ("random", "closest", "furthest")


def fill_targets(
    capacities: NDArray[np.int64], indptr: NDArray[np.int64], totals: NDArray[np.int64], *, key: int
) -> NDArray[np.int64]:
    """Share out each node's total among its children as evenly as their capacities allow.

    Children of node i are ``indptr[i]:indptr[i + 1]``; no node's total is more than its children hold. `key`, from
    `stream_key`, decides who gives one of what is left over.

    Examples
    --------
    >>> fill_targets(np.array([1, 5, 9]), np.array([0, 3]), np.array([9]), key=0)
    array([1, 4, 4])
    """
    n_children = np.diff(indptr)
    node = np.repeat(np.arange(len(totals)), n_children)
    order = np.lexsort((capacities, node))
    sorted_capacities = capacities[order]
    prefix = np.concatenate([[0], np.cumsum(sorted_capacities)])
    below = prefix[:-1] - prefix[indptr[:-1]][node]
    # Were every child from position i on to give as much as child i, would that be too much?
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


def _give_one(
    able: NDArray[np.bool_], indptr: NDArray[np.int64], node: NDArray[np.int64], left: NDArray[np.int64], key: int
) -> NDArray[np.int64]:
    """One to each of `left` random able children per node."""
    keys = random_bits(key, np.arange(len(able)))
    order = np.lexsort((keys, ~able, node))
    rank = np.empty(len(able), np.int64)
    rank[order] = np.arange(len(able)) - indptr[:-1][node[order]]
    return (able & (rank < left[node])).astype(np.int64)


def sample(
    tree: xr.DataTree | str | os.PathLike[str],
    size: int,
    *,
    strategy: str = "hierarchical",
    within: str = "random",
    multiplier: int = 1,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Draw a balanced subset of exactly `size` samples.

    Parameters
    ----------
    tree : DataTree or path
        From `open_hierarchy` or `build_hierarchy`.
    size : int
        Samples wanted.
    strategy : {"hierarchical", "flat"}
        Balance at every level from the top, or the same number from every top-level cluster and at random within it.
    within : {"random", "closest", "furthest"}
        Which members of a level-1 cluster: at random, or closest to or furthest from its centroid. With
        ``strategy="flat"`` the same among all leaves of a top-level cluster.
    multiplier : int
        How often a sample may be taken; a second time only after every sample of its cluster was taken once.
    seed : int

    Returns
    -------
    ndarray of int64, shape (size,)
        Row numbers of the pool, sorted; without repeats if `multiplier` is 1.

    Raises
    ------
    InputError
        `size` is no number the pool can give, with the number available; or a choice is unknown.

    References
    ----------
    arXiv:2405.15613 §3.3

    Examples
    --------
    >>> import tempfile, hkm_dask as hkm
    >>> x = np.random.default_rng(0).normal(size=(200, 2)).astype("float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = hkm.Config(levels=[hkm.Level(n_clusters=20), hkm.Level(n_clusters=5)])
    ...     tree = hkm.build_hierarchy(x, f"{folder}/tree.zarr", config)
    ...     rows = hkm.sample(tree, 50)
    >>> rows.dtype, len(rows), len(set(rows.tolist()))
    (dtype('int64'), 50, 50)
    """
    arrays = TreeArrays(open_hierarchy(tree) if isinstance(tree, str | os.PathLike) else tree)
    indptr, members, leaf_sizes = (
        [arrays.read(t, name) for t in range(1, arrays.n_levels + 1)] for name in ("indptr", "members", "leaf_sizes")
    )
    _check(int(leaf_sizes[0].sum()), size, strategy, within, multiplier, seed)
    emit("progress", stage="sample", done=0, total=size)
    if strategy == "flat":
        # Samples by top-level cluster, in order of the distance to their level-1 centroid.
        top = arrays.ancestors(arrays.read(1, "labels"))[-1]
        groups = group_by_label(top, arrays.read(1, "distances"), len(leaf_sizes[-1]))
        targets = _top_targets(leaf_sizes[-1], size, multiplier, seed)
    else:
        groups = indptr[0], members[0]
        targets = hierarchical_targets(indptr, members, leaf_sizes, size, multiplier, seed)
    rows = draw_members(*groups, targets, within=within, key=stream_key(seed, "within"))
    emit("progress", stage="sample", done=size, total=size)
    return rows


def _check(n_samples: int, size: int, strategy: str, within: str, multiplier: int, seed: int) -> None:
    problems = [
        f"{name}={value!r} should be a whole number >= {least}; give another {name}"
        for name, value, least in [("multiplier", multiplier, 1), ("seed", seed, 0)]
        if not is_whole(value) or value < least
    ]
    for name, choice, known in [("strategy", strategy, STRATEGIES), ("within", within, WITHIN)]:
        if choice not in known:
            problems.append(f"{name}={choice!r} should be one of {', '.join(known)}; choose one of them")
    available = n_samples * (1 if problems else multiplier)
    if not is_whole(size) or not 1 <= size <= available:
        remedy = "lower it, or raise multiplier" if is_whole(size) and size > available else "give another size"
        problems.append(f"size={size!r} should be a whole number from 1 to the {available} available; {remedy}")
    if problems:
        raise InputError(problems)


def _top_targets(leaf_sizes: NDArray[np.int64], size: int, multiplier: int, seed: int) -> NDArray[np.int64]:
    whole = np.array([0, len(leaf_sizes)])
    return fill_targets(leaf_sizes * multiplier, whole, np.array([size]), key=stream_key(seed, "target", "top"))


def hierarchical_targets(
    indptr: Sequence[NDArray[np.int64]],
    members: Sequence[NDArray[np.int64]],
    leaf_sizes: Sequence[NDArray[np.int64]],
    size: int,
    multiplier: int = 1,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Samples to take from every level-1 cluster, from the top of the tree downward; they sum to `size`.

    `indptr` and `members` are the children of the clusters of each level, level 1 first, `leaf_sizes` the samples
    below.

    Examples
    --------
    A big and a small top cluster; the big one's children hold 90 and 10 samples.

    >>> indptr = [np.array([0, 90, 100, 105]), np.array([0, 2, 3])]
    >>> members = [np.arange(105), np.array([0, 1, 2])]
    >>> hierarchical_targets(indptr, members, [np.array([90, 10, 5]), np.array([100, 5])], 25)
    array([10, 10,  5])
    """
    targets = _top_targets(leaf_sizes[-1], size, multiplier, seed)
    for t in range(len(indptr) - 1, 0, -1):
        children = members[t]
        shared = fill_targets(
            leaf_sizes[t - 1][children] * multiplier, indptr[t], targets, key=stream_key(seed, "target", t)
        )
        targets = np.zeros(len(leaf_sizes[t - 1]), np.int64)
        targets[children] = shared
    return targets


def draw_members(
    indptr: NDArray[np.int64],
    members: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    within: str = "random",
    key: int = 0,
) -> NDArray[np.int64]:
    """Take `targets` of the members of every cluster, which are in order of distance; gives sorted row numbers.

    More than the members a cluster has means repeats. `key` is from `stream_key`.

    Examples
    --------
    >>> draw_members(np.array([0, 3, 5]), np.array([4, 0, 2, 1, 3]), np.array([2, 3]), within="closest")
    array([0, 1, 1, 3, 4])
    """
    sizes = np.diff(indptr)
    whole, part = np.divmod(targets, np.maximum(sizes, 1))
    out = np.empty(int(part.sum()), np.int64)
    if within == "random":
        keys = np.empty(len(members), np.uint64)
        for low in range(0, len(members), DRAWN_ROWS):
            keys[low : low + DRAWN_ROWS] = random_bits(key, members[low : low + DRAWN_ROWS])
    else:
        keys = np.arange(len(members), dtype=np.uint64)
        keys = keys if within == "closest" else keys[::-1]
    selection.take_smallest_keys(
        np.ascontiguousarray(indptr), part, np.ascontiguousarray(members), np.ascontiguousarray(keys), out
    )
    repeated = np.repeat(members, np.repeat(whole, sizes)) if whole.any() else np.empty(0, np.int64)
    return np.sort(np.concatenate([repeated, out]))
