"""The inner loops against loops anyone can read, in Python and NumPy."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.kmeans import kernels

NO_WEIGHTS = np.empty(0, np.int64)


def floats(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def distance(x: np.ndarray, c: np.ndarray) -> float:
    return math.fsum((float(a) - float(b)) ** 2 for a, b in zip(x, c, strict=True))


@pytest.mark.parametrize("d", [1, 2, 7, 8, 9, 15, 16, 40, 100])
def test_the_distance_is_the_exact_one_to_float64(d: int) -> None:
    rows, centroids = floats(20, d), floats(4, d, 1)
    labels, found = (np.arange(20) % 4).astype(np.int32), np.empty(20)
    kernels.label_distances(rows, centroids, labels, found)
    expected = [distance(rows[i], centroids[i % 4]) for i in range(20)]
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    kernels.label_distances(rows, rows, np.arange(20, dtype=np.int32), found)
    assert not found.any()


def test_no_label_is_infinitely_far() -> None:
    found = np.zeros(2)
    kernels.label_distances(floats(2, 3), floats(1, 3), np.array([-1, 0], np.int32), found)
    assert found[0] == np.inf
    assert found[1] < np.inf


def test_centring_writes_rows_ones_and_norms() -> None:
    rows, mean = floats(5, 6), floats(1, 6, 1)[0]
    out, norms = np.empty((5, 7), np.float32), np.empty(5)
    kernels.centre(rows, mean, out, norms)
    np.testing.assert_array_equal(out[:, :6], rows - mean)
    np.testing.assert_array_equal(out[:, 6], 1)
    np.testing.assert_allclose(norms, ((rows - mean).astype(np.float64) ** 2).sum(1), rtol=1e-14)


# -- sums -------------------------------------------------------------------------------------------------------------


def sums_in_python(
    rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, scale: float, k: int
) -> tuple[list[list[int]], list[int]]:
    sums, counts = [[0] * rows.shape[1] for _ in range(k)], [0] * k
    for row, label, weight in zip(rows, labels, weights, strict=True):
        if label >= 0:
            counts[label] += int(weight)
            for f, value in enumerate(row):
                sums[label][f] += int(weight) * round(float(value) * scale)  # both round half to even
    return sums, counts


labelled = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (n, 3), elements=st.floats(-4, 4, width=32)),
        hnp.arrays(np.int32, n, elements=st.integers(-1, 4)),
        hnp.arrays(np.int32, n, elements=st.integers(0, 4)),
        hnp.arrays(np.int64, n, elements=st.integers(1, 9)),
    )
)


@given(labelled, st.sampled_from([1.0, 2.0**10, 2.0**40]))
def test_fixed_point_sums_are_exact(
    data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], scale: float
) -> None:
    rows, labels, _, weights = data
    for given_weights, used in [(weights, weights), (NO_WEIGHTS, np.ones_like(weights))]:
        sums, counts = np.zeros((5, 3), np.int64), np.zeros(5, np.int64)
        kernels.add_rows(rows, labels, given_weights, scale, sums, counts)
        expected = sums_in_python(rows, labels, used, scale, 5)
        assert (sums.tolist(), counts.tolist()) == expected


@given(labelled)
def test_moving_rows_equals_adding_afresh(data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> None:
    rows, before, after, weights = data
    before = np.maximum(before, 0)
    for given_weights in (weights, NO_WEIGHTS):
        sums, counts = np.zeros((5, 3), np.int64), np.zeros(5, np.int64)
        kernels.add_rows(rows, before, given_weights, 2.0**20, sums, counts)
        n_moved = kernels.move_rows(rows, before, after, given_weights, 2.0**20, sums, counts)
        fresh, fresh_counts = np.zeros((5, 3), np.int64), np.zeros(5, np.int64)
        kernels.add_rows(rows, after, given_weights, 2.0**20, fresh, fresh_counts)
        assert n_moved == (before != after).sum()
        np.testing.assert_array_equal(sums, fresh)
        np.testing.assert_array_equal(counts, fresh_counts)


# -- choosing ---------------------------------------------------------------------------------------------------------


@given(
    hnp.arrays(np.float64, st.integers(0, 60), elements=st.integers(-3, 3).map(float)),
    st.integers(1, 7),
    st.integers(0, 60),
    st.data(),
)
def test_the_smallest_keys_are_kept_however_the_rows_come(
    keys: np.ndarray, room: int, cut: int, data: st.DataObject
) -> None:
    groups = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=len(keys), max_size=len(keys))), np.int32)
    rows = np.arange(len(keys)) * 10
    heap_keys, heap_rows, sizes = np.empty((3, room)), np.empty((3, room), np.int64), np.zeros(3, np.int64)
    for some in (slice(0, cut), slice(cut, None)):
        kernels.keep_smallest(keys[some], rows[some], groups[some], heap_keys, heap_rows, sizes)
    for g in range(3):
        expected = heapq.nsmallest(room, [(keys[i], rows[i]) for i in np.flatnonzero(groups == g)])
        found = sorted(zip(heap_keys[g, : sizes[g]].tolist(), heap_rows[g, : sizes[g]].tolist(), strict=True))
        assert found == expected


@given(hnp.arrays(np.int32, st.integers(1, 60), elements=st.integers(-1, 5)), st.data())
def test_members_are_grouped_by_label_and_sorted_by_distance_then_row(labels: np.ndarray, data: st.DataObject) -> None:
    distances = data.draw(hnp.arrays(np.float32, len(labels), elements=st.sampled_from([0.0, 0.5, 2.0])))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(labels[labels >= 0], minlength=6))]).astype(np.int64)
    members = np.empty(indptr[-1], np.int64)
    kernels.group_members(labels, distances, indptr, members)
    order = [i for i in np.lexsort((np.arange(len(labels)), distances, labels)) if labels[i] >= 0]
    assert members.tolist() == order


@given(st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=6), st.data())
def test_the_smallest_keys_of_each_cluster_are_taken_in_order(groups: list[list[int]], data: st.DataObject) -> None:
    wanted = [data.draw(st.integers(0, len(group))) for group in groups]
    indptr = np.cumsum([0, *map(len, groups)])
    members, keys = np.arange(100, 100 + indptr[-1]), np.array(sum(groups, []), np.uint64)
    out = np.empty(sum(wanted), np.int64)
    kernels.take_smallest_keys(indptr, np.array(wanted), members, keys, out)
    expected = []
    for group, n, first in zip(groups, wanted, indptr, strict=False):
        best = sorted(range(len(group)), key=lambda i, group=group: (group[i], i))[:n]
        expected += [100 + first + i for i in sorted(best)]
    assert out.tolist() == expected


@pytest.mark.parametrize("wanted", [0, 1, 5, 100])
def test_candidates_are_thinned_in_order(wanted: int) -> None:
    rng = np.random.default_rng(2)
    rows = floats(60, 3)
    rows[30:40] = rows[:10]  # arrived twice
    then = rng.uniform(0.5, 8, 60)
    then[30:40] = then[:10]
    now, chances = then * rng.choice([1.0, 0.3], 60), rng.uniform(size=60)
    now[30:40] = now[:10]
    accepted = np.ones(60, bool)
    expected: list[int] = []
    for i in range(60):
        current = min([now[i], *(distance(rows[i], rows[j]) for j in expected)])
        if len(expected) < wanted and chances[i] < current / then[i]:
            expected.append(i)
    n = kernels.accept_in_order(rows, then, now.copy(), chances, wanted, accepted)
    assert n == len(expected) == min(wanted, n)
    assert np.flatnonzero(accepted).tolist() == expected
    assert not set(expected) & {i + 30 for i in expected if i < 10}


def test_pair_distances_are_those_of_the_grid() -> None:
    grid = np.random.default_rng(0).integers(-(2**20), 2**20, (9, 5)).astype(np.float64)
    norms, out = (grid * grid).sum(1), np.empty((4, 9), np.float32)
    kernels.pair_distances(grid[:4] @ grid.T, norms[:4], norms, 2.0**-20, out)
    expected = [[distance(a * 2.0**-20, b * 2.0**-20) for b in grid] for a in grid[:4]]
    np.testing.assert_array_equal(out, np.array(expected, np.float32))


def test_a_kernel_says_what_it_does_and_starts_no_thread() -> None:
    import threading

    before = threading.active_count()
    kernels.label_distances(floats(2, 3), floats(1, 3), np.zeros(2, np.int32), np.empty(2))
    assert threading.active_count() == before
    for name, value in vars(kernels).items():
        if isinstance(value, kernels._Kernel) and not name.startswith("_"):
            assert value.__doc__, name
