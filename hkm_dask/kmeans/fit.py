"""A complete k-means, seeding and Lloyd's iteration, wherever the rows are stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import on_host
from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.memory import fit_stage, lloyd_stage
from hkm_dask.compute.runner import Runner, runner_in_task
from hkm_dask.compute.stepwise import Steps, stepwise
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.kmeans.lloyd import LloydStep, Progress, iterate
from hkm_dask.kmeans.seeding.coreset import SeedingReport
from hkm_dask.kmeans.seeding.seed import seed
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.worker import is_too_little


@dataclass(frozen=True)
class Settings:
    """Parameters of one k-means."""

    n_clusters: int
    init: str = "coreset"
    max_iter: int = 50
    tol: float = 1e-4
    key: int = field(default_factory=lambda: stream_key(0))  # key of its random numbers, from `stream_key`
    r: int = 0  # members to be taken from each cluster, at most: iterations report how many in all; 0 for no report


@dataclass(frozen=True)
class Fit:
    """Result of a k-means."""

    centroids: NDArray[np.float32]  # (n_clusters, n_features): NaN where there are fewer distinct rows than clusters
    inertia: NDArray[np.float64]  # (n_iter,): before each update
    n_relocated: int
    seconds: float
    run: str = ""  # name under which the parts of the rows cached their last labels; empty if they did not

    @property
    def n_unused(self) -> int:
        """Number of slots without a centroid."""
        return int(np.isnan(self.centroids[:, 0]).sum())


@dataclass(frozen=True)
class GroupFits:
    """Result of separate k-means over several groups of rows, with the same number of clusters each."""

    #: (n_groups * n_clusters, n_features): NaN where a group has fewer distinct rows than clusters.
    centroids: NDArray[np.float32]
    #: (n_rows,): nearest centroid within the row's group; clusters are numbered consecutively over all groups.
    labels: NDArray[np.int32]
    distances: NDArray[np.float64]  # (n_rows,): squared L2

    def __add__(self, other: GroupFits) -> GroupFits:
        return GroupFits(
            np.concatenate([self.centroids, other.centroids]),
            np.concatenate([self.labels, other.labels + np.int32(len(self.centroids))]),
            np.concatenate([self.distances, other.distances]),
        )


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a running fit; none by default."""

    seeding: SeedingReport | None = None  # gets the phase, the amount done, and the total; see `seed`
    #: Gets the iteration, counted from 1, the inertia before its update, and `LloydStep.n_members`.
    iteration: Callable[[int, float, int | None], None] | None = None
    #: Gets the outcome of each iteration, from which an interrupted k-means can resume; not called by one-task fits.
    moved: Callable[[LloydStep], None] | None = None

    def hear(self, name: str, *values: Any) -> None:
        """Call the hook `name` with these values, if it is set."""
        hook = getattr(self, name)
        if hook is not None:
            hook(*values)

    def on_iteration(self, i: int, step: LloydStep) -> None:
        """Pass the outcome of an iteration to its hooks."""
        self.hear("iteration", i, step.inertia, step.n_members)
        self.hear("moved", step)


@stepwise
def fit(
    rows: Rows,
    settings: Settings,
    *,
    geometry: Geometry,
    runner: Runner,
    hooks: Hooks | None = None,
    progress: Progress | None = None,
    weights: NDArray[np.int64] | None = None,
) -> Steps[Fit]:
    """Cluster rows.

    The `geometry` was made for these rows, or for rows they are a subset of, and for the sum of the `weights`, int64
    (n_rows,) and positive. `progress` is the state of an interrupted run, or the initial centroids.
    """
    rows = runner.place(rows)
    hooks = hooks or Hooks()
    flops = 2.0 * rows.n_rows * rows.n_features * settings.n_clusters
    arguments: dict[str, Any] = {"settings": settings, "geometry": geometry, "progress": progress, "weights": weights}
    shape = rows.n_rows, settings.n_clusters, rows.n_features
    stage = fit_stage(*shape, settings.init) if progress is None else lloyd_stage(*shape)
    if runner.fits_one_task(flops, rows.n_rows * rows.row_bytes, stage):
        task = partial(_fit_in_task, rows=rows, n_threads=runner.n_threads_alone, **arguments)
        outcome: Fit = runner.call(task, runner.memory_budget, stage="cluster", hear=hooks.hear)
        return outcome
    if is_too_little(flops):
        with on_host():
            return fit(rows, runner=runner, hooks=hooks, **arguments)
    begin = time.perf_counter()
    run, hints = uuid.uuid4().hex, None
    if progress is None:
        start = yield from seed.steps(
            rows, settings.n_clusters, init=settings.init, geometry=geometry, key=settings.key, runner=runner,
            report=hooks.seeding, weights=weights,
        )  # fmt: skip
        progress, run, hints = Progress(start.centroids), start.run, start.hints
    lloyd = yield from iterate.steps(
        rows, progress.whole, geometry=geometry, runner=runner, max_iter=settings.max_iter, tol=settings.tol,
        r=settings.r, hints=hints, run=run, on_iteration=hooks.on_iteration, weights=weights, progress=progress,
    )  # fmt: skip
    return Fit(lloyd.centroids, lloyd.inertia, lloyd.n_relocated, time.perf_counter() - begin, run)


def _fit_in_task(memory_budget: int, *, rows: Rows, n_threads: int, tell: Callable[..., None], **arguments: Any) -> Fit:
    """Run a whole k-means as one task, for too few rows to be worth a round of tasks per iteration."""
    hooks = Hooks(partial(tell, "seeding"), partial(tell, "iteration"))
    table = ArrayRows(rows.read(0, rows.n_rows), rows.label)
    try:
        with runner_in_task(memory_budget, n_threads) as runner:
            return replace(fit(table, runner=runner, hooks=hooks, **arguments), run="")
    finally:
        forget(table.key)
