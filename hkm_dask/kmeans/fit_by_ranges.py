"""One k-means whose centroids no worker holds, from start to end; see `ranges`."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedPieces
from hkm_dask.data.rows import Rows
from hkm_dask.kmeans.fit import Hooks, Progress, Settings
from hkm_dask.kmeans.ranges import FitByRanges, iterate_by_ranges, put_ranges
from hkm_dask.kmeans.search.geometry import Geometry
from hkm_dask.kmeans.seeding.by_ranges import seed_by_ranges


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
    return replace(lloyd, seconds=time.perf_counter() - begin)
