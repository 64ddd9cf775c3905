"""Choice of the initial centroids: coreset, k-means++, k-means|| or random rows.

*coreset* draws three times as many centers as clusters by D² (see `d2_sampling`), replaces each by the mean and size of
its cell, and clusters only these weighted means; see `coreset`. *k-means||* draws centers in a few rounds and runs the
greedy walk on them, weighted by the sizes of their cells. *k-means++* runs it on all rows.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.memory import POINTS_PER_CLUSTER, seeding_stage
from hkm_dask.compute.placement import take_rows
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore
from hkm_dask.compute.stepwise import MapReduce, Steps, stepwise
from hkm_dask.data.rows import Rows
from hkm_dask.kmeans.lloyd import means
from hkm_dask.kmeans.seeding.coreset import CORESET_ITERATIONS, SeedingReport, seed_from_points
from hkm_dask.kmeans.seeding.d2_sampling import Candidates, UpdateAndSample, sample_by_distance, sample_in_rounds
from hkm_dask.kmeans.seeding.random_rows import random_rows
from hkm_dask.search.geometry import Geometry

#: Centers drawn per cluster.
CORESET_FACTOR = POINTS_PER_CLUSTER["coreset"]


@dataclass(frozen=True)
class Seeds:
    """Initial state for Lloyd's iteration."""

    centroids: NDArray[np.float32]  # (n_clusters, n_features): NaN where there are fewer distinct rows than clusters
    hints: NDArray[np.int32] | None  # the centroid to try first for each cell cached under `run`
    run: str


def _cells(
    geometry: Geometry, array_store: SharedArrayStore, name: str, draws: Candidates
) -> tuple[SharedArray, NDArray[np.int64]]:
    """Task: compute the means and sizes of the cells."""
    assert draws.sums is not None
    assert draws.counts is not None
    return array_store.put(name, means(draws.sums, draws.counts, geometry)), draws.counts


@stepwise
def seed(
    rows: Rows,
    n_clusters: int,
    *,
    init: str,
    geometry: Geometry,
    key: int,
    runner: Runner,
    report: SeedingReport | None = None,
    weights: NDArray[np.int64] | None = None,
) -> Steps[Seeds]:
    """Choose initial centroids by "coreset", "k-means++", "k-means||" or "random"; `key` is from `stream_key`.

    `report` gets the phase, the amount done, and the total: ``draw`` counts centers, ``choose`` groups of them,
    ``refine`` iterations. `weights` are int64 (n_rows,), positive.
    """
    run = uuid.uuid4().hex
    with runner.array_store.lent("seed-weights", weights) as shared:
        n_rows = rows.n_rows if init == "k-means++" else runner.n_own(rows)
        stage = seeding_stage(n_rows, n_clusters, rows.n_features, init)
        runner.make_room_for(stage)
        if init == "random":
            vectors = take_rows(rows, random_rows(rows, n_clusters, key=key, runner=runner, weights=shared), runner)
            centroids = np.full((n_clusters, rows.n_features), np.nan, np.float32)
            centroids[: len(vectors)] = vectors
            return Seeds(centroids, None, run)
        walk = partial(seed_from_points, n_clusters=n_clusters, geometry=geometry, runner=runner, report=report)
        # k-means++ uses the rows themselves; with only a few times k rows there is nothing for the coreset to condense.
        if init == "k-means++" or rows.n_rows <= CORESET_FACTOR * n_clusters:
            vectors = np.ascontiguousarray(rows.read(0, rows.n_rows), np.float32)
            sizes = np.ones(rows.n_rows, np.int64) if shared is None else shared.get()
            with runner.array_store.lent("points", vectors) as points:
                centroids, _ = walk(points, sizes, key=key, n_iterations=0, whole=init == "k-means++")
            return Seeds(centroids, None, run)
        in_rounds = init == "k-means||"
        sample = sample_in_rounds if in_rounds else sample_by_distance
        batches = yield from sample.steps(
            rows, (2 if in_rounds else CORESET_FACTOR) * n_clusters, geometry=geometry, key=key, run=run, runner=runner,
            weights=shared, stage=stage, report=None if report is None else partial(report, "draw"),
        )  # fmt: skip
        points, sizes = yield MapReduce(
            UpdateAndSample(tuple(batches), geometry, run, key, 0.0, with_sums=True, weights=shared),
            runner.split(rows, sum(len(batch.get()) for batch in batches), stage=stage),
            Candidates.__add__,
            partial(_cells, geometry, runner.array_store, f"cells-{run}"),
            "draw-cells0",
        )
        while batches:
            batches.pop().delete()
        n_iterations = CORESET_ITERATIONS if init == "coreset" else 0
        centroids, hints = walk(points, sizes, key=stream_key(key, "greedy"), n_iterations=n_iterations)
        points.delete()
        return Seeds(centroids, hints, run)
