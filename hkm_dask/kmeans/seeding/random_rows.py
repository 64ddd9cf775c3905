"""Rows drawn at random, uniformly or by weight: those with the smallest random keys.

For clusters split into ranges, a task of each range gathers its seeds.
"""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import random_bits, random_uniform
from hkm_dask.compute.memory import DRAWN_ROWS, StageBytes
from hkm_dask.compute.partition import Part
from hkm_dask.compute.range_memory import gathering_bytes, range_offsets, rows_of_range, seeding_by_ranges
from hkm_dask.compute.resident import take
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore, SharedPieces
from hkm_dask.data.rows import Rows
from hkm_dask.errors import InputError

#: Seeding methods that need no more than one range of clusters at a time.
INITS_BY_RANGES = ("random",)


@dataclass(frozen=True)
class _SmallestKeys:
    key: int
    n: int
    weights: SharedArray | None = None

    def __call__(self, part: Part) -> NDArray[np.int64]:
        # In small steps: keys and their order take some ten times the memory of the row numbers.
        drawn, step = np.empty(0, np.int64), max(DRAWN_ROWS, 2 * self.n)
        for low in range(part.start, part.stop, step):
            drawn = self.combine(drawn, np.arange(low, min(low + step, part.stop)))
        return drawn

    def smallest(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows with the smallest random keys, sorted by row number."""
        keys = random_bits(self.key, rows) if self.weights is None else self._arrivals(rows, self.weights.get())
        if len(rows) > self.n:  # a partition takes a tenth of the time of a sort
            few = np.flatnonzero(keys <= np.partition(keys, self.n - 1)[self.n - 1])
            rows, keys = rows[few], keys[few]
        return np.sort(rows[np.lexsort((rows, keys))[: self.n]])

    def _arrivals(self, rows: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return exponential arrival times with weights as rates: the first to arrive are a draw without replacement.

        Times increase with the random bits, so equal weights draw the same rows as no weights.
        """
        return -np.log1p(-random_uniform(self.key, rows)) / weights[rows]

    def combine(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.smallest(np.concatenate([a, b]))


def random_rows(
    rows: Rows, n: int, *, key: int, runner: Runner, weights: SharedArray | None = None
) -> NDArray[np.int64]:
    """Draw `n` distinct rows at random; returns them sorted, or all rows if there are fewer.

    `key` is from `stream_key`. With `weights`, int64 (n_rows,) and positive, each draw is by weight among the remaining
    rows.
    """
    task = _SmallestKeys(key, n, weights)
    return runner.map_reduce(task, runner.split(rows, 1), combine=task.combine, stage="draw")


def _gather_range(
    rows: Rows, numbers: SharedArray, n_numbers: int, store: SharedArrayStore, name: str,
    item: tuple[int, tuple[int, int]],
) -> SharedArray:  # fmt: skip
    """Task: gather the seed rows of one range of clusters; NaN if there are fewer rows than clusters."""
    number, (first, stop) = item
    centroids = np.full((stop - first, rows.n_features), np.nan, np.float32)
    some = numbers.read(min(first, n_numbers), min(stop, n_numbers))
    centroids[: len(some)] = take(rows, some)
    return store.put(f"{name}-{number}", centroids)


def seed_by_ranges(rows: Rows, n_clusters: int, n_ranges: int, *, init: str, key: int, runner: Runner) -> SharedPieces:
    """Choose initial centroids in ranges, bitwise as `seed.seed` with its parameters; the caller deletes them."""
    if init not in INITS_BY_RANGES:
        raise InputError(f"init={init!r} should be 'random' for centroids that do not fit in a worker; use it")
    stage = seeding_by_ranges(runner.n_own(rows), n_clusters, rows.n_features, n_ranges)
    runner.make_room_for(stage)
    numbers = random_rows(rows, n_clusters, key=key, runner=runner)
    name, store = uuid.uuid4().hex, runner.scratch_store(4 * n_clusters * rows.n_features)
    offsets = range_offsets(n_clusters, n_ranges)
    takes = StageBytes(0, gathering_bytes(rows_of_range(n_clusters, n_ranges), rows.n_features))
    with store.lent("numbers", numbers) as shared:
        gather = partial(_gather_range, rows, shared, len(numbers), store, f"centroids-{name}")
        arrays = runner.map(gather, list(enumerate(itertools.pairwise(offsets))), stage="gather", takes=takes)
    return SharedPieces(store.series(f"centroids-{name}", arrays), offsets)
