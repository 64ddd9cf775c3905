"""Accuracy of a linear and a nearest-neighbor probe trained on a draw, on a class-balanced test set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

N_NEIGHBORS = 5
#: Of the linear probe, on standardized features; the same for every draw, so that none is tuned.
PENALTY = 0.01


def accuracies(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    test_embeddings: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> dict[str, float]:
    """Train both probes on the one set and score them on the other."""
    if len(np.unique(labels)) < 2:
        return {"linear": float((test_labels == labels[0]).mean()), "knn": float((test_labels == labels[0]).mean())}
    probes = {"linear": linear_probe(), "knn": nearest_probe()}
    return {name: float(p.fit(embeddings, labels).score(test_embeddings, test_labels)) for name, p in probes.items()}


def linear_probe() -> Pipeline:
    """A logistic regression on standardized features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500, tol=1e-3))


def nearest_probe() -> KNeighborsClassifier:
    """Nearest neighbors, the nearer the weightier."""
    return KNeighborsClassifier(n_neighbors=N_NEIGHBORS, weights="distance")
