"""Inner loops of the near-duplicate search: find the rows that can be near the members of a cluster, and compare them.

Let u_i be the rows scaled to unit length, m_b the direction of cluster b's centroid and y_j = <u_j, m_b> for its
members, in descending order. Two rows are near if their angle is at most θ = arccos(threshold). Angles between
directions obey the triangle inequality, so with α = ∠(u_i, m_b) and β = ∠(u_j, m_b) nearness requires |α - β| ≤ θ: only
members with cos(α + θ) ≤ y_j ≤ cos(α - θ) can be near row i, whichever cluster i is in. These members are contiguous
and found by bisection; for a row of another cluster they are the tail of the members, or none.

    cos(α ∓ θ) = c t ± √(1 - c²) √(1 - t²),  c = cos α, t = threshold;   cos(α - θ) counts as 1 where α ≤ θ

decreases as α grows (between θ and π, and between 0 and π - θ), so an upper bound on c bounds the upper end and a lower
bound bounds the lower end. Both c and y are known to within `slack`: a float32 product errs by γ_d, a row or centroid
rounded to unit length by 2^-23. So no near pair is missed, however cosines were rounded and whatever the clusters are.

Among these members, an int16 product gives a lower bound on each squared distance (see `int16_gemm`, `cpu`); pairs that
it does not rule out are measured in float64.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from hkm_dask.compute.jit import kernel
from hkm_dask.curation.components import root_of
from hkm_dask.curation.cosines import cosine_of
from hkm_dask.search.cpu.kernels import score_limit
from hkm_dask.search.int16_gemm import BLOCK_ROWS, PACKED, PANEL, write_scores
from hkm_dask.search.simd import LANES, lowest_bit, mask_not_above

_PANELS = LANES // PANEL


@njit(inline="always")
def _first_not_above(values, low, high, limit):  # type: ignore[no-untyped-def]
    """Return the index of the first value that is at most `limit` in a descending range of an array."""
    while low < high:
        middle = (low + high) >> 1
        if values[middle] > limit:
            low = middle + 1
        else:
            high = middle
    return low


@kernel("void(f4[:,::1], u8[::1])")
def hash_rows(rows, hashes):  # type: ignore[no-untyped-def]
    """Write a hash of the values of every row; copies have the same hash, and -0 equals 0."""
    for i in range(rows.shape[0]):
        h = np.uint64(14695981039346656037)
        bits = (rows[i] + np.float32(0.0)).view(np.uint32)
        for j in range(bits.shape[0]):
            h = (h ^ np.uint64(bits[j])) * np.uint64(1099511628211)
            h ^= h >> np.uint64(29)
        hashes[i] = h


@njit(inline="always")
def _run_of(y, low, high, c, threshold, sine, slack):  # type: ignore[no-untyped-def]
    """Return the range of members that can be near a row with cosine `c` to their centroid."""
    above, below = min(c + slack, 1.0), max(min(c - slack, 1.0), -1.0)
    upper, lower = 1.0, -1.0
    if above < threshold:
        above = max(above, -1.0)
        upper = above * threshold + np.sqrt(1.0 - above * above) * sine
    if below > -threshold:
        lower = below * threshold - np.sqrt(1.0 - below * below) * sine
    begin = _first_not_above(y, low, high, np.float64(upper + slack))
    # The first below the bound; the bound is lowered further by one float32 rounding, which `slack` does not cover.
    return begin, _first_not_above(y, begin, high, lower - slack - 2.0**-22)


@njit(inline="always")
def _choose_visitors(  # type: ignore[no-untyped-def]
    b, cosines, own, own_cosines, y, low, high, threshold, sine, slack, counts, found, begins, ends, places
):
    """List the rows that can be near members of cluster b, sorted by the start of their ranges; returns their number.

    A pair of rows of two clusters is searched for among the members of the later cluster; within one cluster, among the
    members that are no closer to the centroid.
    """
    n = 0
    first_panel = low // PANEL
    counts[: (high - low) // PANEL + 2] = 0
    for v in range(own.shape[0]):
        if own[v] > b:
            continue
        if own[v] == b:
            begin, end = _run_of(y, low, high, np.float64(own_cosines[v]), threshold, sine, slack)
            begin = max(begin, _first_not_above(y, low, high, np.float64(own_cosines[v])))
        else:
            begin, end = _run_of(y, low, high, np.float64(cosines[v, b]), threshold, sine, slack)
        if begin < end:
            found[n] = v
            begins[v] = begin // PANEL
            ends[v] = end
            counts[begin // PANEL - first_panel + 1] += 1
            n += 1
    for p in range((high - low) // PANEL + 1):
        counts[p + 1] += counts[p]
    for k in range(n):
        slot = begins[found[k]] - first_panel
        places[counts[slot]] = found[k]
        counts[slot] += 1
    return n


@njit(inline="always")
def is_connected(
    parent: np.ndarray, is_one: np.ndarray, slot_numbers: np.ndarray, panel: int, n_panels: int, lines: np.ndarray,
    n_slots: int,
) -> bool:  # fmt: skip
    """Return whether some rows and all members of some panels are already in one component.

    Panels whose members are all connected stay so; `is_one` caches this.
    """
    root = root_of(parent, n_slots + lines[0])
    for v in lines[1:]:
        if root_of(parent, n_slots + v) != root:
            return False
    for p in range(panel, panel + n_panels):
        if root_of(parent, p * PANEL) != root:
            return False
        if not is_one[p]:
            for slot in range(p * PANEL + 1, (p + 1) * PANEL):
                if slot_numbers[slot] >= 0 and root_of(parent, slot) != root:
                    return False
            is_one[p] = True
    return True


@kernel(
    "i8(f4[:,::1], i4[::1], f4[::1], i8[::1], f4[:,::1], f8[::1], i2[:,::1], f4[:,::1], f8[::1], f8[::1],"
    f" f4[:,::1], f8[::1], i8[::1], f4[::1], i8[::1], i8[::1], {PACKED}, f4[::1], f4[::1],"
    " f8, f8, f8, f4, f8, f8, f8, i8[::1])"
)
def unite_near(  # type: ignore[no-untyped-def]
    cosines, own, own_cosines, numbers, rows, norms, matrix, residual_norms, operand_norms, errors,
    slot_rows, slot_norms, slot_numbers, y, begins, ends, panels, constants, slopes,
    threshold, slack, squared_distance, scale, slot_error, gamma, largest, parent,
):  # fmt: skip
    """Unite rows with the near members of clusters in `parent`; returns the number of cosines computed.

    Pairs that are already connected are skipped, and panels of such pairs not even multiplied, so that any number of
    slightly changed copies costs little.

    Parameters
    ----------
    cosines : ndarray of float32, shape (n_rows, n_clusters)
        Cosines of rows to the centroids.
    own, own_cosines : ndarray of int32 and float32, shape (n_rows,)
        Cluster of each row, negative for a cluster before these, and the row's cosine as it appears in `y`.
    numbers : ndarray of int64, shape (n_rows,)
    rows, norms : ndarray of float32, shape (n_rows, n_features), and of float64, shape (n_rows,)
        Rows as stored, and their squared norms.
    matrix, residual_norms, operand_norms, errors
        The `Operand` of the rows scaled to unit length.
    slot_rows, slot_norms, slot_numbers, y : ndarray
        Members of all clusters: rows as stored, squared norms, row numbers, and cosines to the centroid.
    begins, ends : ndarray of int64, shape (n_clusters,)
        Slots of each cluster's members, closest to the centroid first; each cluster begins at a whole panel.
    panels, constants, slopes
        Arguments of `int16_gemm.score`; constants are infinite for empty slots.
    squared_distance : float
        Upper bound on the squared distance of two near unit-length rows.
    parent : ndarray of int64, shape (n_slots + n_rows or more,)
        Union-find parents of slots, then of rows.
    """
    sine = np.sqrt(max(0.0, 1.0 - threshold * threshold))
    n_rows, n_columns, n_slots, n_measured = rows.shape[0], matrix.shape[1], y.shape[0], 0
    found, places = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
    first_panels, last = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
    limits = np.empty(n_rows, np.float32)
    scores = np.empty((BLOCK_ROWS, LANES + 16), np.float32)
    widest = 0
    for b in range(begins.shape[0]):
        widest = max(widest, ends[b] - begins[b])
    counts = np.empty(widest // PANEL + 3, np.int64)
    is_one = np.zeros(n_slots // PANEL, np.bool_)
    for v in range(n_rows):
        limits[v] = score_limit(squared_distance, operand_norms[v], errors[v] + slot_error, gamma, largest)
    for b in range(begins.shape[0]):
        n = _choose_visitors(
            b, cosines, own, own_cosines, y, begins[b], ends[b], threshold, sine, slack, counts, found, first_panels,
            last, places,
        )  # fmt: skip
        for line in range(0, n, BLOCK_ROWS):
            n_lines = min(BLOCK_ROWS, n - line)
            end = 0
            for k in range(n_lines):
                end = max(end, last[places[line + k]])
            end_panel = (end + PANEL - 1) // PANEL
            # Rows are sorted by the start of their ranges, so no other row begins earlier.
            for panel in range(first_panels[places[line]], end_panel, _PANELS):
                n_panels = min(_PANELS, end_panel - panel)
                if is_connected(parent, is_one, slot_numbers, panel, n_panels, places[line : line + n_lines], n_slots):
                    continue
                write_scores(
                    matrix, n_columns, places[line : line + n_lines], residual_norms, panels, constants, slopes, scale,
                    panel, n_panels, scores,
                )  # fmt: skip
                for k in range(n_lines):
                    v = places[line + k]
                    mask = mask_not_above(scores[k], 0, limits[v])
                    if n_panels < _PANELS:
                        mask &= (np.uint64(1) << np.uint64(n_panels * PANEL)) - np.uint64(1)
                    while mask != 0:
                        slot = panel * PANEL + lowest_bit(mask)
                        mask &= mask - np.uint64(1)
                        if slot_numbers[slot] == numbers[v]:
                            continue
                        i, j = root_of(parent, n_slots + v), root_of(parent, slot)
                        if i == j:
                            continue
                        n_measured += 1
                        if cosine_of(rows[v], slot_rows[slot], norms[v], slot_norms[slot]) >= threshold:
                            parent[max(i, j)] = min(i, j)
    return n_measured
