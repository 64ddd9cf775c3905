"""Flat draws: the same number of rows from every top-level cluster, those with the smallest keys, without sorting.

Rows are read block by block, several times: first to find, digit by digit, the first excess key of each cluster
(`external_sort.find_splitters`), then to collect the rows before it. Only blocks and the drawn rows are held in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import on_host
from hkm_dask.compute.keyed_random import random_bits
from hkm_dask.compute.runner import Runner, n_processors
from hkm_dask.hierarchy.sampling.columns import SortKeys
from hkm_dask.hierarchy.sampling.eligible import Mask
from hkm_dask.hierarchy.sorting.external_sort import Records, Run, Splitters, find_splitters, grouped, splitters_before
from hkm_dask.hierarchy.tree.arrays import TreeArrays


@dataclass(frozen=True)
class _Order:
    """The order in which members of a cluster are taken, smallest first: by a key, then by a unique word."""

    arrays: TreeArrays
    within: str
    random_key: int
    best: SortKeys | None

    @property
    def key_bits(self) -> int:
        """Number of bits that a key may have."""
        return 32 if self.within in ("closest", "furthest") else 64

    @property
    def n_words(self) -> int:
        """Exclusive upper bound of the words."""
        return 2**64 - 1 if self.best is not None else self.arrays.n_rows(1)

    def of_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return keys and words of rows, which are contiguous except for rows left out."""
        if self.within == "random" and self.best is None:
            return random_bits(self.random_key, rows), rows
        first = int(rows[0]) if len(rows) else 0
        distances = self.arrays.part(1, "distances", first, first + int(np.ptp(rows)) + 1 if len(rows) else first)
        bits = distances.astype(np.float32, copy=False)[rows - first].view(np.uint32).astype(np.uint64)
        if self.within == "closest":
            return bits, rows
        n_rows = self.arrays.n_rows(1)
        if self.within == "furthest":
            return np.uint64(2**32 - 1) - bits, n_rows - 1 - rows
        assert self.best is not None
        # Distances have no sign bit: their lowest bits are cut off only with more than 2**33 rows.
        n_bits = n_rows.bit_length()
        words = bits >> np.uint64(max(0, n_bits - 33)) << np.uint64(n_bits) | rows.view(np.uint64)
        return self.best(rows), words.view(np.int64)


@dataclass(frozen=True)
class _TopRun:
    """Rows ``start:stop`` by top-level cluster, except those without one or not in `mask`."""

    order: _Order
    top: NDArray[np.int32]
    mask: Mask | None
    bounds: tuple[int, int]

    def members(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return their row numbers and clusters."""
        top = self.top[self.order.arrays.block(1, "labels", self.bounds)]  # index -1 selects the last element, -1
        used = top >= 0
        if self.mask is not None:
            used &= self.mask[slice(*self.bounds)]
        found = np.flatnonzero(used)
        return found + self.bounds[0], top[found]

    def read(self) -> Records:
        rows, top = self.members()
        keys, words = self.order.of_rows(rows)
        return Records(words, keys, top)


def _take(
    times: NDArray[np.int64], splitters: Splitters, whole: NDArray[np.bool_], runs: Sequence[_TopRun]
) -> NDArray[np.int64]:
    """Task: return the rows of runs, each as often as its cluster's `times`, plus once if before the splitter."""
    taken = [np.empty(0, np.int64)]
    number = np.searchsorted(splitters.clusters, np.arange(len(times)))
    for run in runs:
        rows, top = run.members()
        some = np.flatnonzero(~whole[top])
        of_rows = times[top]
        keys, words = run.order.of_rows(rows)
        records = Records(words[some], keys[some], top[some])
        of_rows[some] += splitters_before(splitters, records) <= number[top[some]]
        taken.append(np.repeat(rows, of_rows))
    return np.concatenate(taken)


def draw_flat(
    arrays: TreeArrays,
    targets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    *,
    within: str = "random",
    key: int = 0,
    best: SortKeys | None = None,
    mask: Mask | None = None,
) -> NDArray[np.int64]:
    """Take `targets` of the samples of every top-level cluster, which has `sizes` of them; returns sorted row numbers.

    A target beyond the cluster's size means repeats. Ties go to the lowest row; see `sampling.draw_members` for the
    other parameters.
    """
    above = arrays.ancestors(np.arange(arrays.n_clusters(1), dtype=np.int32))[-1]
    top = np.append(above, np.int32(-1))
    order = _Order(arrays, within, key, None if within in ("closest", "furthest") else best)
    runs = [_TopRun(order, top, mask, bounds) for bounds in arrays.blocks(1, "labels")]
    times, rest = np.divmod(targets, np.maximum(sizes, 1))
    some = np.flatnonzero(rest).astype(np.int32)
    with on_host(), Runner(n_threads=n_processors()) as runner:
        splitters = find_splitters(
            runs, some, rest[some], key_bits=order.key_bits, n_rows=order.n_words, runner=runner, stage="sample"
        )
        parts: list[list[Run]] = grouped(runs, runner)
        return np.concatenate(runner.map(partial(_take, times, splitters, rest == 0), parts, stage="sample"))
