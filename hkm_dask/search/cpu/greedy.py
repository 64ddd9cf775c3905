"""Greedy k-means++ over a few weighted points: its inner loops, and quantization of the points to a 16-bit grid."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hkm_dask.compute.jit import first_above, kernel
from hkm_dask.search.engine import GridWalk
from hkm_dask.search.int16_gemm import LARGEST, PACKED, PANEL, write_scores
from hkm_dask.search.simd import weighted_least

#: Bounds on the square of a grid step for which all nonzero squared distances are normal float32 numbers.
_LEAST_SQUARE, _LARGEST_SQUARE = 2.0**-126, 2.0**94
#: Coordinates are padded to a multiple of this.
_DEPTH = 16


@njit(inline="always")
def _distances_from(point, columns, out):  # type: ignore[no-untyped-def]
    """Write the squared distances of one point to all points, computed from their coordinates."""
    for i in range(out.shape[0]):
        out[i] = np.float32(0.0)
    for f in range(columns.shape[0]):
        column = columns[f]
        value = column[point]
        for i in range(out.shape[0]):
            t = column[i] - value
            out[i] += t * t


@kernel("i8(f4[:,::1], f4[:,::1], f8[::1], f8[:,::1], i8[::1], f8[::1], f4[::1], i8)")
def greedy_walk(between, columns, weights, draws, chosen, left, closest, first):  # type: ignore[no-untyped-def]
    """Greedy k-means++: of several points drawn by weighted D², keep the one that leaves the least, until D² is 0.

    `between` holds all squared distances, or is empty, and they are computed from the coordinates `columns`
    (n_features, n_points). `draws` are uniform random numbers, one row of trials per center; the first center uses only
    the first of its row. Writes the indices `chosen` (n_clusters,) and the weighted sum of D² `left` after each;
    returns the number of centers chosen. A walk may be run in pieces: each gets its rows of the arrays, `first` the
    number of its first center, and `closest` (n_points,) the squared distances to the centers so far.
    """
    n_points = weights.shape[0]
    reach = np.empty(n_points)
    if first == 0:
        for i in range(n_points):
            closest[i] = np.float32(np.inf)
    row, best_row = np.empty(n_points, np.float32), np.empty(n_points, np.float32)
    for step in range(chosen.shape[0]):
        total = 0.0
        for i in range(n_points):
            total += weights[i] if first + step == 0 else weights[i] * np.float64(closest[i])
            reach[i] = total
        if not total > 0.0:
            return step
        least = np.inf
        n_trials = 1 if first + step == 0 else draws.shape[1]
        for trial in range(n_trials):
            point = min(first_above(reach, draws[step, trial] * total), n_points - 1)
            if between.shape[0] > 0:
                row = between[point]
            else:
                _distances_from(point, columns, row)
            potential = weighted_least(weights, closest, row)
            if potential < least:
                least = potential
                chosen[step] = point
                row, best_row = best_row, row
        for i in range(n_points):
            closest[i] = min(closest[i], best_row[i])
        closest[chosen[step]] = 0.0
        left[step] = least
    return chosen.shape[0]


@kernel("i8(f8[:,::1], i8[::1], f8[:,::1], i8[::1])")
def take_turns(left, walked, draws, taken):  # type: ignore[no-untyped-def]
    """Allocate centers to groups one by one: each goes to a group drawn by the D² that its centers so far leave.

    Of several groups drawn for a center, by a row of `draws` in (0, 1), the one whose next center reduces D² most gets
    it, as in one greedy walk over all groups. `left` (n_groups, n_steps) is the D² left by each group's walk after its
    first center, its second, …; only the first `walked` values of a group are valid, at least one.

    `taken` receives the number of centers of each group, beginning with one each. If it exceeds `walked`, it is an
    estimate that assumes that every further center of the group reduces D² as much as its last. Returns the number of
    centers allocated, fewer than the rows of `draws` if no group has any D² left.
    """
    n_groups = left.shape[0]
    rest, gain, reach = np.empty(n_groups), np.empty(n_groups), np.empty(n_groups)
    n_taken = min(n_groups, draws.shape[0])
    for group in range(n_groups):
        taken[group] = 1 if group < n_taken else 0
        rest[group] = left[group, 0] if group < n_taken else 0.0
        gain[group] = rest[group] - left[group, 1] if walked[group] > 1 else 0.5 * rest[group]
    for step in range(n_taken, draws.shape[0]):
        total = 0.0
        for group in range(n_groups):
            total += rest[group]
            reach[group] = total
        if not total > 0.0:
            return step
        best = -1
        for trial in range(draws.shape[1]):
            # Rounding may select a position past the last group with D² left.
            group = min(first_above(reach, draws[step, trial] * total), n_groups - 1)
            while not rest[group] > 0.0:
                group -= 1
            if best < 0 or gain[group] > gain[best]:
                best = group
            if taken[group] >= walked[group]:  # its gain is unknown, so the group must be walked further
                best = group
                break
        n = taken[best] + 1
        taken[best] = n
        if n <= walked[best]:
            rest[best] = left[best, n - 1]
        else:
            rest[best] -= min(gain[best], 0.5 * rest[best])
        if n < walked[best]:
            gain[best] = rest[best] - left[best, n]
    return draws.shape[0]


@kernel("void(f8[:,::1], f8[::1], f8[::1], f8, f4[:,::1])")
def pair_distances(products, norms_a, norms_b, step, out):  # type: ignore[no-untyped-def]
    """Squared distances (n_a, n_b) from inner products and squared norms on a grid of width `step`."""
    for i in range(products.shape[0]):
        for j in range(products.shape[1]):
            out[i, j] = np.float32((norms_a[i] + norms_b[j] - 2.0 * products[i, j]) * (step * step))


@kernel(f"void(i2[:,::1], f4[:,::1], {PACKED}, f4[::1], f4[::1], f8, i8, i8, f4[:,::1], f4[:,::1])")
def coarse_pairs(grid, norms, panels, all_norms, ones, step, low, high, scores, out):  # type: ignore[no-untyped-def]
    """Write the squared distances of points ``low:high`` to all points into a table; 0 if they may be mere rounding.

    Points are 16-bit integers in grid steps, and `panels` holds all of them. Their squared norms are the last column of
    `norms`, as in `int16_gemm.score`, and `all_norms`, with as many `ones`; `scores` is scratch space.
    """
    n_points, square = grid.shape[0], np.float32(step * step)
    height, width = scores.shape[0], scores.shape[1] - 16
    for first in range(0, n_points, width):
        n_scores = min(width, n_points - first)
        for start in range(low, high, height):
            some = np.arange(start, min(start + height, high))
            write_scores(
                grid, grid.shape[1], some, norms, panels, all_norms, ones, np.float32(-2.0), first // PANEL,
                (n_scores + PANEL - 1) // PANEL, scores,
            )  # fmt: skip
            for i in range(some.shape[0]):
                squared, row = scores[i], out[start + i, first : first + n_scores]
                for j in range(n_scores):
                    row[j] = squared[j] * square if squared[j] > np.float32(512.0) else np.float32(0.0)


# -- quantization to a 16-bit grid -------------------------------------------------------------------------------------


def grid_walk(
    centered: NDArray[np.float64], largest: float, weights: NDArray[np.int64], draws: NDArray[np.float64]
) -> GridWalk | None:
    """Make the walk over centered points, with the norm of the largest; None if squares would overflow float32.

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
    """Quantize centered points to a 16-bit grid, padded with zeros; returns the grid, the squared norms and the step.

    `largest` is the norm of the largest point.
    """
    n, d = centered.shape
    step = largest / (LARGEST - math.ceil(math.sqrt(d)))  # leaves room for rows that rounding makes longer
    steps = centered / step
    np.rint(steps, out=steps)
    grid = np.zeros((n, -(-d // _DEPTH) * _DEPTH), np.int16)
    grid[:, :d] = steps
    return grid, np.einsum("ij,ij->i", steps, steps), step  # sums of integers, exact in any order
