"""The inner loops of search and sums, against simple loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.search.cpu import kernels as cpu_kernels

NO_WEIGHTS = np.empty(0, np.int64)


def floats(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


NONE_STAYED = np.empty(0, np.bool_)


def distance(x: np.ndarray, c: np.ndarray) -> float:
    return math.fsum((float(a) - float(b)) ** 2 for a, b in zip(x, c, strict=True))


@pytest.mark.parametrize("d", [1, 2, 7, 8, 9, 15, 16, 40, 100])
def test_the_distance_is_the_exact_one_to_float64(d: int) -> None:
    rows, centroids = floats(20, d), floats(4, d, 1)
    labels, actual = (np.arange(20) % 4).astype(np.int32), np.empty(20)
    cpu_kernels.label_distances(rows, centroids, NONE_STAYED, labels, actual)
    expected = [distance(rows[i], centroids[i % 4]) for i in range(20)]
    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    cpu_kernels.label_distances(rows, rows, NONE_STAYED, np.arange(20, dtype=np.int32), actual)
    assert not actual.any()


@pytest.mark.parametrize("d", [1, 7, 8, 13, 64, 100])
def test_the_distance_is_summed_in_one_order(d: int) -> None:
    rows, centroids = floats(20, d), floats(20, d, 1)
    labels, actual = np.arange(20, dtype=np.int32), np.empty(20)
    cpu_kernels.label_distances(rows, centroids, NONE_STAYED, labels, actual)
    for row, centroid, squared in zip(rows, centroids, actual, strict=True):
        sums = [0.0] * 8
        for j, (x, c) in enumerate(zip(row, centroid, strict=True)):
            difference = float(x) - float(c)
            sums[j % 8 if j < d - d % 8 else 0] += difference * difference
        s = sums
        assert squared == ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))


def test_a_distance_to_a_centroid_that_stayed_is_kept() -> None:
    rows, centroids = floats(6, 9), floats(2, 9, 1)
    labels, actual = np.array([0, 1, 0, 1, -1, 1], np.int32), np.full(6, 7.0)
    cpu_kernels.label_distances(rows, centroids, np.array([True, False]), labels, actual)
    expected = [7.0, *(distance(rows[i], centroids[1]) for i in (1, 3, 5))]
    np.testing.assert_allclose(actual[[0, 1, 3, 5]], expected, rtol=1e-14)
    assert actual[[2, 4]].tolist() == [7.0, np.inf]


def test_no_label_is_infinitely_far() -> None:
    actual = np.zeros(2)
    cpu_kernels.label_distances(floats(2, 3), floats(1, 3), NONE_STAYED, np.array([-1, 0], np.int32), actual)
    assert actual[0] == np.inf
    assert actual[1] < np.inf


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


labeled = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (n, 3), elements=st.floats(-4, 4, width=32)),
        hnp.arrays(np.int32, n, elements=st.integers(-1, 4)),
        hnp.arrays(np.int32, n, elements=st.integers(0, 4)),
        hnp.arrays(np.int64, n, elements=st.integers(1, 9)),
    )
)


@given(labeled, st.sampled_from([1.0, 2.0**10, 2.0**40]))
def test_fixed_point_sums_are_exact(data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], scale: float) -> None:
    rows, labels, _, weights = data
    for given_weights, used in [(weights, weights), (NO_WEIGHTS, np.ones_like(weights))]:
        sums, counts = np.zeros((5, 3), np.int64), np.zeros(5, np.int64)
        cpu_kernels.add_rows(rows, labels, given_weights, scale, sums, counts)
        expected = sums_in_python(rows, labels, used, scale, 5)
        assert (sums.tolist(), counts.tolist()) == expected


@given(labeled)
def test_moving_rows_equals_adding_afresh(data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> None:
    rows, before, after, weights = data
    before = np.maximum(before, 0)
    for given_weights in (weights, NO_WEIGHTS):
        sums, counts = np.zeros((5, 3), np.int64), np.zeros(5, np.int64)
        cpu_kernels.add_rows(rows, before, given_weights, 2.0**20, sums, counts)
        n_moved = cpu_kernels.move_rows(rows, before, after, given_weights, 2.0**20, sums, counts)
        fresh, fresh_counts = np.zeros((5, 3), np.int64), np.zeros(5, np.int64)
        cpu_kernels.add_rows(rows, after, given_weights, 2.0**20, fresh, fresh_counts)
        assert n_moved == (before != after).sum()
        np.testing.assert_array_equal(sums, fresh)
        np.testing.assert_array_equal(counts, fresh_counts)


@pytest.mark.parametrize("furthest", [0.0, 2.0, 8.0, 100.0])
def test_rows_too_near_to_one_before_them_are_taken_out(furthest: float) -> None:
    rng = np.random.default_rng(2)
    rows = floats(60, 3)
    rows[30:40] = rows[:10]  # arrived twice
    limits, accepted = rng.uniform(0.0, furthest, 60), rng.random(60) < 0.8
    expected: list[int] = []
    for i in np.flatnonzero(accepted):
        if all(distance(rows[i], rows[j]) > limits[i] for j in expected):
            expected.append(int(i))
    cpu_kernels.accept_in_order(rows, limits, accepted)
    assert np.flatnonzero(accepted).tolist() == expected
    assert not set(expected) & {i + 30 for i in expected if i < 10}
