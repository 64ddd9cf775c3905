"""Class balance of a sample, and of the clusters of a level, given the labels of some samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hkm_dask.errors import InputError


@dataclass(frozen=True)
class ClassBalance:
    """How evenly samples are distributed over classes.

    Attributes
    ----------
    entropy : float
        Entropy of the class frequencies divided by its maximum, log(n_classes): 1 if all are equally frequent, 0 if
        there is only one class.
    kl_to_uniform : float
        Kullback-Leibler divergence of the frequencies from uniform ones, in nats.
    gini : float
        Gini coefficient of the class sizes: 0 if all are equal, near 1 if one class has all samples.
    n_missed : int
        Number of classes without a sample.
    """

    entropy: float
    kl_to_uniform: float
    gini: float
    n_missed: int


def class_balance(labels: ArrayLike, n_classes: int) -> ClassBalance:
    """Measure how evenly samples are distributed over classes.

    Parameters
    ----------
    labels : array-like of int, shape (n_samples,)
        Class of each sample, from 0.
    n_classes : int
        Number of classes, including those without a sample; at least 2.

    Returns
    -------
    ClassBalance

    Raises
    ------
    InputError
        If there are no labels, if labels are outside of 0 … n_classes - 1, or if there are fewer than two classes.

    Examples
    --------
    >>> class_balance([0, 0, 0, 0, 1, 1, 1, 1], 2)
    ClassBalance(entropy=1.0, kl_to_uniform=0.0, gini=0.0, n_missed=0)
    >>> class_balance([0, 0, 0, 1], 4)
    ClassBalance(entropy=0.405..., kl_to_uniform=0.823..., gini=0.625, n_missed=2)
    """
    return size_balance(_count_classes(labels, n_classes))


def size_balance(sizes: NDArray[np.int64]) -> ClassBalance:
    """Measure how even the sizes of at least two classes are; not all sizes may be 0.

    >>> size_balance(np.array([3, 0, 0, 1])).n_missed
    2
    """
    n_classes = len(sizes)
    share = sizes[sizes > 0] / sizes.sum()
    entropy = float(-(share * np.log(share)).sum()) + 0.0  # avoids -0.0
    largest = float(np.log(n_classes))
    return ClassBalance(
        entropy=entropy / largest,
        kl_to_uniform=max(0.0, largest - entropy),
        gini=gini(sizes),
        n_missed=int((sizes == 0).sum()),
    )


def gini(sizes: NDArray[np.number]) -> float:
    """Compute the Gini coefficient of sizes, not all 0: half the mean difference of two, relative to the mean.

    Examples
    --------
    >>> gini(np.array([5, 5, 5])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    n = len(sizes)
    rank = 2 * np.arange(1, n + 1) - n - 1
    return max(0.0, float((rank * np.sort(sizes)).sum() / (n * sizes.sum())))


@dataclass(frozen=True)
class ClassClusters:
    """The clusters of one level by class (arXiv:2405.15613 Fig. 4).

    Attributes
    ----------
    n_clusters : ndarray of int64, shape (n_classes,)
        Number of clusters whose centroid lies among samples of the class.
    mean_size : ndarray of float64, shape (n_classes,)
        Mean size of these clusters; NaN if there are none.
    """

    n_clusters: NDArray[np.int64]
    mean_size: NDArray[np.float64]


def clusters_per_class(classes: ArrayLike, sizes: ArrayLike, n_classes: int) -> ClassClusters:
    """Count the clusters of each class, and compute their mean sizes.

    Parameters
    ----------
    classes : array-like of int, shape (n_clusters,)
        Class of each cluster.
    sizes : array-like of int, shape (n_clusters,)
        Samples in each cluster.
    n_classes : int

    Returns
    -------
    ClassClusters

    Raises
    ------
    InputError
        If the classes are invalid, or there is not exactly one size per cluster.

    Examples
    --------
    >>> clusters_per_class([0, 0, 1], [10, 20, 3], 3)
    ClassClusters(n_clusters=array([2, 1, 0]), mean_size=array([15.,  3., nan]))
    """
    counts = _count_classes(classes, n_classes)
    weights = np.asarray(sizes, dtype=np.float64)
    if weights.shape != (int(counts.sum()),):
        raise InputError(f"sizes={weights.shape} should have the shape of classes; give one size per cluster")
    totals = np.bincount(np.asarray(classes), weights=weights, minlength=n_classes)
    mean = np.divide(totals, counts, out=np.full(n_classes, np.nan), where=counts > 0)
    return ClassClusters(n_clusters=counts, mean_size=mean)


def _count_classes(labels: ArrayLike, n_classes: int) -> NDArray[np.int64]:
    """Count the samples of each class; InputError for invalid labels."""
    values = np.asarray(labels)
    problems = []
    if n_classes < 2:
        problems.append(f"n_classes={n_classes} should be >= 2; evenness needs something to compare")
    if values.ndim != 1 or values.size == 0 or not np.issubdtype(values.dtype, np.integer):
        problems.append(
            f"labels={values.dtype.name} of shape {values.shape} should be integers of shape (n_samples,), not empty;"
            " number the classes from 0"
        )
    elif values.min() < 0 or values.max() >= n_classes:
        problems.append(
            f"labels={int(values.min())}…{int(values.max())} should be in 0…{n_classes - 1}; number the classes from 0"
        )
    if problems:
        raise InputError(problems)
    return np.bincount(values, minlength=n_classes).astype(np.int64)
