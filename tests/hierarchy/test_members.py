import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.hierarchy import members
from hkm_dask.hierarchy.members import group_by_label

ROWS = st.lists(st.tuples(st.integers(-1, 4), st.sampled_from([0.0, 0.5, 1.0, 3.0])), max_size=40)


@given(ROWS, st.integers(5, 7))
def test_membership_is_what_the_labels_say(rows: list[tuple[int, float]], n_clusters: int) -> None:
    labels = np.array([label for label, _ in rows], np.int32)
    distances = np.array([distance for _, distance in rows], np.float32)
    indptr, grouped = group_by_label(labels, distances, n_clusters)
    expected = [[i for i, (label, _) in enumerate(rows) if label == c] for c in range(n_clusters)]
    for c, group in enumerate(expected):
        group.sort(key=lambda i: (rows[i][1], i))
        assert grouped[indptr[c] : indptr[c + 1]].tolist() == group
    assert (indptr[0], indptr[-1], len(indptr)) == (0, len(grouped), n_clusters + 1)
    assert (indptr.dtype, grouped.dtype) == (np.int64, np.int64)


def test_any_number_of_threads_groups_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 50, 5000).astype(np.int32)
    labels[:3000] = 7  # more than a thread's share in one cluster
    distances = rng.integers(0, 9, 5000).astype(np.float32)
    expected = group_by_label(labels, distances, 50)
    monkeypatch.setattr(members, "_ROWS_FOR_THREADS", 0)
    for n in (1, 2, 3, 8):
        monkeypatch.setattr(members.os, "sched_getaffinity", lambda pid, n=n: set(range(n)))
        for actual, wanted in zip(group_by_label(labels, distances, 50), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)


def test_rows_left_out_may_have_any_distance() -> None:
    indptr, grouped = group_by_label(np.int32([-1, 0]), np.float32([np.nan, 1]), 1)
    assert (indptr.tolist(), grouped.tolist()) == ([0, 1], [1])


def test_rows_are_grouped_in_little_memory() -> None:
    """There are eight bytes of each row in the members; counting by NumPy took thirteen more."""
    n = 1_000_000
    labels, distances = np.arange(n, dtype=np.int32) % 100, np.zeros(n, np.float32)
    tracemalloc.start()
    group_by_label(labels, distances, 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * n


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_tasks_cut_between_chunks_and_shares_are_bounded(n_rows: int, chunk_rows: int, at_once: int) -> None:
    """A share of the members is what a task sorts together, however large a chunk or a cluster is."""
    tasks = members.chunk_cuts(n_rows, chunk_rows, at_once)
    assert [int(task[0]) for task in tasks] + [n_rows] == [0, *(int(task[-1]) for task in tasks)]
    assert all(int(task[0]) % chunk_rows == 0 for task in tasks)
    for task in tasks:
        sizes = np.diff(task)
        assert (sizes > 0).all()
        assert (sizes <= at_once).all()
