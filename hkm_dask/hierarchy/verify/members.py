"""Consistency of the members of a level's clusters with its labels and distances."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.jit import first_above, kernel
from hkm_dask.data.verify_chunks import broken_rule
from hkm_dask.hierarchy.verify.level import LevelCheck

#: Rows whose labels and distances are held in memory at once, to look members up.
_ROWS_AT_ONCE = 2**27

_NO_ROW, _OTHER_LABEL, _OUT_OF_ORDER = 1, 2, 3
_RULES = {
    _NO_ROW: "members should be row numbers below {n_rows}",
    _OTHER_LABEL: "members should have the label of the cluster that lists them",
    _OUT_OF_ORDER: "members should come after the one before, by distance, then by row, and none twice",
}


@kernel("void(i8[::1], i8, i8[::1], i8, i8[::1], i4[::1], f4[::1], u1[::1])")
def find_faults(members, start, indptr, n_rows, rows, labels, distances, faults):  # type: ignore[no-untyped-def]
    """Write the fault code of each member, from position `start` on, or 0 if it is correct.

    `labels` and `distances` are those of `rows`, which are sorted, or of all rows if `rows` is empty.
    """
    cluster, before = first_above(indptr, start) - 1, -1
    for i in range(members.shape[0]):
        while indptr[cluster + 1] <= start + i:
            cluster, before = cluster + 1, -1
        slot = members[i]
        if slot < 0 or slot >= n_rows:
            faults[i], before = _NO_ROW, -1
            continue
        if rows.shape[0] > 0:
            slot = first_above(rows, members[i]) - 1
            if slot < 0 or rows[slot] != members[i]:
                faults[i], before = _OTHER_LABEL, -1
                continue
        if labels[slot] != cluster:
            faults[i], before = _OTHER_LABEL, -1
            continue
        if before >= 0:
            nearer = distances[slot] < distances[before]
            faults[i] = _OUT_OF_ORDER if nearer or (distances[slot] == distances[before] and slot <= before) else 0
        before = slot


def check_members(level: LevelCheck) -> None:
    """Check the label and the distance of every member.

    Members of a cluster that have its label, in strict order, are distinct rows; as sizes show that there are as many
    members as labels, every labeled row is then a member exactly once.
    """
    if level.indptr is None or not level.rows_are_whole:
        level.found.notes.append(
            f"{level.name('members')} could not be compared with the labels, because of the damage"
        )
        return
    for first, last in _cluster_ranges(level.indptr, level.n_rows):
        _check_range(level, first, last)


def _cluster_ranges(indptr: NDArray[np.int64], n_rows: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of clusters whose rows fit in memory, or single clusters.

    >>> list(_cluster_ranges(np.array([0, 2, 2, 5]), 5))
    [(0, 3)]
    """
    first, n_clusters = 0, len(indptr) - 1
    while first < n_clusters:
        furthest = int(np.searchsorted(indptr, indptr[first] + _ROWS_AT_ONCE, side="right")) - 1
        last = n_clusters if n_rows <= _ROWS_AT_ONCE else max(furthest, first + 1)
        yield first, last
        first = last


def _check_range(level: LevelCheck, first: int, last: int) -> None:
    """Check the members of a range of clusters, with its rows in memory."""
    held = _rows_of(level, first, last)
    assert level.indptr is not None
    indptr, n_rows, array = level.indptr, level.n_rows, level.array("members")
    low, high = int(indptr[first]), int(indptr[last])

    def faults_of(members: NDArray[np.int64], start: int) -> NDArray[np.uint8]:
        faults = np.zeros(len(members), np.uint8)
        find_faults(members, start, indptr, n_rows, *held, faults)
        return faults

    def look(start: int, members: NDArray[np.int64]) -> tuple[int, NDArray[np.uint8], NDArray[np.int64]]:
        begin = max(start, low)
        members = members[begin - start : high - start]
        return begin, faults_of(members, begin), members[[0, -1]]

    before: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
    for _, (begin, faults, ends) in level.reader.fold([level.name("members")], look, rows=(low, high)):
        if before[0] == begin:
            # The last member of one chunk and the first of the next are neighbors too.
            faults[0] |= faults_of(np.append(before[1], ends[0]), begin - 1)[1]
        before = begin + len(faults), ends[1:]
        for fault, rule in _RULES.items():
            wrong = np.flatnonzero(faults == fault) + begin
            if len(wrong):
                level.add("members", rule, broken_rule(array, rule.format(n_rows=n_rows), wrong, "position"))


def _rows_of(
    level: LevelCheck, first: int, last: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Return the rows of a range of clusters, their labels and distances; no row numbers if it is all rows."""
    names = [level.name("labels"), level.name("distances")]
    if (first, last) == (0, level.n_clusters):
        labels, distances = np.empty(level.n_rows, np.int32), np.empty(level.n_rows, np.float32)

        def keep(start: int, some: NDArray[np.int32], their: NDArray[np.float32]) -> None:
            labels[start : start + len(some)], distances[start : start + len(some)] = some, their

        deque(level.reader.fold(names, keep), maxlen=0)
        return np.empty(0, np.int64), labels, distances

    def pick(start: int, some: NDArray[np.int32], their: NDArray[np.float32]) -> tuple[NDArray, NDArray, NDArray]:
        places = np.flatnonzero((some >= first) & (some < last))
        return places + start, some[places], their[places]

    picked = [made for _, made in level.reader.fold(names, pick)]
    rows, labels, distances = (np.concatenate(parts) for parts in zip(*picked, strict=True))
    return rows, labels, distances
