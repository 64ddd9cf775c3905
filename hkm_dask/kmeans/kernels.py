"""The inner loops of the CPU path, compiled by numba: they release the GIL and start no threads of their own.

Every kernel is deterministic. The squared distance is *the* distance of this package: computed directly in float64, in eight
interleaved sums of fixed order, so that a label and a stored distance are functions of the row and the centroid alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config as numba_config
from numba import njit

#: Scores compared at once before looking which of them passed.
_LANES = 64
#: What float32 may lose in a score below its normal range, even if it flushes 2**18 products to zero.
_UNDERFLOW = 2.0**-108

_compiling = threading.Lock()


class _Kernel:
    """Compiles a function on its first call, with LLVM's straight-line vectoriser on.

    numba leaves that vectoriser off; with it the eight interleaved sums of `squared_distance` become vector
    instructions, in the same order of additions, and take a third of the time.
    """

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.__doc__ = function.__doc__
        self._function = function
        self._signature = signature
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self._compiled is None:
            self._compile()
        assert self._compiled is not None
        return self._compiled(*args)

    def _compile(self) -> None:
        with _compiling:
            if self._compiled is not None:
                return
            before = numba_config.SLP_VECTORIZE
            numba_config.SLP_VECTORIZE = 1
            try:
                self._compiled = njit(self._signature, nogil=True, cache=True)(self._function)
            finally:
                numba_config.SLP_VECTORIZE = before


def _kernel(signature: str) -> Callable[[Callable[..., Any]], _Kernel]:
    return lambda function: _Kernel(function, signature)


@njit(inline="always")
def squared_distance(x: np.ndarray, c: np.ndarray) -> float:
    """Squared L2 distance of two float32 vectors, computed directly in float64.

    Parameters
    ----------
    x, c : ndarray of float32, shape (n_features,)

    Returns
    -------
    float
    """
    n = x.shape[0]
    whole = n - n % 8
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
    for i in range(0, whole, 8):
        t = np.float64(x[i]) - np.float64(c[i])
        a0 += t * t
        t = np.float64(x[i + 1]) - np.float64(c[i + 1])
        a1 += t * t
        t = np.float64(x[i + 2]) - np.float64(c[i + 2])
        a2 += t * t
        t = np.float64(x[i + 3]) - np.float64(c[i + 3])
        a3 += t * t
        t = np.float64(x[i + 4]) - np.float64(c[i + 4])
        a4 += t * t
        t = np.float64(x[i + 5]) - np.float64(c[i + 5])
        a5 += t * t
        t = np.float64(x[i + 6]) - np.float64(c[i + 6])
        a6 += t * t
        t = np.float64(x[i + 7]) - np.float64(c[i + 7])
        a7 += t * t
    for i in range(whole, n):
        t = np.float64(x[i]) - np.float64(c[i])
        a0 += t * t
    return ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7))


@_kernel("void(f4[:,::1], f4[:,::1], i4[::1], f8[::1])")
def label_distances(rows, centroids, labels, distances):  # type: ignore[no-untyped-def]
    """Write each row's squared distance to the centroid it is labelled with; infinity where the label is -1."""
    for i in range(rows.shape[0]):
        if labels[i] < 0:
            distances[i] = np.inf
        else:
            distances[i] = squared_distance(rows[i], centroids[labels[i]])


@_kernel("void(f4[:,::1], f4[::1], f4[:,::1], f8[::1])")
def centre(rows, mean, out, norms):  # type: ignore[no-untyped-def]
    """Write rows minus mean into the first columns of `out`, 1 into the next one, and the squared norms."""
    n_features = rows.shape[1]
    for i in range(rows.shape[0]):
        total = 0.0
        for j in range(n_features):
            value = rows[i, j] - mean[j]
            out[i, j] = value
            total += np.float64(value) * np.float64(value)
        out[i, n_features] = 1.0
        norms[i] = total


