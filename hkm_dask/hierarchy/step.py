"""One k-means of a level: over all its rows, or over members of the last step's clusters (arXiv:2405.15613 §3.3)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.memory import StageBytes, fit_stage, resample_stage
from hkm_dask.compute.placement import discard, gather
from hkm_dask.compute.range_memory import lloyd_by_ranges
from hkm_dask.compute.runner import Runner, runner_in_task
from hkm_dask.compute.shared_arrays import SharedPieces
from hkm_dask.data.rows import Rows
from hkm_dask.hierarchy.assign import Centroids, LevelRows, assign, loaded, shared_centroids
from hkm_dask.kmeans.fit import Fit, Hooks, Settings, fit
from hkm_dask.kmeans.lloyd import Progress
from hkm_dask.kmeans.ranges import FitByRanges, fit_by_ranges


@dataclass(frozen=True)
class StepHooks(Hooks):
    """Callbacks of a step, in addition to those of its k-means."""

    assigned: Callable[[], None] | None = None  # called when all rows are assigned to the clusters of the last step
    started: Callable[[int], None] | None = None  # gets the number of rows when the k-means begins


@dataclass(frozen=True)
class Step:
    """A k-means of a level: its settings, the number of ranges of clusters, and the progress of an interrupted run.

    This class clusters all rows of the level.
    """

    level: LevelRows
    settings: Settings
    n_ranges: int = 1
    progress: Progress | None = None

    def run(self, runner: Runner, hooks: StepHooks) -> Fit | FitByRanges:
        """Run the step."""
        return self._cluster(self.level.rows, runner, hooks)

    def _cluster(self, rows: Rows, runner: Runner, hooks: StepHooks) -> Fit | FitByRanges:
        hooks.hear("started", rows.n_rows)
        run = fit if self.n_ranges == 1 else partial(fit_by_ranges, n_ranges=self.n_ranges)
        done: Fit | FitByRanges = run(
            rows, self.settings, geometry=self.level.geometry, runner=runner, hooks=hooks, progress=self.progress
        )
        return done


@dataclass(frozen=True, kw_only=True)
class ResamplingStep(Step):
    """A k-means over members of the last step's clusters."""

    #: float32 (n_clusters, n_features), or in pieces: those of the last step, and `previous` of the step before, if
    #: any.
    centroids: Centroids
    before: Centroids | None
    r: int  # most members per cluster
    random_key: int | None  # key of the random numbers by which members are chosen; None for the closest members
    passes: str  # name under which parts of the rows cache their labels from step to step

    def run(self, runner: Runner, hooks: StepHooks) -> Fit | FitByRanges:
        """Assign all rows to the clusters of the last step, choose members of each, and cluster those."""
        rows, k, init = self.level.rows, self.settings.n_clusters, self.settings.init
        if self.n_ranges == 1 and resamples_in_one_task(runner, rows.shape, k, self.r, init, rows.row_bytes):
            return self._run_alone(runner, hooks)
        shape = min(rows.n_rows, k * self.r), k, rows.n_features
        stage = fit_stage(*shape, init) if self.n_ranges == 1 else lloyd_by_ranges(*shape, self.n_ranges)
        numbers = self._choose(runner, hooks)
        members = gather(rows, numbers, runner, stage)
        numbers.delete()
        try:
            return self._cluster(members, runner, hooks)
        finally:
            forget(members.key)
            discard(members)

    def _choose(self, runner: Runner, hooks: StepHooks) -> SharedPieces:
        """Return row numbers of up to r members of each cluster, or more if there would be fewer than clusters."""
        pick = partial(assign, self.level, self.centroids, run=self.passes, runner=runner, random_key=self.random_key)
        assigned = pick(r=self.r, before=self.before)
        hooks.hear("assigned")
        enough = enough_members(assigned.counts, self.r, self.settings.n_clusters)
        if enough > self.r:
            assert assigned.chosen is not None
            assigned.chosen.delete()
            assigned = pick(r=enough, before=self.centroids)
        assert assigned.chosen is not None
        return assigned.chosen

    def _run_alone(self, runner: Runner, hooks: StepHooks) -> Fit:
        """Run the step as one task, if passes over the rows are too small for a round of tasks each."""
        with shared_centroids(self.centroids, self.before, runner=runner) as (centroids, before):
            step = replace(self, centroids=centroids, before=before)
            task = partial(_run_in_task, step, runner.n_threads_alone)
            done: Fit = runner.call(task, runner.memory_budget, stage="cluster", hear=hooks.hear)
            return done


def resamples_in_one_task(
    runner: Runner, shape: tuple[int, int], n_clusters: int, r: int, init: str, row_bytes: int
) -> bool:  # fmt: skip
    """Tell whether a resampling step over rows of this shape is one task, as all its passes are small."""
    n_rows, n_features = shape
    n_members = min(n_rows, n_clusters * r)
    stages = (
        fit_stage(n_members, n_clusters, n_features, init), resample_stage(n_rows, n_clusters, n_features, n_members)
    )  # fmt: skip
    most = max(stages, key=StageBytes.total)
    return runner.fits_one_task(2.0 * n_rows * n_clusters * n_features, (n_rows + n_members) * row_bytes, most)


def _run_in_task(step: Any, n_threads: int, memory_budget: int, tell: Callable[..., None]) -> Fit | FitByRanges:
    hooks = StepHooks(**{name: partial(tell, name) for name in ("seeding", "iteration", "assigned", "started")})
    with runner_in_task(memory_budget, n_threads) as runner:
        return replace(step, centroids=loaded(step.centroids), before=loaded(step.before)).run(runner, hooks)


def enough_members(sizes: NDArray[np.int64], r: int, n_clusters: int) -> int:
    """Raise r if clusters are so unequal that there would be fewer than `n_clusters` members.

    Returns the smallest number >= r with ``sum(min(r, sizes)) >= n_clusters``, or the size of the largest cluster.

    >>> enough_members(np.array([5, 0, 0]), 1, 3)
    3
    """
    candidates = range(r, int(sizes.max(initial=r)))
    return r + bisect_left(candidates, n_clusters, key=lambda n: int(np.minimum(sizes, n).sum()))
