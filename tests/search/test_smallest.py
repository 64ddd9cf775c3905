"""Counting and choosing among the rows of clusters, against sorting in Python; for devices, see tests/gpu."""

import heapq

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.search.smallest import are_smallest, bounds_of_labels


@given(hnp.arrays(np.float64, st.integers(0, 60), elements=st.integers(-3, 3).map(float)), st.integers(1, 7), st.data())
def test_the_smallest_keys_of_every_group_are_marked(keys: np.ndarray, r: int, data: st.DataObject) -> None:
    groups = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=len(keys), max_size=len(keys))), np.int32)
    indptr = np.cumsum([0, *(int((groups == g).sum()) for g in range(3))])
    assert bounds_of_labels(groups, 3).tolist() == indptr.tolist()
    chosen = are_smallest(3, r, keys, groups)
    best = [heapq.nsmallest(r, [(keys[i], int(i)) for i in np.flatnonzero(groups == g)]) for g in range(3)]
    assert np.flatnonzero(chosen).tolist() == sorted(i for group in best for _, i in group)
