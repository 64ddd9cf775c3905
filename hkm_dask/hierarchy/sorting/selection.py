"""Inner loops for sorting and selecting rows: members by group, smallest keys."""

from __future__ import annotations

import numpy as np
from numba import njit

from hkm_dask.compute.jit import first_not_below, kernel
from hkm_dask.search.smallest import nth_smallest


@njit(inline="always")
def _after(distances, a, b):  # type: ignore[no-untyped-def]
    return distances[a] > distances[b] or (distances[a] == distances[b] and a > b)


@njit
def _sort_by_distance(distances, rows):  # type: ignore[no-untyped-def]
    """Heapsort row numbers by their distance, then by number."""
    n = rows.shape[0]
    for turn in range(n // 2 + n - 1):  # first builds the heap, then empties it from the back
        root, end = n // 2 - 1 - turn, n
        if root < 0:
            root, end = 0, n - 1 - (turn - n // 2)
            rows[0], rows[end] = rows[end], rows[0]
        row = rows[root]
        while True:
            child = 2 * root + 1
            if child >= end:
                break
            if child + 1 < end and _after(distances, rows[child + 1], rows[child]):
                child += 1
            if not _after(distances, rows[child], row):
                break
            rows[root] = rows[child]
            root = child
        rows[root] = row


@kernel("void(i4[::1], f4[::1], i8[::1], i8, i8, i8[::1])")
def group_members(labels, distances, indptr, first, last, members):  # type: ignore[no-untyped-def]
    """Fill `members` with row numbers grouped by label, each group sorted by distance, then row.

    A counting sort by label keeps rows in order; each group is then sorted separately. Only labels in ``first:last``
    are processed, so that threads can share the work. Rows labeled -1 are ignored.
    """
    place = indptr[first:last].copy()
    for row in range(labels.shape[0]):
        label = labels[row]
        if first <= label < last:
            members[place[label - first]] = row
            place[label - first] += 1
    for label in range(first, last):
        group = members[indptr[label] : indptr[label + 1]]
        if group.shape[0] > 1:
            _sort_by_distance(distances, group)


@kernel("void(i4[::1], u8[::1], u8[::1], i4[::1], u8[::1], u8[::1], b1, u8, i8[:, ::1])")
def count_digits(labels, keys, rows, clusters, first_keys, first_rows, of_keys, shift, counts):  # type: ignore[no-untyped-def]
    """Count, for each splitter, the rows of its cluster by the eight bits of their key or number from `shift` on.

    Only rows that equal the splitter in all higher bits count; if numbers are counted, the keys must be equal too.
    """
    for i in range(labels.shape[0]):
        g = first_not_below(clusters, labels[i])
        while g < clusters.shape[0] and clusters[g] == labels[i]:
            word, target = (keys[i], first_keys[g]) if of_keys else (rows[i], first_rows[g])
            same = (word >> shift) >> np.uint64(8) == (target >> shift) >> np.uint64(8)
            if same and (of_keys or keys[i] == first_keys[g]):
                counts[g, np.int64((word >> shift) & np.uint64(255))] += 1
            g += 1


@kernel("void(i4[::1], u8[::1], u8[::1], i4[::1], u8[::1], u8[::1], i4[::1])")
def count_splitters(labels, keys, rows, clusters, first_keys, first_rows, counts):  # type: ignore[no-untyped-def]
    """Count, for each row, the splitters at or before it in the order of cluster, key and number."""
    for i in range(labels.shape[0]):
        g = first_not_below(clusters, labels[i])
        while g < clusters.shape[0] and clusters[g] == labels[i]:
            if keys[i] < first_keys[g] or (keys[i] == first_keys[g] and rows[i] < first_rows[g]):
                break
            g += 1
        counts[i] = g


@kernel("void(i8[::1], i8[::1], i8[::1], u8[::1], i8[::1])")
def take_smallest_keys(indptr, wanted, members, keys, out):  # type: ignore[no-untyped-def]
    """Write, for one cluster after another, the `wanted` members with the smallest keys; ties go to the first.

    `keys` belongs to `members`; if all members of a cluster are wanted, they stay in order.
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
        limit = nth_smallest(keys[first:last].copy(), n - 1)
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
