import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.hierarchy.sorting import members
from hkm_dask.hierarchy.sorting.external_sort import Records
from hkm_dask.hierarchy.sorting.members import order_of

ROWS = st.lists(st.tuples(st.integers(2, 6), st.sampled_from([0.0, 0.5, 1.0, 3.0])), max_size=40)


def records_of(labels: np.ndarray, distances: np.ndarray) -> Records:
    keys = distances.astype(np.float32).view(np.uint32).astype(np.uint64)
    return Records(np.arange(len(labels)), keys, labels.astype(np.int32))


@given(ROWS)
def test_rows_are_in_order_of_cluster_distance_and_number(rows: list[tuple[int, float]]) -> None:
    columns = np.array(rows).reshape(-1, 2)
    order = order_of(records_of(columns[:, 0], columns[:, 1]))
    assert order.tolist() == sorted(range(len(rows)), key=lambda i: (*rows[i], i))
    assert order.dtype == np.int64


def test_rows_are_ordered_in_little_memory() -> None:
    """There are eight bytes of each row in the order, and four of a distance; counting by NumPy took thirteen more."""
    n = 1_000_000
    records = records_of(np.arange(n) % 100, np.zeros(n))
    tracemalloc.start()
    order_of(records)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 14 * n


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
