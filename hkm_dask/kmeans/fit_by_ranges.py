"""One k-means whose centroids no worker holds, from start to end; see `ranges`."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedPieces
from hkm_dask.data.rows import Rows
from hkm_dask.kmeans.fit import Hooks, Progress, Settings
from hkm_dask.kmeans.ranges import iterate_by_ranges, put_ranges
from hkm_dask.kmeans.search.geometry import Geometry
from hkm_dask.kmeans.seeding.by_ranges import seed_by_ranges


@dataclass(frozen=True)
class FitByRanges:
    """Outcome of a k-means, as `Fit` has it; centroids are in pieces, for whoever has them to delete."""

    centroids: SharedPieces
    inertia: NDArray[np.float64]
    n_relocated: int
    seconds: float
    n_unused: int


def fit_by_ranges(
    rows: Rows,
    settings: Settings,
    n_ranges: int,
    *,
    geometry: Geometry,
    runner: Runner,
    hooks: Hooks | None = None,
    progress: Progress | None = None,
) -> FitByRanges:
    """Cluster rows, with clusters shared out in so many ranges: to the bits of `fit`, whose parameters these are."""
    rows, begin, hooks, kept = runner.place(rows), time.perf_counter(), hooks or Hooks(), False
    if progress is None:
        start = seed_by_ranges(rows, settings.n_clusters, n_ranges, init=settings.init, key=settings.key, runner=runner)
        progress = Progress(start, (), 0)
    elif isinstance(progress.centroids, SharedPieces):
        start, kept = progress.centroids, True
    else:
        store = runner.scratch_store(progress.centroids.nbytes)
        start = put_ranges(progress.centroids, n_ranges, store, f"centroids-{uuid.uuid4().hex}")
    lloyd = iterate_by_ranges(
        rows, start, geometry=geometry, runner=runner, max_iter=settings.max_iter, tol=settings.tol,
        on_iteration=hooks.on_iteration, history=progress.inertia, relocated=progress.relocated,
        near_inertia=progress.near_inertia,
    )  # fmt: skip
    if not kept and lloyd.centroids is not start:
        start.delete()
    seconds = time.perf_counter() - begin
    return FitByRanges(lloyd.centroids, lloyd.inertia, lloyd.n_relocated, seconds, lloyd.n_unused)
