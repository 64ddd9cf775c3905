"""A group of points on a grid of 16 bits, as a device takes it for a greedy walk."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hkm_dask.kmeans.search import int16_gemm

#: Points chosen, in order, and the weighted sum of D² that each choice left.
Walked = tuple[NDArray[np.int64], NDArray[np.float64]]
#: Squares of a step for which all squared distances but 0 are normal numbers of float32.
_LEAST_SQUARE, _LARGEST_SQUARE = 2.0**-126, 2.0**94
#: Features below which a distance is made as fast as it is looked up in a table.
LEAST_FEATURES = 16
#: Coordinates of a point are filled up to a multiple of these.
_DEPTH = 16


@dataclass(frozen=True)
class GridWalk:
    """What a walk over a group needs."""

    grid: NDArray[np.int16]  # (n_points, width): points in steps from their middle, and zeros
    norms: NDArray[np.float32]  # (n_points,): their squared norms
    square: np.float32  # of a step
    weights: NDArray[np.float64]  # (n_points,)
    draws: NDArray[np.float64]  # (n_steps, n_trials): uniform numbers
    n_features: int

    @property
    def n_points(self) -> int:
        """Points of the group."""
        return len(self.grid)

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory it takes: squared distances between points, the points, what steps need and give."""
        n = self.n_points
        return 4 * n * n + 2 * self.grid.size + 12 * n + 8 * self.draws.size + 12 * len(self.draws)

    def first(self, n_points: int, n_steps: int) -> GridWalk:
        """The walk over the first points alone, so many steps."""
        some = slice(n_points)
        return replace(
            self, grid=self.grid[some], norms=self.norms[some], weights=self.weights[some], draws=self.draws[:n_steps]
        )


def grid_walk(
    centered: NDArray[np.float64], largest: float, weights: NDArray[np.int64], draws: NDArray[np.float64]
) -> GridWalk | None:
    """The walk over points about their middle, the largest of which has this norm; None where squares leave float32.

    Examples
    --------
    >>> points = np.outer([-2.0, 0.0, 2.0], np.ones(16))
    >>> walk = grid_walk(points, 8.0, np.ones(3, np.int64), np.full((2, 1), 0.5))
    >>> walk.grid[:, 0].tolist(), np.rint(walk.norms * walk.square).tolist()
    ([-8191, 0, 8191], [64.0, 0.0, 64.0])
    >>> walk.device_bytes
    208
    """
    grid, norms, step = to_grid(centered, largest)
    if not _LEAST_SQUARE <= step * step <= _LARGEST_SQUARE:
        return None
    square, n_features = np.float32(step * step), centered.shape[1]
    return GridWalk(grid, norms.astype(np.float32), square, weights.astype(np.float64), draws, n_features)


def to_grid(centered: NDArray[np.float64], largest: float) -> tuple[NDArray[np.int16], NDArray[np.float64], float]:
    """Points about their middle as whole steps of 16 bits, filled up with zeros; their squared norms, and the step.

    `largest` is the norm of the largest point.
    """
    n, d = centered.shape
    step = largest / (int16_gemm.LARGEST - math.ceil(math.sqrt(d)))  # rounding may make a row longer
    steps = centered / step
    np.rint(steps, out=steps)
    grid = np.zeros((n, -(-d // _DEPTH) * _DEPTH), np.int16)
    grid[:, :d] = steps
    return grid, np.einsum("ij,ij->i", steps, steps), step  # of whole numbers: exact in any order