@_kernel("void(f4[:,::1], f8[::1], f8, f4[:,::1], f8[::1], f8[::1])")
def contract(head, norms, relative_error, out, out_norms, errors):  # type: ignore[no-untyped-def]
    """Put heads and the norms of what they leave out into `out`, with a bound on how far off they are.

    `relative_error` bounds the error of a head as a share of the norm of its row. The row ``[head, tail norm, 1]`` lies
    within `errors` of the exact one.
    """
    h = head.shape[1]
    unit = 2.0**-24
    for i in range(head.shape[0]):
        total = 0.0
        for j in range(h):
            out[i, j] = head[i, j]
            total += np.float64(head[i, j]) * np.float64(head[i, j])
        norm = np.sqrt(norms[i])
        rest = max(norms[i] - total, 0.0)
        tail = np.float32(np.sqrt(rest))
        out[i, h] = tail
        out[i, h + 1] = 1.0
        out_norms[i] = total + np.float64(tail) * np.float64(tail)
        delta = relative_error * norm
        spread = delta * (2.0 * norm + delta)
        off = np.sqrt(spread)
        if rest > spread:
            off = spread / np.sqrt(rest)
        errors[i] = delta + off + 4.0 * unit * norm


@njit(inline="always", fastmath={"nnan", "nsz"})
def _minimum(values):  # type: ignore[no-untyped-def]
    least = values[0]
    for j in range(values.shape[0]):
        if values[j] < least:
            least = values[j]
    return least


@njit(inline="always")
def _threshold(distance, norm, error, gamma, largest):  # type: ignore[no-untyped-def]
    """Largest score a centroid may have that lies no further than `distance` from the row, rounding included."""
    radius = np.sqrt(distance) * (1.0 + 1e-12) + error
    slack = gamma * (2.0 * np.sqrt(norm) + largest) * largest + 2.0**-22 * (norm + radius * radius)
    return np.float32(radius * radius - norm + slack + _UNDERFLOW)


@_kernel("i8(f4[:,::1], f4[:,::1], f4[:,::1], i8, f8[::1], f8[::1], f8, f8, f8, i4[::1], f8[::1])")
def finish_nearest(  # type: ignore[no-untyped-def]
    scores, rows, centroids, first, norms, errors, centroid_error, gamma, largest, labels, distances
):
    """Settle the nearest centroid of each row from scores that are lower bounds up to rounding.

    A score is the squared distance less the row's squared norm, or a lower bound on that. Whatever could lie within the
    best distance so far is measured directly; ties go to the lowest index. Returns how many distances were measured.

    `labels` and `distances` hold the best so far and are brought up to date; ``inf`` means none yet. `first` is the index
    of the first centroid of this tile; `largest` the largest norm of a centroid; `gamma` the relative error of a score.
    """
    n_scores = scores.shape[1]
    n_measured = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        score = scores[i]
        label = labels[i]
        best = distances[i]
        error = errors[i] + centroid_error
        if best == np.inf:
            least = _minimum(score)
            j = 0
            while score[j] != least:
                j += 1
            label = first + j
            best = squared_distance(row, centroids[label])
            n_measured += 1
        limit = _threshold(best, norms[i], error, gamma, largest)
        for start in range(0, n_scores, _LANES):
            stop = min(start + _LANES, n_scores)
            passed = 0
            if stop - start == _LANES:
                for j in range(_LANES):
                    passed += score[start + j] <= limit
            else:
                passed = 1
            if passed == 0:
                continue
            for j in range(start, stop):
                if score[j] <= limit and first + j != label:
                    distance = squared_distance(row, centroids[first + j])
                    n_measured += 1
                    if distance < best or (distance == best and first + j < label):
                        best = distance
                        label = first + j
                        limit = _threshold(best, norms[i], error, gamma, largest)
        labels[i] = label
        distances[i] = best
    return n_measured


@_kernel("i8(f4[:,::1], f4[:,::1], f4[::1], i8[::1], i8, i4[::1], f8[::1])")
def sweep_nearest(rows, centroids, places, order, axis, labels, distances):  # type: ignore[no-untyped-def]
    """Settle the nearest centroid of each row by looking outward from its place along one axis; for few features.

    `places` are the centroids' coordinates on that axis, sorted; `order` says whose they are. The walk ends where the
    axis alone puts a centroid beyond the best so far. `labels` and `distances` are as for `finish_nearest`.
    """
    n = order.shape[0]
    n_measured = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        here = row[axis]
        label = labels[i]
        best = distances[i]
        up = np.searchsorted(places, here)
        down = up - 1
        while up < n or down >= 0:
            gap_up = np.float64(places[up]) - np.float64(here) if up < n else np.inf
            gap_down = np.float64(here) - np.float64(places[down]) if down >= 0 else np.inf
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
            if distance < best or (distance == best and j < label):
                best = distance
                label = j
        labels[i] = label
        distances[i] = best
    return n_measured


