"""Number of rows and the rows with the smallest keys in each cluster, in the memory of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module, device_argsort, to_host
from hkm_dask.compute.jit import kernel


@njit
def nth_smallest(keys: Any, n: int) -> Any:
    """Return the n-th smallest key, from 0, by quickselect; reorders the keys."""
    low, high = 0, keys.shape[0] - 1
    while low < high:
        pivot = keys[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if n <= j:
            high = j
        elif n >= i:
            low = i
        else:
            break
    return keys[n]


@kernel("void(i4[::1], i8[::1])")
def count_labels(labels, counts):  # type: ignore[no-untyped-def]
    """Count rows by label into `counts`, ignoring label -1; unlike ``np.bincount``, without an int64 copy."""
    for i in range(labels.shape[0]):
        if labels[i] >= 0:
            counts[labels[i]] += 1


@kernel("void(f8[::1], i4[::1], i8[::1], i8, b1[::1])")
def mark_smallest(keys, groups, indptr, r, chosen):  # type: ignore[no-untyped-def]
    """Set `chosen` to True at the `r` >= 1 smallest keys of every group; ties go to the first.

    `indptr` holds the cumulative sizes of the groups; keys of group -1 are ignored.
    """
    place = indptr[:-1].copy()
    grouped = np.empty(indptr[-1], np.float64)
    for i in range(keys.shape[0]):
        if groups[i] >= 0:
            grouped[place[groups[i]]] = keys[i]
            place[groups[i]] += 1
    limits, ties = np.full(place.shape[0], np.inf), np.full(place.shape[0], r)
    for g in range(place.shape[0]):
        of_group = grouped[indptr[g] : indptr[g + 1]]
        if of_group.shape[0] > r:
            limits[g] = nth_smallest(of_group, r - 1)
            for key in of_group:
                ties[g] -= key < limits[g]
    for i in range(keys.shape[0]):
        g = groups[i]
        if g < 0 or keys[i] > limits[g]:
            continue
        if keys[i] == limits[g]:
            if ties[g] == 0:
                continue
            ties[g] -= 1
        chosen[i] = True


def bounds_of_labels(labels: Any, n_clusters: int) -> NDArray[np.int64]:
    """Return the offsets of the clusters once rows are grouped by label; rows labeled -1 are ignored.

    Labels (int32) may be on a device; the offsets are on the host.

    >>> bounds_of_labels(np.int32([1, 0, -1, 1]), 3).tolist()
    [0, 1, 3, 3]
    """
    indptr, xp = np.zeros(n_clusters + 1, np.int64), array_module(labels)
    if xp is np:
        count_labels(np.ascontiguousarray(labels), indptr[1:])
    else:
        indptr[1:] = to_host(xp.bincount(labels + 1, minlength=n_clusters + 1))[1:]
    return np.cumsum(indptr, out=indptr)


def are_smallest(n_clusters: int, r: int, keys: Any, labels: Any) -> Any:
    """Mark the keys among the `r` smallest of their cluster, ties to the first, in the memory of the keys.

    `keys` (float64, not negative) and `labels` (int32) may be on a device; rows labeled -1 are ignored.

    >>> are_smallest(2, 1, np.array([3.0, 1.0, 1.0, 5.0]), np.int32([0, 0, 0, 1])).tolist()
    [False, True, False, True]
    """
    xp, indptr = array_module(keys), bounds_of_labels(labels, n_clusters)
    chosen = xp.zeros(len(keys), xp.bool_)
    if xp is np:
        mark_smallest(np.ascontiguousarray(keys), np.ascontiguousarray(labels), indptr, r, chosen)
        return chosen
    by_key = device_argsort(keys.view(xp.int64))  # non-negative floats sort like their bits
    order = by_key[device_argsort(labels[by_key])][len(keys) - int(indptr[-1]) :]
    rank = xp.arange(len(order)) - xp.asarray(indptr)[labels[order]]
    chosen[order[rank < r]] = True
    return chosen
