"""The k-means of other libraries, with settings that make them comparable: all rows, all iterations, the given start.

By default, FAISS and SuperKMeans train on a sample of the rows, and most libraries stop early.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Problem:
    """Rows of shape (n_rows, n_features), and the initial centroids."""

    rows: NDArray[np.float32]
    start: NDArray[np.float32]

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.start)


#: Runs the given number of Lloyd iterations and returns the centroids.
Fit = Callable[[Problem, int], NDArray[np.float32]]


@dataclass(frozen=True)
class Peer:
    """Another implementation.

    Attributes
    ----------
    name : str
    distribution, module : str
        Name for pip, and name to import.
    fit : callable
    takes_start : bool
        Whether it accepts initial centroids; otherwise it draws its own.
    """

    name: str
    distribution: str
    module: str
    fit: Fit
    takes_start: bool

    @property
    def is_present(self) -> bool:
        """Whether it can be imported, including its own dependencies."""
        try:
            import_module(self.module)
        except ImportError:
            return False
        return True


def n_threads() -> int:
    """Return the number of cores this process may use; every participant gets as many threads."""
    return len(os.sched_getaffinity(0))


def _fit_faiss(problem: Problem, n_iter: int) -> NDArray[np.float32]:
    import faiss

    faiss.omp_set_num_threads(n_threads())
    kmeans = faiss.Kmeans(
        problem.rows.shape[1], problem.n_clusters, niter=n_iter, max_points_per_centroid=10**9,
        min_points_per_centroid=1,
    )  # fmt: skip
    kmeans.train(problem.rows, init_centroids=problem.start)
    return np.asarray(kmeans.centroids, np.float32)


def _fit_sklearn(problem: Problem, n_iter: int) -> NDArray[np.float32]:
    from sklearn.cluster import KMeans

    kmeans = KMeans(problem.n_clusters, init=problem.start, n_init=1, algorithm="lloyd", tol=0.0, max_iter=n_iter)
    return np.asarray(kmeans.fit(problem.rows).cluster_centers_, np.float32)


def _fit_superkmeans(problem: Problem, n_iter: int) -> NDArray[np.float32]:
    from superkmeans import SuperKMeans

    kmeans = SuperKMeans(
        problem.n_clusters, problem.rows.shape[1], iters=n_iter, hierarchical=False, sampling_fraction=1.0,
        max_points_per_cluster=10**6, early_termination=False, n_threads=n_threads(),
    )  # fmt: skip
    return np.asarray(kmeans.train(problem.rows), np.float32)


def _fit_dask_ml(problem: Problem, n_iter: int) -> NDArray[np.float32]:
    import dask.array as da
    from dask_ml.cluster import KMeans

    chunk = -(-len(problem.rows) // n_threads())
    rows = da.from_array(problem.rows, chunks=(chunk, -1))
    kmeans = KMeans(problem.n_clusters, init=problem.start, tol=0.0, max_iter=n_iter)
    return np.asarray(kmeans.fit(rows).cluster_centers_, np.float32)


def _fit_fastkmeans(problem: Problem, n_iter: int) -> NDArray[np.float32]:
    from fastkmeans import FastKMeans

    kmeans = FastKMeans(
        problem.rows.shape[1], problem.n_clusters, niter=n_iter, tol=0.0, gpu=False, max_points_per_centroid=10**9
    )
    kmeans.train(problem.rows)
    return np.asarray(kmeans.centroids, np.float32)


PEERS = (
    Peer("FAISS", "faiss-cpu", "faiss", _fit_faiss, takes_start=True),
    Peer("scikit-learn", "scikit-learn", "sklearn", _fit_sklearn, takes_start=True),
    Peer("SuperKMeans", "superkmeans", "superkmeans", _fit_superkmeans, takes_start=False),
    Peer("dask-ml", "dask-ml", "dask_ml", _fit_dask_ml, takes_start=True),
    Peer("fastkmeans", "fastkmeans", "fastkmeans", _fit_fastkmeans, takes_start=False),
)


def _name_the_processor() -> None:
    """Set the core type for OpenBLAS copies bundled with peers: old ones mistake a new processor for a very old one.

    Without this, FAISS 1.15.1 is four times slower on a processor newer than its OpenBLAS.
    """
    features = llvm.get_host_cpu_features()
    known = {"avx512bw": "SkylakeX", "avx2": "Haswell"}
    name = next((core for feature, core in known.items() if features.get(feature)), None)
    if name is not None:
        os.environ.setdefault("OPENBLAS_CORETYPE", name)


def find_peers(names: Sequence[str] | None = None) -> tuple[list[Peer], list[str]]:
    """Import the named peers (default: all); return the installed ones, and the names of the others."""
    _name_the_processor()
    asked = [peer for peer in PEERS if names is None or peer.name in names]
    present = [peer for peer in asked if peer.is_present]
    return present, [peer.name for peer in asked if peer not in present]
