"""Accuracy of a linear and a nearest-neighbor probe trained on a draw, and the class of a centroid."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from hkm_dask.errors import InputError

N_NEIGHBORS = 5
#: Regularization of the linear probe, on standardized features; the same for every draw, without tuning.
PENALTY = 0.01


def accuracies(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    test_embeddings: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> dict[str, float]:
    """Train both probes on one set and score them on the other."""
    if len(np.unique(labels)) < 2:
        return {"linear": float((test_labels == labels[0]).mean()), "knn": float((test_labels == labels[0]).mean())}
    probes = {"linear": linear_probe(), "knn": nearest_probe()}
    return {name: float(p.fit(embeddings, labels).score(test_embeddings, test_labels)) for name, p in probes.items()}


def linear_probe() -> Pipeline:
    """Return a logistic regression on standardized features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500, tol=1e-3))


def nearest_probe() -> KNeighborsClassifier:
    """Return a nearest-neighbor classifier with distance weights."""
    return KNeighborsClassifier(n_neighbors=N_NEIGHBORS, weights="distance")


def nearest_class(
    centroids: NDArray[np.floating], embeddings: NDArray[np.floating], labels: ArrayLike, *, n_neighbors: int = 10
) -> NDArray[np.int64]:
    """Assign each centroid the most common class among its nearest labeled samples (arXiv:2405.15613 Fig. 4).

    Parameters
    ----------
    centroids : ndarray, shape (n_clusters, n_features)
    embeddings : ndarray, shape (n_samples, n_features)
        The labeled samples.
    labels : array-like of int, shape (n_samples,)
    n_neighbors : int, default=10
        Samples that vote; the nearer class wins a tie.

    Returns
    -------
    ndarray of int64, shape (n_clusters,)

    Raises
    ------
    InputError
        If there are fewer samples than `n_neighbors`, or not one label per sample.

    Examples
    --------
    >>> samples = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]])
    >>> nearest_class(np.array([[0.3], [4.0]]), samples, [0, 0, 0, 1, 1], n_neighbors=2)
    array([0, 1])
    """
    classes = np.asarray(labels)
    problems = []
    if classes.shape != (len(embeddings),):
        problems.append(f"labels={classes.shape} should have the shape ({len(embeddings)},); give one per sample")
    if not 1 <= n_neighbors <= len(embeddings):
        problems.append(f"n_neighbors={n_neighbors} should be in 1…{len(embeddings)}; as many samples are labeled")
    if problems:
        raise InputError(problems)
    near = NearestNeighbors(n_neighbors=n_neighbors).fit(embeddings)
    votes = classes[near.kneighbors(centroids, return_distance=False)]
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
    return votes[np.arange(len(votes)), counts.argmax(axis=1)].astype(np.int64)
