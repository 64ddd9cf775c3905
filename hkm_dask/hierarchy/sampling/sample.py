"""Balanced subsets of exact size: targets are computed from the top of the tree down, then rows drawn per cluster.

For a node with target N, child j with s_j leaves gets min(n, s_j), where n is the largest integer with Σ min(n, s_j) ≤
N; the remainder, less than one each, goes to random children that have more leaves. (The paper chooses the integer n
that minimizes |N - Σ min(n, s_j)|, which misses the target: arXiv:2405.15613 §3.3.) Weights scale the amount of a
child, see `shares`. Excluded clusters and rows do not count: s_j is the number of eligible leaves.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import random_bits, stream_key
from hkm_dask.compute.memory import DRAWN_ROWS
from hkm_dask.errors import InputError, check_whole, is_whole
from hkm_dask.events import emit
from hkm_dask.hierarchy.sampling.columns import Cap, SortKeys, best_first, quota_codes, quota_sizes
from hkm_dask.hierarchy.sampling.eligible import Mask, leaf_sizes
from hkm_dask.hierarchy.sampling.flat import draw_flat
from hkm_dask.hierarchy.sampling.rules import ClusterName, Quotas, Rules, Weights, read_rules
from hkm_dask.hierarchy.sampling.shares import hierarchical_targets
from hkm_dask.hierarchy.sorting import selection
from hkm_dask.hierarchy.sorting.members import starts
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.pools import tell_of_another_pool
from hkm_dask.hierarchy.tree.tree import open_hierarchy

STRATEGIES = ("hierarchical", "flat")
WITHIN = ("random", "closest", "furthest", "best")
#: Members read and given keys at once.
_BLOCK_MEMBERS = 1 << 20


def sample(
    tree: xr.DataTree | str | os.PathLike[str],
    size: int,
    *,
    strategy: str = "hierarchical",
    within: str = "random",
    by: str | None = None,
    multiplier: int = 1,
    exclude: Iterable[ClusterName] = (),
    only: Iterable[ClusterName] = (),
    exclude_ids: Any = None,
    weights: Weights | None = None,
    max_per: Mapping[str, int] | None = None,
    quotas: Mapping[str, Quotas] | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Draw a balanced subset of exactly `size` samples.

    Parameters
    ----------
    tree : DataTree or path
        From `open_hierarchy` or `build_hierarchy`.
    size : int
        Number of samples to draw.
    strategy : {"hierarchical", "flat"}
        Balance at every level from the top, or draw the same number from every top-level cluster, at random within it.
    within : {"random", "closest", "furthest", "best"}
        Which members of a level-1 cluster to take: random ones, those closest to or furthest from its centroid, or
        those with the largest values of the column `by`. With ``strategy="flat"``, the choice is among all samples
        below a top-level cluster.
    by : str, optional
        A numeric column of the pool; with ``-`` before it, the smallest values are best. NaN comes last; ties go to the
        sample closest to the centroid.
    multiplier : int
        How often a sample may be drawn; repeats only once all samples of its cluster have been drawn.
    exclude, only : sequence of str or of (level, number)
        Clusters such as ``"2:19"``, cluster 19 of level 2: draw nothing below those in `exclude`, and only below those
        in `only`. `exclude` takes precedence.
    exclude_ids : path, list of Path, or array, optional
        Ids of samples not to be drawn (``pool.ids(rows)``), or row numbers if the pool has no ids; or files written by
        `hkm sample`, so that a second draw is disjoint from the first: ids in ``.txt``, a column ``id`` or ``row`` in
        ``.csv`` and ``.parquet``, row numbers in ``.npy``. A warning counts ids that the pool does not have.
    weights : mapping or path, optional
        Maps clusters to numbers from 0.000001 to 1000 (with up to six decimals) that scale their shares among their
        siblings: a child of weight w gets min(n·w, its samples). 0 is the same as `exclude`; other clusters have weight
        1. A path is that of a file, see `hkm_dask.hierarchy.sampling.steering.read_weights`. With ``strategy="flat"``,
        only top-level clusters can have weights.
    max_per : mapping of one column to int, optional
        For example ``{"domain": 100}``: at most that many rows with the same value of a column, or with
        ``{"level_1": 3}``, in the same cluster of a level; rows without a value count as having the same. If a draw has
        too many rows of a value, that many of them are kept, at random or the best by `by`, the other rows of the value
        become ineligible, and everything is drawn again, until no value exceeds the limit.
    quotas : mapping of one column to a mapping or path, optional
        For example ``{"source": {"web": 0.5, "books": 20_000}}``: rows for values of a column (or clusters, with
        ``level_2``), as a number of rows if it is an integer, otherwise as a share of `size`. Each value is drawn
        separately from the whole tree, in this order; the remaining rows are drawn from all other values. Shares are
        rounded by the largest-remainder method. A path is that of a CSV file with the header ``value,quota``.
    seed : int

    Returns
    -------
    ndarray of int64, shape (size,)
        Row numbers of the pool, sorted; without repeats if `multiplier` is 1.

    Raises
    ------
    InputError
        If `size` cannot be met under these constraints (with the number available), or if an option, cluster, weight,
        column or id is invalid; all problems are reported at once.
    StoreError
        If the tree, or its pool if ids or columns are needed, cannot be read.

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
    opened = open_hierarchy(tree) if isinstance(tree, str | os.PathLike) else tree
    arrays = TreeArrays(opened)
    rules = read_rules(
        opened, arrays, size, strategy=strategy, within=within, multiplier=multiplier, exclude=exclude, only=only,
        exclude_ids=exclude_ids, weights=weights, by=by, max_per=max_per, quotas=quotas,
    )  # fmt: skip
    n_samples = int(arrays.read(1, "leaf_sizes").sum())
    _check(n_samples, size, strategy, within, multiplier, seed, rules.problems)
    if rules.pool is None:
        tell_of_another_pool(opened.attrs)
    # No sample can be drawn more often than `size`; the cap keeps products from overflowing.
    draw = _Draw(arrays, rules, strategy, within, min(int(multiplier), int(size)), n_samples)
    parts = draw.parts(int(size), seed)
    emit("progress", stage="sample", done=0, total=size)
    rows = np.sort(np.concatenate([draw.part(part) for part in parts]))
    emit("progress", stage="sample", done=size, total=size)
    return rows


def _check(
    n_samples: int, size: int, strategy: str, within: str, multiplier: int, seed: int, others: list[str]
) -> None:
    problems = check_whole(1, multiplier=multiplier) + check_whole(seed=seed)
    available = n_samples * (1 if problems else multiplier)
    for name, choice, known in [("strategy", strategy, STRATEGIES), ("within", within, WITHIN)]:
        if choice not in known:
            problems.append(f"{name}={choice!r} should be one of {', '.join(known)}; choose one of them")
    problems += others
    if not is_whole(size) or not 1 <= size <= available:
        remedy = "lower it, or raise multiplier=1" if is_whole(size) and size > available else "give another size"
        problems.append(f"size={size!r} should be a whole number from 1 to the {available} available; {remedy}")
    if problems:
        raise InputError(problems)


@dataclass(frozen=True)
class _Part:
    """Rows that are drawn separately: `code` is the index of their value among the quotas."""

    name: str
    size: int
    seed: int
    code: int | None = None


class _Draw:
    """A draw from a tree under given rules."""

    def __init__(
        self, arrays: TreeArrays, rules: Rules, strategy: str, within: str, multiplier: int, n_samples: int
    ) -> None:
        self.arrays, self.strategy, self.within, self.multiplier = arrays, strategy, within, multiplier
        self.quotas, self.weights = rules.quotas, rules.level_weights(arrays)
        self.mask, left_out = rules.mask(arrays)
        self.best: SortKeys | None = None
        self.cap: Cap | None = None
        self.codes: NDArray[np.integer] | None = None
        if rules.pool is not None and rules.by:
            self.best = best_first(rules.pool, rules.by)
        if rules.columns is not None and rules.max_per and self.mask is not None:
            column, most = rules.max_per
            self.cap = Cap(rules.columns, column, most)
            n_left = int(np.count_nonzero(self.mask))
            left_out[f"beyond {most:,} per {column}"] = n_left - self.cap.available(self.mask)
        if rules.columns is not None:
            self.codes = quota_codes(rules.columns, rules.quotas[0], list(rules.quotas[1])) if rules.quotas else None
        if reasons := [f"{n:,} {reason}" for reason, n in left_out.items() if n]:
            left = n_samples - sum(left_out.values())
            emit("note", message=f"the rules leave {left:,} of {n_samples:,} samples, without {', '.join(reasons)}")

    def parts(self, size: int, seed: int) -> list[_Part]:
        """Return the parts of the draw; raises InputError with all those that exceed the available rows."""
        parts = [_Part("", size, seed)]
        if self.quotas is not None:
            column, quotas = self.quotas
            names = [*map(repr, quotas), "(any other)"]
            seeds = [*(stream_key(seed, "quota", str(value)) for value in quotas), stream_key(seed, "quota")]
            drawn = enumerate(zip(names, quota_sizes(quotas, size), seeds, strict=True))
            parts = [_Part(f"{column}={name}", n, key, code) for code, (name, n, key) in drawn if n]
        if self.mask is not None and (problems := [line for part in parts for line in self._too_large(part)]):
            raise InputError(problems)
        return parts

    def _too_large(self, part: _Part) -> Iterator[str]:
        mask = self._mask(part)
        assert mask is not None
        available = int(np.count_nonzero(mask)) if self.cap is None else self.cap.available(mask)
        available *= self.multiplier
        if part.size > available:
            what = f"{part.size} rows of {part.name}" if part.name else f"size={part.size}"
            remedy = "change the quotas, or lower the size" if part.name else "lower it, or exclude less"
            yield f"{what} should be at most the {available} that the rules leave; {remedy}"

    def _mask(self, part: _Part) -> Mask | None:
        """Tell which rows are eligible for a part, as an array that may be modified."""
        if self.mask is None or self.codes is None:
            return self.mask
        mask = self.codes == part.code
        mask &= self.mask
        return mask

    def part(self, part: _Part) -> NDArray[np.int64]:
        """Draw a part, repeatedly while a value has too many rows.

        Each repetition brings at least one value down to its limit, so this ends; the number of rows that all values
        allow together stays the same, so there are always enough.
        """
        mask = self._mask(part)
        if self.cap is None or mask is None:
            return self._rows(part, mask)
        if problems := list(self._too_large(part)):  # checked again, as earlier parts have taken their rows
            raise InputError(problems)
        rows = self._rows(part, mask)
        while self.cap.thin(rows, mask, stream_key(part.seed, "max_per"), self.best):
            rows = self._rows(part, mask)
        self.cap.take(rows)
        return rows

    def _rows(self, part: _Part, mask: Mask | None) -> NDArray[np.int64]:
        arrays, n_levels = self.arrays, self.arrays.n_levels
        sizes, key = leaf_sizes(arrays, mask), stream_key(part.seed, "within")
        if self.strategy == "flat":
            none, weights = np.empty(0, np.int64), self.weights[-1:]
            targets = hierarchical_targets([none], [none], sizes[-1:], part.size, self.multiplier, part.seed, weights)
            return draw_flat(arrays, targets, sizes[-1], within=self.within, key=key, best=self.best, mask=mask)
        bounds, members = arrays.read(1, "indptr"), _StoredMembers(arrays)
        above = [(arrays.read(t, "indptr"), arrays.read(t, "members")) for t in range(2, n_levels + 1)]
        targets = hierarchical_targets(
            [bounds, *(indptr for indptr, _ in above)], [members, *(children for _, children in above)], sizes,
            part.size, self.multiplier, part.seed, self.weights,
        )  # fmt: skip
        return draw_members(bounds, members, targets, within=self.within, key=key, best=self.best, mask=mask)


class _Members(Protocol):
    """Members of clusters, accessible by slices."""

    def __getitem__(self, run: slice, /) -> NDArray[np.int64]: ...


class _StoredMembers:
    """Members of the clusters of level 1, read on access."""

    def __init__(self, arrays: TreeArrays) -> None:
        self._arrays = arrays

    def __getitem__(self, run: slice) -> NDArray[np.int64]:
        return self._arrays.part(1, "members", run.start, run.stop)


def draw_members(
    indptr: NDArray[np.int64],
    members: _Members,
    targets: NDArray[np.int64],
    *,
    within: str = "random",
    key: int = 0,
    best: SortKeys | None = None,
    mask: Mask | None = None,
) -> NDArray[np.int64]:
    """Take `targets` of the members of every cluster, which are in order of distance; returns sorted row numbers.

    A target beyond the number of members means repeats. `key` is from `stream_key`, `best` from `best_first`; with a
    `mask`, only members in it are taken.

    >>> draw_members(np.array([0, 3, 5]), np.array([4, 0, 2, 1, 3]), np.array([2, 3]), within="closest")
    array([0, 1, 1, 3, 4])
    """
    drawn = [np.empty(0, np.int64)]
    cuts = np.searchsorted(indptr, np.arange(0, indptr[-1] + _BLOCK_MEMBERS, _BLOCK_MEMBERS))
    for first, last in itertools.pairwise(np.unique(np.minimum(cuts, len(targets))).tolist()):
        low, high = int(indptr[first]), int(indptr[last])
        if not targets[first:last].any():
            continue
        some, bounds = np.ascontiguousarray(members[low:high]), indptr[first : last + 1] - low
        if mask is not None:
            left = mask[some]
            some, bounds = some[left], starts(left)[bounds]
        sizes = np.diff(bounds)
        whole, rest = np.divmod(targets[first:last], np.maximum(sizes, 1))
        out = np.empty(int(rest.sum()), np.int64)
        selection.take_smallest_keys(bounds, rest, some, _keys(some, within, key, best), out)
        drawn += [out, np.repeat(some, np.repeat(whole, sizes))] if whole.any() else [out]
    return np.sort(np.concatenate(drawn))


def _keys(members: NDArray[np.int64], within: str, key: int, best: SortKeys | None) -> NDArray[np.uint64]:
    """Return the keys by which members are taken, smallest first."""
    if within in ("closest", "furthest"):
        keys = np.arange(len(members), dtype=np.uint64)
        return keys if within == "closest" else np.ascontiguousarray(keys[::-1])
    keys = np.empty(len(members), np.uint64)
    for low in range(0, len(members), DRAWN_ROWS):
        rows = members[low : low + DRAWN_ROWS]
        keys[low : low + DRAWN_ROWS] = random_bits(key, rows) if best is None else best(rows)
    return keys
