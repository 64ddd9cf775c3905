"""Our k-means, called as the peers are: rows in memory, threads of this process, nothing kept from run to run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans import fit
from hkm_dask.kmeans.lloyd import LloydStep, iterate, split_rows
from hkm_dask.kmeans.search.engine import remembered
from hkm_dask.kmeans.search.geometry import Geometry, make_geometry
from hkm_dask.kmeans.seeding.seed import seed
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
    """Run so many Lloyd iterations.

    Parameters
    ----------
    problem : Problem
    n_iter : int

    Returns
    -------
    ndarray of float32, shape (n_clusters, n_features)
    """
    with _session(problem.rows, problem.n_clusters) as s:
        done = iterate(s.rows, problem.start, geometry=s.geometry, runner=s.runner, max_iter=n_iter, tol=0.0)
    return done.centroids


def fit_kmeans(rows: NDArray[np.float32], n_clusters: int, *, max_iter: int, seed: int) -> NDArray[np.float32]:
    """Seed by coreset and iterate until nothing changes, or `max_iter` times.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    n_clusters, max_iter, seed : int

    Returns
    -------
    ndarray of float32, shape (n_clusters, n_features)
    """
    settings = fit.Settings(n_clusters, max_iter=max_iter, tol=0.0, key=stream_key(seed))
    with _session(rows, n_clusters) as s:
        return fit.fit(s.rows, settings, geometry=s.geometry, runner=s.runner).centroids


def seed_centroids(rows: NDArray[np.float32], n_clusters: int, *, init: str, seed_number: int) -> NDArray[np.float32]:
    """Choose where to start.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    n_clusters : int
    init : str
    seed_number : int

    Returns
    -------
    ndarray of float32, shape (n_clusters, n_features)
    """
    with _session(rows, n_clusters) as s:
        found = seed(s.rows, n_clusters, init=init, geometry=s.geometry, key=stream_key(seed_number), runner=s.runner)
    return found.centroids


def reach_inertia(
    rows: NDArray[np.float32], n_clusters: int, *, inertia: float, max_iter: int, seed_number: int
) -> tuple[float, int, NDArray[np.float32]]:
    """Seed by coreset and iterate until the inertia is as low as asked for.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    n_clusters : int
    inertia : float
        Where to stop.
    max_iter : int
        Where to give up.
    seed_number : int

    Returns
    -------
    seconds : float
        Until an iteration found its inertia to be as low; infinity if none did.
    n_iter : int
        That iteration, or the last.
    centroids : ndarray of float32, shape (n_clusters, n_features)
        After it.
    """
    begin = time.perf_counter()
    reached: list[tuple[float, int, NDArray[np.float32]]] = []

    def look(iteration: int, moved: LloydStep) -> None:
        if not reached and moved.inertia <= inertia:
            reached.append((time.perf_counter() - begin, iteration, moved.centroids.get().copy()))

    with _session(rows, n_clusters) as s:
        start = seed(
            s.rows, n_clusters, init="coreset", geometry=s.geometry, key=stream_key(seed_number), runner=s.runner
        )
        done = iterate(
            s.rows, start.centroids, geometry=s.geometry, runner=s.runner, max_iter=max_iter, tol=0.0,
            hints=start.hints,
            run=start.run, on_iteration=look,
        )  # fmt: skip
    return reached[0] if reached else (float("inf"), len(done.inertia), done.centroids)


def last_labels(problem: Problem, n_iter: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Run as `fit_lloyd` does and tell how the last iteration labeled the rows.

    Parameters
    ----------
    problem : Problem
    n_iter : int

    Returns
    -------
    labels : ndarray of int32, shape (n_rows,)
        -1 where memory did not suffice to keep them.
    centroids : ndarray of float32, shape (n_clusters, n_features)
        Those the labels belong to.
    """
    before, after = problem.start, problem.start

    def look(iteration: int, moved: LloydStep) -> None:
        nonlocal before, after
        before, after = after, moved.centroids.get().copy()

    labels = np.full(len(problem.rows), -1, np.int32)
    with _session(problem.rows, problem.n_clusters) as s:
        iterate(
            s.rows, problem.start, geometry=s.geometry, runner=s.runner, max_iter=n_iter, tol=0.0, run="labels",
            on_iteration=look,
        )  # fmt: skip
        for part in split_rows(s.rows, s.runner, problem.n_clusters):
            last = remembered(part, "lloyd", "labels")
            if last is not None:
                labels[part.start : part.stop] = last.known.labels
    return labels, before
