"""Inner loops of the greedy k-means++ walk over a few weighted points."""

from __future__ import annotations

import numpy as np
from numba import njit

from hkm_dask.compute.jit import first_above, kernel
from hkm_dask.kmeans.search.int16_gemm import PANEL, write_scores

#: Columns of a table that are written at once, and again the other way.
_COLUMNS = 64


@njit(inline="always")
def _distances_from(point, between, columns, out):  # type: ignore[no-untyped-def]
    """Squared distances of one point to all: looked up in `between`, or made from `columns` where that is empty."""
    if between.shape[0] > 0:
        for i in range(out.shape[0]):
            out[i] = between[point, i]
        return
    for i in range(out.shape[0]):
        out[i] = np.float32(0.0)
    for f in range(columns.shape[0]):
        column = columns[f]
        value = column[point]
        for i in range(out.shape[0]):
            t = column[i] - value
            out[i] += t * t


@njit(inline="always")
def _potential(weights, closest, row):  # type: ignore[no-untyped-def]
    """Weighted sum of the squared distances to the nearest center, in eight interleaved float64 sums of fixed order."""
    n = closest.shape[0]
    whole = n - n % 8
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
    for i in range(0, whole, 8):
        a0 += weights[i] * np.float64(min(closest[i], row[i]))
        a1 += weights[i + 1] * np.float64(min(closest[i + 1], row[i + 1]))
        a2 += weights[i + 2] * np.float64(min(closest[i + 2], row[i + 2]))
        a3 += weights[i + 3] * np.float64(min(closest[i + 3], row[i + 3]))
        a4 += weights[i + 4] * np.float64(min(closest[i + 4], row[i + 4]))
        a5 += weights[i + 5] * np.float64(min(closest[i + 5], row[i + 5]))
        a6 += weights[i + 6] * np.float64(min(closest[i + 6], row[i + 6]))
        a7 += weights[i + 7] * np.float64(min(closest[i + 7], row[i + 7]))
    for i in range(whole, n):
        a0 += weights[i] * np.float64(min(closest[i], row[i]))
    return ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7))


@kernel("i8(f4[:,::1], f4[:,::1], f8[::1], f8[:,::1], i8[::1], f8[::1], f4[::1], i8)")
def greedy_walk(between, columns, weights, draws, chosen, left, closest, first):  # type: ignore[no-untyped-def]
    """Greedy k-means++: of several points drawn by weighted D², keep the one that leaves the least; until none is left.

    `between` holds all squared distances, or is empty and they are made from the coordinates `columns` (n_features,
    n_points). `draws` are uniform numbers, a row of trials per center; the first center takes the first of its row.
    Writes the points `chosen` (n_clusters,) and the weighted sum of D² that each choice `left`; returns their number.
    A walk may be made piece by piece: then the pieces have the rows from `first` on, and `closest` (n_points,) between
    them, the squared distances to the centers so far.
    """
    n_points = weights.shape[0]
    reach = np.empty(n_points)
    if first == 0:
        for i in range(n_points):
            closest[i] = np.float32(np.inf)
    row = np.empty(n_points, np.float32)
    best_row = np.empty(n_points, np.float32)
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
            _distances_from(point, between, columns, row)
            potential = _potential(weights, closest, row)
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
    """Share centers out to groups one by one: each goes to a group drawn by the D² that its centers so far leave.

    Of several groups drawn for a center, the one whose next center takes away the most gets it, as one greedy walk over
    all groups would have it. Returns how many centers were shared out: fewer than there are rows of `draws` where
    nothing is left in any group.

    Parameters
    ----------
    left : ndarray of float64, shape (n_groups, n_steps)
        What the walk of each group leaves after its first center, its second, …
    walked : ndarray of int64, shape (n_groups,)
        Centers each group was walked for, at least one; what follows in `left` means nothing.
    draws : ndarray of float64, shape (n_clusters, n_trials)
        In (0, 1).
    taken : ndarray of int64, shape (n_groups,)
        Written to: the centers of each group, one in each to begin with. Where that is more than `walked`, all are
        estimates, as if every further center of the group took away as much as its last.
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
            # Rounding may point beyond the last group that has something left.
            group = min(first_above(reach, draws[step, trial] * total), n_groups - 1)
            while not rest[group] > 0.0:
                group -= 1
            if best < 0 or gain[group] > gain[best]:
                best = group
            if taken[group] >= walked[group]:  # what it would gain is not known, so it is to be walked further
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


@njit(inline="always")
def _coarse(product, norm_a, norm_b, square):  # type: ignore[no-untyped-def]
    """Squared distance in float32; 0 where rounding could have made the difference."""
    squared = product + np.float32(norm_a) + np.float32(norm_b)
    return squared * square if squared > np.float32(512.0) else np.float32(0.0)


@kernel("void(i2[:,::1], f8[::1], f4[:,::1], i2[::1], f4[::1], f8, i8, i8, f4[:,::1], f4[:,::1])")
def coarse_pairs(grid, norms, tails, panels, zeros, step, low, high, scores, out):  # type: ignore[no-untyped-def]
    """Write the squared distances of points `low` up to `high` to those from `low` on, both ways, into a table.

    Points are whole numbers of 16 bits, in steps, with squared `norms`, and all are in `panels`; `tails` and `zeros`
    are zeros for `int16_gemm.score`, and `scores` is written over.
    """
    n_points, height, square = grid.shape[0], scores.shape[0], np.float32(step * step)
    for start in range(low, high, height):
        stop, panel = min(start + height, high), start // PANEL
        write_scores(
            grid, grid.shape[1], np.arange(start, stop), tails, panels, zeros, zeros, np.float32(-2.0), panel,
            (n_points + PANEL - 1) // PANEL - panel, scores,
        )  # fmt: skip
        for left in range(start, n_points, _COLUMNS):
            right = min(left + _COLUMNS, n_points)
            for i in range(start, stop):
                for j in range(left, right):
                    out[i, j] = _coarse(scores[i - start, j - panel * PANEL], norms[j], norms[i], square)
            for j in range(max(left, stop), right):
                for i in range(start, stop):
                    out[j, i] = _coarse(scores[i - start, j - panel * PANEL], norms[i], norms[j], square)
