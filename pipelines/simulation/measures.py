"""Measures: divergence of a density estimate from uniform, total variation, entropy, mean and spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

SQUARE = 3.0  # Ω = [-3, 3]² (arXiv:2405.15613 §4.1)
BANDWIDTH = 0.5
STEP = 0.02
AXIS = np.linspace(-SQUARE, SQUARE, round(2 * SQUARE / STEP) + 1)


class Spread(TypedDict):
    """A figure over all seeds, as written to JSON."""

    mean: float
    sd: float
    values: list[float]


def spread(values: Sequence[float]) -> Spread:
    """Return the mean, standard deviation and values of a figure.

    Parameters
    ----------
    values : sequence of float
        One per seed.

    Returns
    -------
    Spread
        `sd` is the sample standard deviation (n - 1), 0 for a single value.
    """
    numbers = [float(value) for value in values]
    deviation = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0
    return {"mean": float(np.mean(numbers)), "sd": deviation, "values": numbers}


def format_spread(result: Spread, digits: int = 4) -> str:
    """Format a figure as text.

    Parameters
    ----------
    result : Spread
    digits : int, default=4

    Returns
    -------
    str

    Examples
    --------
    >>> format_spread(spread([1.0, 2.0]), 2)
    '1.50 ± 0.71'
    """
    return f"{result['mean']:.{digits}f} ± {result['sd']:.{digits}f}"


def density(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Estimate the density of points with Gaussian kernels on a grid over the square.

    Parameters
    ----------
    points : ndarray of shape (n, 2)

    Returns
    -------
    ndarray of float64, shape (301, 301)
        Indexed by x, then y; sums to 1.
    """
    at = np.asarray(points, dtype=np.float64)
    x, y = (np.exp(-((AXIS[:, None] - at[:, i]) ** 2) / (2 * BANDWIDTH**2)) for i in (0, 1))
    result: NDArray[np.float64] = x @ y.T
    return result / result.sum()


def divergence(points: NDArray[np.floating]) -> float:
    """Return the Kullback-Leibler divergence of the density estimate of points from uniform on the square.

    Parameters
    ----------
    points : ndarray of shape (n, 2)

    Returns
    -------
    float
        In nats. Kernels extend over the border, so evenly spread points have 0.019, not 0.
    """
    return _to_uniform(density(points))


def law_divergence(true_density: NDArray[np.float64], power: float) -> float:
    """Return the divergence of infinitely many points whose density is proportional to a power of a density.

    Parameters
    ----------
    true_density : ndarray of float64, shape (301, 301)
        On the grid of `density`.
    power : float
        For the top centroids of T levels of k-means in the plane, (1/2)^T (arXiv:2405.15613 §3.3).

    Returns
    -------
    float
    """
    kernel = np.exp(-((AXIS[:, None] - AXIS) ** 2) / (2 * BANDWIDTH**2))
    return _to_uniform(kernel @ true_density**power @ kernel)


def _to_uniform(weights: NDArray[np.float64]) -> float:
    share = weights / weights.sum()
    return float((share * np.log(share * share.size)).sum())


def total_variation(counts: NDArray[np.integer], law: NDArray[np.float64]) -> float:
    """Return the total variation between a histogram and a law.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_bins,)
    law : ndarray of float64, shape (n_bins,)
        Sums to 1.

    Returns
    -------
    float
        From 0 to 1: the share of mass that would have to move.
    """
    return float(0.5 * np.abs(counts / counts.sum() - law).sum())


def entropy(counts: NDArray[np.integer] | NDArray[np.float64]) -> float:
    """Return the entropy of a histogram.

    Parameters
    ----------
    counts : ndarray of shape (n_bins,)

    Returns
    -------
    float
        In nats.
    """
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
