"""Synthetic data: numbers (Fig. 2), points in the plane (Fig. 3), five rings, and the toy example of §3.2."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Fig. 2: size, mean and standard deviation of each group, and the interval to which it is truncated.
LINE = (
    (60_000, 2.0, 1.0, (0.0, 12.0)),
    (30_000, 5.0, 0.8, (0.0, 12.0)),
    (40_000, 9.0, 2.0, (0.0, 12.0)),
    (90_000, 20.0, 1.0, (17.0, 23.0)),
    (30_000, -10.0, 2.0, (-14.0, -7.0)),
)
LINE_RANGE = (-14.0, 23.0)
# Fig. 3: size and mean of each Gaussian; and the number of background points in the square [-3, 3]².
PLANE = ((7000, (-1.0, -1.0)), (1000, (1.0, -1.0)), (500, (0.0, 1.0)))
DEVIATION, BACKGROUND = 0.5, 500
# Five rings of the same area: points, inner radius. A ring's outer radius squared is its inner one squared plus 2.
RINGS = ((20_000, 1.0), (6_000, 2.0), (2_500, 3.0), (900, 4.0), (300, 5.0))
RING_AREA = 2 * math.pi


def toy() -> NDArray[np.float32]:
    """Return the numbers of arXiv:2405.15613 §3.2: 5000 evenly spaced in [0.9, 1.1], two at 2 and two at 3.

    Returns
    -------
    ndarray of float32, shape (5004, 1)
    """
    return np.concatenate([np.linspace(0.9, 1.1, 5000), [2, 2, 3, 3]]).astype(np.float32)[:, None]


def line_mixture(seed: int, *, share: float = 1.0) -> NDArray[np.float64]:
    """Draw the numbers of Figure 2, about 243,000 in three separate groups.

    Parameters
    ----------
    seed : int
    share : float, default=1.0
        Share of the paper's numbers to draw.

    Returns
    -------
    ndarray of float64, shape (n,)
        Sorted.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for n, mean, deviation, (low, high) in LINE:
        part = rng.normal(mean, deviation, round(share * n))
        parts.append(part[(part >= low) & (part <= high)])
    return np.sort(np.concatenate(parts))


def line_density(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the density of the numbers of Figure 2.

    Parameters
    ----------
    x : ndarray of float64

    Returns
    -------
    ndarray of float64
    """
    density, total = np.zeros_like(x), 0.0
    for n, mean, deviation, (low, high) in LINE:
        bell = np.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
        density += n * bell * ((x >= low) & (x <= high))
        total += n * (_below((high - mean) / deviation) - _below((low - mean) / deviation))
    return density / total


def line_law(edges: NDArray[np.float64], power: float, *, fineness: int = 1000) -> NDArray[np.float64]:
    """Return the share of each bin for a density proportional to a power of that of Figure 2.

    Parameters
    ----------
    edges : ndarray of float64, shape (n_bins + 1,)
    power : float
        By arXiv:2405.15613 §3.2, 1/3 for the centroids of k-means, 1/(1+s) for distances to the power s.
    fineness : int, default=1000
        Number of points per bin at which the density is evaluated.

    Returns
    -------
    ndarray of float64, shape (n_bins,)
    """
    inside = (np.arange(fineness) + 0.5) / fineness
    points = edges[:-1, None] + np.diff(edges)[:, None] * inside
    shares = (line_density(points) ** power).mean(axis=1) * np.diff(edges)
    return shares / shares.sum()


def plane_mixture(seed: int) -> NDArray[np.float32]:
    """Draw the points of Figure 3: three Gaussians and a uniform background.

    Parameters
    ----------
    seed : int

    Returns
    -------
    ndarray of float32, shape (9000, 2)
    """
    rng = np.random.default_rng(seed)
    parts = [rng.normal(mean, DEVIATION, (n, 2)) for n, mean in PLANE]
    parts.append(rng.uniform(-3, 3, (BACKGROUND, 2)))
    return np.concatenate(parts).astype(np.float32)


def plane_density(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the density of the points of Figure 3 inside the square.

    Parameters
    ----------
    axis : ndarray of float64, shape (n,)
        Grid of both coordinates, from -3 to 3.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Indexed by x, then y.
    """
    density = np.full((len(axis), len(axis)), BACKGROUND / 36)
    for n, mean in PLANE:
        x, y = (np.exp(-0.5 * ((axis - m) / DEVIATION) ** 2) / (DEVIATION * math.sqrt(2 * math.pi)) for m in mean)
        density += n * np.outer(x, y)
    return density / (sum(n for n, _ in PLANE) + BACKGROUND)


def rings(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw five concentric rings of the same area, with 20,000 to 300 points.

    Parameters
    ----------
    seed : int

    Returns
    -------
    points : ndarray of float32, shape (29700, 2)
    ring : ndarray of int64, shape (29700,)
        Ring of each point; the innermost is 0.
    """
    rng = np.random.default_rng(seed)
    ring = np.repeat(np.arange(len(RINGS)), [n for n, _ in RINGS])
    inner = np.array([radius for _, radius in RINGS])[ring]
    radius = np.sqrt(inner**2 + RING_AREA / math.pi * rng.random(len(ring)))
    angle = 2 * math.pi * rng.random(len(ring))
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points.astype(np.float32), ring


def _below(z: float) -> float:
    """Return the standard normal distribution function at z."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))