@_kernel("void(f4[:,::1], i4[::1], i8[::1], f8, i8[:,::1], i8[::1])")
def add_rows(rows, labels, weights, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Add rows, in fixed point, to the sums of their clusters; `weights` is empty for weights of one."""
    weighted = weights.shape[0] > 0
    for i in range(rows.shape[0]):
        j = labels[i]
        if j < 0:
            continue
        w = weights[i] if weighted else 1
        counts[j] += w
        for f in range(rows.shape[1]):
            sums[j, f] += w * np.int64(np.rint(np.float64(rows[i, f]) * scale))


@_kernel("i8(f4[:,::1], i4[::1], i4[::1], i8[::1], f8, i8[:,::1], i8[::1])")
def move_rows(rows, before, after, weights, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Bring sums up to date for the rows whose label changed; exact, since the sums are integers."""
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


@njit(inline="always")
def _worse(key_a, row_a, key_b, row_b):  # type: ignore[no-untyped-def]
    return key_a > key_b or (key_a == key_b and row_a > row_b)


@_kernel("void(f8[::1], i8[::1], i4[::1], f8[:,::1], i8[:,::1], i8[::1])")
def keep_smallest(keys, rows, groups, heap_keys, heap_rows, sizes):  # type: ignore[no-untyped-def]
    """Keep, for every group, the rows with the smallest keys; ties to the lowest row.

    Each group's entries are a heap with the worst on top, `sizes` of them filled.
    """
    room = heap_keys.shape[1]
    for i in range(keys.shape[0]):
        g = groups[i]
        if g < 0:
            continue
        key, row = keys[i], rows[i]
        size = sizes[g]
        if size < room:  # sift up from a new leaf
            at = size
            sizes[g] = size + 1
            while at > 0:
                parent = (at - 1) // 2
                if not _worse(key, row, heap_keys[g, parent], heap_rows[g, parent]):
                    break
                heap_keys[g, at], heap_rows[g, at] = heap_keys[g, parent], heap_rows[g, parent]
                at = parent
            heap_keys[g, at], heap_rows[g, at] = key, row
        elif _worse(heap_keys[g, 0], heap_rows[g, 0], key, row):  # replace the top, sift down
            at = 0
            while True:
                child = 2 * at + 1
                if child >= size:
                    break
                if child + 1 < size and _worse(
                    heap_keys[g, child + 1], heap_rows[g, child + 1], heap_keys[g, child], heap_rows[g, child]
                ):
                    child += 1
                if not _worse(heap_keys[g, child], heap_rows[g, child], key, row):
                    break
                heap_keys[g, at], heap_rows[g, at] = heap_keys[g, child], heap_rows[g, child]
                at = child
            heap_keys[g, at], heap_rows[g, at] = key, row


@njit(inline="always")
def _distances_from(point, between, columns, out):  # type: ignore[no-untyped-def]
    """Squared distances of one point to all: looked up in `between`, or made from `columns` where that is empty."""
    if between.shape[0] > 0:
        out[:] = between[point]
        return
    out[:] = np.float32(0.0)
    for f in range(columns.shape[0]):
        column = columns[f]
        here = column[point]
        for i in range(out.shape[0]):
            t = column[i] - here
            out[i] += t * t


@njit(inline="always")
def _potential(weights, closest, row):  # type: ignore[no-untyped-def]
    """Weighted sum of the squared distances to the nearest centre, in eight interleaved float64 sums of fixed order."""
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


@_kernel("i8(f4[:,::1], f4[:,::1], f8[::1], f8[:,::1], i8[::1])")
def greedy_walk(between, columns, weights, draws, chosen):  # type: ignore[no-untyped-def]
    """Greedy k-means++: of several points drawn by weighted D², keep the one that leaves the least; until none is left.

    `between` holds all squared distances, or is empty and they are made from the coordinates `columns` (n_features,
    n_points). `draws` are uniform numbers, a row of trials per centre; the first centre takes the first of its row.
    Returns how many points were chosen.
    """
    n_points = weights.shape[0]
    reach = np.empty(n_points)
    closest = np.full(n_points, np.float32(np.inf))
    row = np.empty(n_points, np.float32)
    best_row = np.empty(n_points, np.float32)
    for step in range(chosen.shape[0]):
        total = 0.0
        for i in range(n_points):
            total += weights[i] if step == 0 else weights[i] * np.float64(closest[i])
            reach[i] = total
        if not total > 0.0:
            return step
        least = np.inf
        n_trials = 1 if step == 0 else draws.shape[1]
        for trial in range(n_trials):
            point = min(np.searchsorted(reach, draws[step, trial] * total, side="right"), n_points - 1)
            _distances_from(point, between, columns, row)
            potential = _potential(weights, closest, row)
            if potential < least:
                least = potential
                chosen[step] = point
                row, best_row = best_row, row
        for i in range(n_points):
            closest[i] = min(closest[i], best_row[i])
        closest[chosen[step]] = 0.0
    return chosen.shape[0]


@_kernel("i8(f4[:,::1], f8[::1], f8[::1], f8[::1], i8, b1[::1])")
def accept_in_order(rows, then, now, chances, wanted, accepted):  # type: ignore[no-untyped-def]
    """Thin candidates drawn by an old D² to draws by the current one.

    Candidate i is accepted with probability ``now[i] / then[i]``, where `now` also counts the candidates accepted before
    it. Stops after `wanted` and returns how many were accepted.
    """
    n_accepted = 0
    for i in range(rows.shape[0]):
        accepted[i] = False
    for i in range(rows.shape[0]):
        if n_accepted == wanted:
            break
        if chances[i] * then[i] < now[i]:
            accepted[i] = True
            n_accepted += 1
            for j in range(i + 1, rows.shape[0]):
                distance = squared_distance(rows[i], rows[j])
                if distance < now[j]:
                    now[j] = distance
    return n_accepted


@_kernel("void(i4[::1], f4[::1], i8[::1], i8[::1])")
def group_members(labels, distances, indptr, members):  # type: ignore[no-untyped-def]
    """Fill `members` with row numbers grouped by label, each group in order of distance, then of row.

    A counting sort by label keeps rows in order; each group is then sorted by itself.
    """
    n_clusters = indptr.shape[0] - 1
    place = indptr[:n_clusters].copy()
    for row in range(labels.shape[0]):
        label = labels[row]
        if label >= 0:
            members[place[label]] = row
            place[label] += 1
    for label in range(n_clusters):
        group = members[indptr[label] : indptr[label + 1]]
        if group.shape[0] > 1:
            order = np.argsort(distances[group], kind="mergesort")
            group[:] = group[order]


@_kernel("void(i8[::1], i8[::1], i8[::1], u8[::1], i8[::1])")
def take_smallest_keys(indptr, wanted, members, keys, out):  # type: ignore[no-untyped-def]
    """Write, cluster after cluster, the `wanted` members with the smallest keys; ties to the first.

    `keys` belongs to `members`; a cluster of which all members are wanted gives them in order.
    """
    at = 0
    for c in range(wanted.shape[0]):
        n, first, last = wanted[c], indptr[c], indptr[c + 1]
        if n == 0:
            continue
        if n == last - first:
            for i in range(first, last):
                out[at] = members[i]
                at += 1
            continue
        limit = np.partition(keys[first:last], n - 1)[n - 1]
        n_below = 0
        for i in range(first, last):
            n_below += keys[i] < limit
        ties = n - n_below
        for i in range(first, last):
            if keys[i] < limit:
                out[at] = members[i]
                at += 1
            elif keys[i] == limit and ties > 0:
                out[at] = members[i]
                at += 1
                ties -= 1


@_kernel("void(f8[:,::1], f8[::1], f8[::1], f8, f4[:,::1])")
def pair_distances(products, norms_a, norms_b, step, out):  # type: ignore[no-untyped-def]
    """Squared distances from inner products and squared norms on a grid of width `step`."""
    for i in range(products.shape[0]):
        for j in range(products.shape[1]):
            out[i, j] = np.float32((norms_a[i] + norms_b[j] - 2.0 * products[i, j]) * (step * step))
