"""Rows drawn at random, any as likely as another or by weight: those with the smallest random keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import random_bits, random_uniform
from hkm_dask.compute.memory import DRAWN_ROWS
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import Rows


@dataclass(frozen=True)
class _SmallestKeys:
    key: int
    n: int
    weights: SharedArray | None = None

    def __call__(self, part: Part) -> NDArray[np.int64]:
        # A few at a time: keys and their order take some ten times the memory of a row number.
        drawn, step = np.empty(0, np.int64), max(DRAWN_ROWS, 2 * self.n)
        for low in range(part.start, part.stop, step):
            drawn = self.combine(drawn, np.arange(low, min(low + step, part.stop)))
        return drawn

    def smallest(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows with the smallest random keys, in order of row."""
        keys = random_bits(self.key, rows) if self.weights is None else self._arrivals(rows, self.weights.get())
        if len(rows) > self.n:  # a partition takes a tenth of the time of a sort
            few = np.flatnonzero(keys <= np.partition(keys, self.n - 1)[self.n - 1])
            rows, keys = rows[few], keys[few]
        return np.sort(rows[np.lexsort((rows, keys))[: self.n]])

    def _arrivals(self, rows: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Exponential times with the weights for rates: the first to arrive are drawn by weight, without repeats.

        They rise with the random bits, so that equal weights draw the same rows as none.
        """
        return -np.log1p(-random_uniform(self.key, rows)) / weights[rows]

    def combine(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.smallest(np.concatenate([a, b]))


def random_rows(
    rows: Rows, n: int, *, key: int, runner: Runner, weights: SharedArray | None = None
) -> NDArray[np.int64]:
    """Draw `n` distinct rows at random, sorted; all where there are fewer.

    `key` is from `stream_key`. With `weights`, int64 (n_rows,) and positive, each draw is by weight among the rows that
    are left.
    """
    task = _SmallestKeys(key, n, weights)
    return runner.map_reduce(task, runner.split(rows, 1), combine=task.combine, stage="draw")
