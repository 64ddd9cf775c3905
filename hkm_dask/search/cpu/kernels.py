"""The inner loops of the CPU engine, compiled by numba: they release the GIL, and start no threads of their own.

Every kernel is deterministic.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from hkm_dask.compute.jit import first_not_below, kernel
from hkm_dask.search.distance import squared_distance
from hkm_dask.search.int16_gemm import BOUNDS_ARE_LOOSE, PACKED, PANEL, inner_product, write_bounds
from hkm_dask.search.simd import LANES, least_of_lanes, lowest_bit, mask_not_above

#: Bound on float32 underflow in a score, even if 2**18 products are flushed to zero.
_UNDERFLOW = 2.0**-108


@kernel("void(f4[:,::1], f4[:,::1], b1[::1], i4[::1], f8[::1])")
def label_distances(rows, centroids, stayed, labels, distances):  # type: ignore[no-untyped-def]
    """Write each row's squared distance to the centroid of its label; infinity if it has no label.

    Distances to centroids that `stayed` (n_clusters,) are not recomputed; if that is empty, all are.
    """
    any_stayed = stayed.shape[0] > 0
    for i in range(rows.shape[0]):
        if labels[i] < 0 or np.isnan(centroids[labels[i], 0]):
            distances[i] = np.inf
        elif not (any_stayed and stayed[labels[i]]):
            distances[i] = squared_distance(rows[i], centroids[labels[i]])


@njit(inline="always")
def _minimum(values):  # type: ignore[no-untyped-def]
    n = values.shape[0]
    least = values[0]
    whole = n - n % LANES
    for start in range(0, whole, LANES):
        least = min(least, least_of_lanes(values, start))
    for j in range(whole, n):
        least = min(least, values[j])
    return least


@njit(inline="always")
def _mask(values, start, limit):  # type: ignore[no-untyped-def]
    """Return the bit mask of the values (at most 64) from `start` on that are at most `limit`."""
    if start + LANES <= values.shape[0]:
        return mask_not_above(values, start, limit)
    mask = np.uint64(0)
    for j in range(start, values.shape[0]):
        mask |= np.uint64(values[j] <= limit) << np.uint64(j - start)
    return mask


@njit(inline="always")
def score_limit(distance: float, norm: float, error: float, gamma: float, largest: float) -> np.float32:
    """Return the largest possible score of a centroid no further than `distance` from the row, rounding included."""
    radius = np.sqrt(distance) * (1.0 + 1e-12) + error
    slack = gamma * (2.0 * np.sqrt(norm) + largest) * largest + 2.0**-22 * (norm + radius * radius)
    return np.float32(radius * radius - norm + slack + _UNDERFLOW)


@njit(inline="always")
def _refined(  # type: ignore[no-untyped-def]
    score, constant, matrix, residual_norms, i, centroid_matrix, centroid_residual_norms, j, n_head, n_refine, step
):
    """Return the score of a pair with further coordinates multiplied in place of part of the residual norms.

    A loose bound does not help: then all coordinates are multiplied, from the score of none, `constant` less the norms.
    """
    at, to = 0 if BOUNDS_ARE_LOOSE else n_head // 16, n_refine // 16
    before = np.float64(residual_norms[i, at]) * np.float64(centroid_residual_norms[j, at])
    after = np.float64(residual_norms[i, to]) * np.float64(centroid_residual_norms[j, to])
    product = -2.0 * step * step * np.float64(inner_product(matrix, i, centroid_matrix, j, 16 * at, n_refine))
    base = np.float64(constant) - 2.0 * before if BOUNDS_ARE_LOOSE else np.float64(score)
    return base + 2.0 * (before - after) + product


@njit(inline="always")
def _is_refined(n_head, n_refine):  # type: ignore[no-untyped-def]
    return n_refine > (0 if BOUNDS_ARE_LOOSE else n_head)


@njit
def _settle(  # type: ignore[no-untyped-def]
    scores, n_scores, rows, which, places, centroids, numbers, first, matrix, residual_norms, centroid_matrix,
    centroid_residual_norms, constants, n_head, n_refine, step, norms, errors, centroid_error, gamma, largest, labels,
    distances,
):  # fmt: skip
    """See `finish_nearest`; `constants` are those of the scores."""
    n_passed = 0
    n_measured = 0
    for i in range(which.shape[0]):
        row = rows[which[i]]
        place = places[i]
        score = scores[i, :n_scores]
        label = labels[which[i]]
        best = distances[which[i]]
        error = errors[place] + centroid_error
        if best == np.inf:
            least = _minimum(score)
            j = 0
            while j + 1 < n_scores and score[j] != least:
                j += 1
            label = numbers[first + j]
            best = squared_distance(row, centroids[first + j])
            n_measured += 1
        limit = score_limit(best, norms[place], error, gamma, largest)
        for start in range(0, n_scores, LANES):
            mask = _mask(score, start, limit)
            while mask != 0:
                j = start + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                c = first + j
                if numbers[c] == label or score[j] > limit:  # the limit may have dropped since the mask was made
                    continue
                n_passed += 1
                if _is_refined(n_head, n_refine) and limit < _refined(
                    score[j], constants[c], matrix, residual_norms, place, centroid_matrix, centroid_residual_norms, c,
                    n_head, n_refine, step,
                ):  # fmt: skip
                    continue
                distance = squared_distance(row, centroids[c])
                n_measured += 1
                if distance < best or (distance == best and numbers[c] < label):
                    best = distance
                    label = numbers[c]
                    limit = score_limit(best, norms[place], error, gamma, largest)
        labels[which[i]] = label
        distances[which[i]] = best
    return n_passed, n_measured


@kernel(
    "UniTuple(i8, 2)(f4[:,::1], i8, f4[:,::1], i8[::1], i8[::1], f4[:,::1], i4[::1], i8, i2[:,::1], f4[:,::1],"
    " i2[:,::1], f4[:,::1], i8, i8, f8, f8[::1], f8[::1], f8, f8, f8, i4[::1], f8[::1])"
)
def finish_nearest(  # type: ignore[no-untyped-def]
    scores, n_scores, rows, which, places, centroids, numbers, first, matrix, residual_norms, centroid_matrix,
    centroid_residual_norms, n_head, n_refine, step, norms, errors, centroid_error, gamma, largest, labels, distances,
):  # fmt: skip
    """Find the nearest centroid of some rows from scores that are lower bounds up to rounding.

    A score is the squared distance minus the row's squared norm, or a lower bound on that. A pair whose score may beat
    the best distance so far gets a bound with more coordinates, if there are any, and if that may still beat it, the
    distance is computed directly; ties go to the lowest number.

    Line i of `scores` belongs to row ``which[i]``, and column j to centroid ``first + j``, whose number for the caller
    is in `numbers` (increasing). `labels` and `distances` hold the best so far and are updated; ``inf`` means unknown.
    `largest` is the largest norm of a centroid, `gamma` the relative error of a score.

    Parameters
    ----------
    scores : ndarray of float32, shape (n_lines or more, n_scores or more)
    which, places : ndarray of int64, shape (n_lines,)
        The row of each line, and its position in `matrix`, `residual_norms`, `norms` and `errors`, which are those
        of the rows' `operand.Operand`.
    matrix, centroid_matrix : ndarray of int16, shape (n, n_columns)
    residual_norms, centroid_residual_norms : ndarray of float32, shape (n, n_columns // 16 + 1)
        Of rows and centroids, as an `Operand` holds them.
    n_head, n_refine : int
        Columns in the scores, and columns used before computing a distance directly; 0 in the plain form.
    step : float
        Width of the 16-bit grid.
    centroid_error : float
        Bound on the error of any centroid.

    Returns
    -------
    n_passed, n_measured : int
        Pairs not excluded by the scores, and distances computed directly.
    """
    return _settle(
        scores, n_scores, rows, which, places, centroids, numbers, first, matrix, residual_norms, centroid_matrix,
        centroid_residual_norms, np.empty(0, np.float32), n_head, n_refine, step, norms, errors, centroid_error, gamma,
        largest, labels, distances,
    )  # fmt: skip


@kernel(
    "UniTuple(i8, 2)(f4[:,::1], i8[::1], i8[::1], i2[:,::1], f4[:,::1], f8[::1], f8[::1], f4[:,::1], i4[::1],"
    f" i2[:,::1], f4[:,::1], {PACKED}, f8[::1], f4[::1], f4[::1], i8, i8, f8, f8, f8, f8, f4[:,::1], i4[::1], f8[::1])"
)
def search_nearest(  # type: ignore[no-untyped-def]
    rows, which, places, matrix, residual_norms, norms, errors, centroids, numbers, centroid_matrix,
    centroid_residual_norms, panels, rounding, constants, slopes, n_head, n_refine, step, centroid_error, gamma,
    largest, scores, labels, distances,
):  # fmt: skip
    """Find the nearest centroid of some rows by bounds of the pruned form, computed one tile at a time.

    `panels`, `rounding`, `constants` and `slopes` are as for `int16_gemm.write_bounds`; `scores` (n_lines, n_columns)
    is scratch space for whole blocks of rows and panels of centroids, plus 16 columns. The other arguments are as for
    `finish_nearest`.
    """
    n_passed, n_measured = 0, 0
    height, width = scores.shape[0], scores.shape[1] - 16
    scale = np.float32(-2.0 * step * step)
    for first in range(0, centroids.shape[0], width):
        n_scores = min(width, centroids.shape[0] - first)
        for low in range(0, which.shape[0], height):
            some, lines = which[low : low + height], places[low : low + height]
            write_bounds(
                matrix, n_head, lines, residual_norms, panels, rounding, constants, slopes, scale, first // PANEL,
                (n_scores + PANEL - 1) // PANEL, scores,
            )  # fmt: skip
            passed, measured = _settle(
                scores, n_scores, rows, some, lines, centroids, numbers, first, matrix, residual_norms,
                centroid_matrix, centroid_residual_norms, constants, n_head, n_refine, step, norms, errors,
                centroid_error, gamma, largest, labels, distances,
            )  # fmt: skip
            n_passed += passed
            n_measured += measured
    return n_passed, n_measured


@kernel("void(f4[:,::1], i8[::1], f4[:,::1], i4[::1], i4[::1], f8[::1])")
def measure_nearest(rows, which, centroids, numbers, labels, distances):  # type: ignore[no-untyped-def]
    """Find the nearest centroid of each row by computing all distances; arguments are as for `finish_nearest`."""
    for i in which:
        for c in range(centroids.shape[0]):
            distance = squared_distance(rows[i], centroids[c])
            if distance < distances[i] or (distance == distances[i] and numbers[c] < labels[i]):
                distances[i] = distance
                labels[i] = numbers[c]


@kernel("i8(f4[:,::1], i8[::1], f4[:,::1], i4[::1], f4[::1], i8[::1], i8, i4[::1], f8[::1])")
def sweep_nearest(rows, which, centroids, numbers, places, order, axis, labels, distances):  # type: ignore[no-untyped-def]
    """Find the nearest centroid of each row by a sweep outward from its position on one axis; for few features.

    `places` are the centroids' coordinates on that axis, sorted, and `order` their indices. The sweep ends when the
    distance along the axis alone exceeds the best so far. The other arguments are as for `finish_nearest`.
    """
    n = order.shape[0]
    n_measured = 0
    for i in which:
        row = rows[i]
        place = row[axis]
        label = labels[i]
        best = distances[i]
        up = first_not_below(places, place)
        down = up - 1
        while up < n or down >= 0:
            gap_up = np.float64(places[up]) - np.float64(place) if up < n else np.inf
            gap_down = np.float64(place) - np.float64(places[down]) if down >= 0 else np.inf
            gap = min(gap_up, gap_down)
            if gap * gap * (1.0 - 1e-12) > best:
                break
            if gap_up <= gap_down:
                j = order[up]
                up += 1
            else:
                j = order[down]
                down -= 1
            distance = squared_distance(row, centroids[j])
            n_measured += 1
            if distance < best or (distance == best and numbers[j] < label):
                best = distance
                label = numbers[j]
        labels[i] = label
        distances[i] = best
    return n_measured


@kernel("void(f4[:,::1], i4[::1], i8[::1], f8, i8[:,::1], i8[::1])")
def add_rows(rows, labels, weights, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Add rows, in fixed point, to the sums of their clusters; rows labeled -1 are ignored.

    `weights` is empty if all are 1; `scale` is the number of fixed-point units per unit of a value, see
    `Geometry.scale`. `sums` (n_clusters, n_features) and `counts` (n_clusters,) are updated.
    """
    weighted = weights.shape[0] > 0
    for i in range(rows.shape[0]):
        j = labels[i]
        if j < 0:
            continue
        w = weights[i] if weighted else 1
        counts[j] += w
        for f in range(rows.shape[1]):
            sums[j, f] += w * np.int64(np.rint(np.float64(rows[i, f]) * scale))


@kernel("i8(f4[:,::1], i4[::1], i4[::1], i8[::1], f8, i8[:,::1], i8[::1])")
def move_rows(rows, before, after, weights, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Update sums for the rows whose label changed; exact, since the sums are integers.

    `before` and `after` are labels, none of them -1; other arguments are as for `add_rows`. Returns the number of those
    rows.
    """
    weighted = weights.shape[0] > 0
    n_moved = 0
    for i in range(rows.shape[0]):
        a = before[i]
        b = after[i]
        if a == b:
            continue
        n_moved += 1
        w = weights[i] if weighted else 1
        counts[a] -= w
        counts[b] += w
        for f in range(rows.shape[1]):
            value = w * np.int64(np.rint(np.float64(rows[i, f]) * scale))
            sums[a, f] -= value
            sums[b, f] += value
    return n_moved


@kernel("void(f4[:,::1], f8[::1], b1[::1])")
def accept_in_order(rows, limits, accepted):  # type: ignore[no-untyped-def]
    """Clear `accepted` for every row within its limit, a squared distance, of an accepted row before it."""
    for i in range(rows.shape[0]):
        if accepted[i]:
            for j in range(i + 1, rows.shape[0]):
                if accepted[j] and squared_distance(rows[i], rows[j]) <= limits[j]:
                    accepted[j] = False


@kernel(
    f"void(f4[:,::1], f8[::1], i2[:,::1], f4[:,::1], f8[::1], f8[::1], {PACKED}, f8[::1], f4[::1], f4[::1], i8, i8, f8,"
    " f8, f8, f8, f4[:,::1], b1[::1])"
)
def accept_by_scores(  # type: ignore[no-untyped-def]
    rows, limits, matrix, residual_norms, norms, errors, panels, rounding, constants, slopes, n_head, n_refine, step,
    error, gamma, largest, scores, accepted,
):  # fmt: skip
    """Do what `accept_in_order` does for rows all accepted at first, measuring only pairs that scores do not exclude.

    The rows are the centroids of an index, `matrix` to `errors` are those of its `operand.Operand`, and the other
    arguments are as for `search_nearest`.
    """
    everywhere = np.arange(rows.shape[0])
    scale = np.float32(-2.0 * step * step)
    for low in range(0, rows.shape[0], scores.shape[0]):
        lines = everywhere[low : low + scores.shape[0]]
        n_panels = (lines[-1] + PANEL) // PANEL
        write_bounds(
            matrix, n_head, lines, residual_norms, panels, rounding, constants, slopes, scale, 0, n_panels, scores
        )  # fmt: skip
        for i in lines:
            score = scores[i - low, :i]
            limit = score_limit(limits[i], norms[i], errors[i] + error, gamma, largest)
            start = 0
            while accepted[i] and start < i:
                mask = _mask(score, start, limit)
                while accepted[i] and mask != 0:
                    j = start + lowest_bit(mask)
                    mask &= mask - np.uint64(1)
                    if not accepted[j]:
                        continue
                    if _is_refined(n_head, n_refine) and limit < _refined(
                        score[j], constants[j], matrix, residual_norms, i, matrix, residual_norms, j, n_head, n_refine,
                        step,
                    ):  # fmt: skip
                        continue
                    accepted[i] = squared_distance(rows[i], rows[j]) > limits[i]
                start += LANES


@kernel("void(i8[:,::1], i8[::1], f8, f4[:,::1])")
def divide(sums, counts, scale, out):  # type: ignore[no-untyped-def]
    """Divide fixed-point sums by counts: float32 means (n_clusters, n_features), 0 for empty clusters."""
    for j in range(sums.shape[0]):
        share = np.float64(max(counts[j], 1)) * scale
        for f in range(sums.shape[1]):
            out[j, f] = np.float32(np.float64(sums[j, f]) / share)
