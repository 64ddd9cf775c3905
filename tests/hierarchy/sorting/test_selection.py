"""Ordered rows, against sorting in Python."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.hierarchy.sorting import selection


@given(hnp.arrays(np.int32, st.integers(1, 60), elements=st.integers(-1, 5)), st.data())
def test_members_are_grouped_by_label_and_sorted_by_distance_then_row(labels: np.ndarray, data: st.DataObject) -> None:
    distances = data.draw(hnp.arrays(np.float32, len(labels), elements=st.sampled_from([0.0, 0.5, 2.0])))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(labels[labels >= 0], minlength=6))]).astype(np.int64)
    members = np.empty(indptr[-1], np.int64)
    cut = data.draw(st.integers(0, 6))
    selection.group_members(labels, distances, indptr, 0, cut, members)
    selection.group_members(labels, distances, indptr, cut, 6, members)
    order = [i for i in np.lexsort((np.arange(len(labels)), distances, labels)) if labels[i] >= 0]
    assert members.tolist() == order


@given(st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=6), st.data())
def test_the_smallest_keys_of_each_cluster_are_taken_in_order(groups: list[list[int]], data: st.DataObject) -> None:
    wanted = [data.draw(st.integers(0, len(group))) for group in groups]
    indptr = np.cumsum([0, *map(len, groups)])
    members, keys = np.arange(100, 100 + indptr[-1]), np.array([*itertools.chain(*groups)], np.uint64)
    out = np.empty(sum(wanted), np.int64)
    selection.take_smallest_keys(indptr, np.array(wanted), members, keys, out)
    expected = []
    for group, n, first in zip(groups, wanted, indptr, strict=False):
        best = sorted(range(len(group)), key=lambda i, group=group: (group[i], i))[:n]
        expected += [100 + first + i for i in sorted(best)]
    assert out.tolist() == expected
