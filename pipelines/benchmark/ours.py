"""Our k-means, called like the peers: rows in memory, threads of this process, nothing cached between runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.kmeans import fit
from hkm_dask.kmeans.lloyd import LloydStep, iterate
from hkm_dask.kmeans.seeding.seed import seed
from hkm_dask.search.geometry import Geometry, make_geometry
from pipelines.benchmark.peers import Problem

NAME = "hkm_dask"


@dataclass(frozen=True)
class _Session:
    runner: Runner
    rows: ArrayRows
    geometry: Geometry


@contextmanager
def _session(rows: NDArray[np.float32], n_clusters: int) -> Iterator[_Session]:
    table = ArrayRows(rows)
    with Runner() as runner:
        try:
            yield _Session(runner, table, make_geometry(table, runner, n_clusters=n_clusters))
        finally:
            forget(table.key)


def fit_lloyd(problem: Problem, n_iter: int) -> NDArray[np.float32]:
    """Run `n_iter` Lloyd iterations; return centroids of shape (n_clusters, n_features)."""
    with _session(problem.rows, problem.n_clusters) as s:
        done = iterate(s.rows, problem.start, geometry=s.geometry, runner=s.runner, max_iter=n_iter, tol=0.0)
    return done.centroids


def fit_kmeans(rows: NDArray[np.float32], n_clusters: int, *, max_iter: int, seed: int) -> NDArray[np.float32]:
    """Seed by coreset and iterate until convergence, at most `max_iter` times; return the centroids."""
    settings = fit.Settings(n_clusters, max_iter=max_iter, tol=0.0, key=stream_key(seed))
    with _session(rows, n_clusters) as s:
        return fit.fit(s.rows, settings, geometry=s.geometry, runner=s.runner).centroids


def seed_centroids(rows: NDArray[np.float32], n_clusters: int, *, init: str, seed_number: int) -> NDArray[np.float32]:
    """Return initial centroids of shape (n_clusters, n_features)."""
    with _session(rows, n_clusters) as s:
        start = seed(s.rows, n_clusters, init=init, geometry=s.geometry, key=stream_key(seed_number), runner=s.runner)
    return start.centroids


def reach_inertia(
    rows: NDArray[np.float32], n_clusters: int, *, inertia: float, max_iter: int, seed_number: int
) -> tuple[float, int, NDArray[np.float32]]:
    """Seed by coreset and iterate until the target inertia is reached, at most `max_iter` times.

    Returns
    -------
    seconds : float
        Time to the target; infinity if it was not reached.
    n_iter : int
        The iteration that reached it, otherwise the last one.
    centroids : ndarray of float32, shape (n_clusters, n_features)
        Centroids after that iteration.
    """
    begin = time.perf_counter()
    reached: list[tuple[float, int, NDArray[np.float32]]] = []

    def look(iteration: int, moved: LloydStep) -> None:
        if not reached and moved.inertia <= inertia:
            assert isinstance(moved.centroids, SharedArray)
            reached.append((time.perf_counter() - begin, iteration, moved.centroids.get().copy()))

    with _session(rows, n_clusters) as s:
        key = stream_key(seed_number)
        start = seed(s.rows, n_clusters, init="coreset", geometry=s.geometry, key=key, runner=s.runner)
        done = iterate(
            s.rows, start.centroids, geometry=s.geometry, runner=s.runner, max_iter=max_iter, tol=0.0,
            hints=start.hints, run=start.run, on_iteration=look,
        )  # fmt: skip
    return reached[0] if reached else (float("inf"), len(done.inertia), done.centroids)


def fit_labels(problem: Problem, n_iter: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Run `n_iter` Lloyd iterations; return labels of shape (n_rows,), and the centroids they refer to."""
    kmeans = hkm.KMeans(problem.n_clusters, init=problem.start, max_iter=n_iter, tol=0.0).fit(problem.rows)
    return np.asarray(kmeans.labels_), np.asarray(kmeans.cluster_centers_, np.float32)


def time_iterations(
    rows: Rows, start: NDArray[np.float32], geometry: Geometry, runner: Runner, n_iter: int
) -> tuple[list[float], NDArray[np.float32]]:
    """Run `n_iter` Lloyd iterations; return the seconds of each, and the final centroids."""
    ticks = [time.perf_counter()]

    def tick(iteration: int, moved: LloydStep) -> None:
        ticks.append(time.perf_counter())

    done = iterate(rows, start, geometry=geometry, runner=runner, max_iter=n_iter, tol=0.0, on_iteration=tick)
    return [after - before for before, after in pairwise(ticks)], done.centroids


def pick_start(rows: Rows, n_clusters: int) -> NDArray[np.float32]:
    """Draw rows with seed 0 as initial centroids of shape (n_clusters, n_features)."""
    chosen = np.sort(np.random.default_rng(0).choice(rows.n_rows, n_clusters, replace=False))
    return np.ascontiguousarray(rows.take(chosen), np.float32)
