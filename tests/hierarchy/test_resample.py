import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute import memory
from hkm_dask.config import Level
from hkm_dask.hierarchy.resample import ResampleSet, enough_members, resample_size


@pytest.mark.parametrize(
    ("n_rows", "n_clusters", "expected"),
    [(5000, 100, 25), (199, 100, 2), (100, 100, 2), (9, 2, 2), (10**9, 3, 166666666)],
)
def test_auto_is_half_the_mean_cluster_size_but_at_least_two(n_rows: int, n_clusters: int, expected: int) -> None:
    assert resample_size(Level(n_clusters=n_clusters), n_rows) == expected


def test_clusters_are_resampled_before_they_are_split() -> None:
    assert resample_size(Level(n_clusters=100, n_splits=10), 5000) == 25


def test_a_number_is_taken_as_it_is() -> None:
    assert resample_size(Level(n_clusters=100, resample_size=1), 5000) == 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 10), st.integers(1, 40))
def test_raised_to_the_first_number_that_brings_enough_together(sizes: list[int], r: int, n_clusters: int) -> None:
    tried = range(r, max([*sizes, r]) + 1)
    brings = [sum(min(size, n) for size in sizes) >= n_clusters for n in tried]
    expected = tried[brings.index(True)] if any(brings) else tried[-1]
    assert enough_members(np.array(sizes), r, n_clusters) == expected


KEYED = st.lists(st.tuples(st.integers(-1, 3), st.sampled_from([0.0, 1.0, 2.0, np.inf])), max_size=30)


@given(KEYED, st.integers(1, 4), st.integers(0, 30), st.integers(0, 30))
def test_the_same_members_are_picked_however_rows_are_cut_into_parts(
    rows: list[tuple[int, float]], r: int, a: int, b: int
) -> None:
    labels, keys = np.array([g for g, _ in rows], np.int32), np.array([key for _, key in rows], np.float64)
    numbers = np.arange(len(rows))
    a, b = sorted((min(a, len(rows)), min(b, len(rows))))
    first, second, third = (
        ResampleSet.pick(4, r, keys[part], labels[part], numbers[part])
        for part in (slice(0, a), slice(a, b), slice(b, None))
    )
    expected = [i for c in range(4) for i in sorted(numbers[labels == c].tolist(), key=lambda i: (keys[i], i))[:r]]
    for picked in ((first + second) + third, first + (second + third)):
        assert picked.rows.tolist() == sorted(expected)
        np.testing.assert_array_equal(picked.keys, keys[picked.rows])
        np.testing.assert_array_equal(picked.labels, labels[picked.rows])


def test_members_take_as_much_room_as_there_are_however_many_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    n, k = 50_000, 2000
    labels = rng.integers(0, k, n).astype(np.int32)
    tracemalloc.start()
    picked = ResampleSet.pick(k, 20_000, rng.random(n), labels, np.arange(n))
    both = picked + picked
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(both.rows) == 2 * n
    assert peak < 200 * n  # 16 * k * r would be 640 MB


@pytest.mark.parametrize("step", [1, 7, 200])
def test_what_is_picked_comes_in_parts(step: int) -> None:
    rng = np.random.default_rng(0)
    keys, labels = rng.integers(0, 9, 100) / 4, rng.integers(-1, 4, 100).astype(np.int32)
    whole = ResampleSet.pick(4, 5, keys, labels, range(30, 130))
    parts = list(ResampleSet.picks(4, 5, keys, labels, range(30, 130), step))
    assert len(parts) == -(-100 // step)
    for name in ("keys", "labels", "rows"):
        assert np.concatenate([getattr(one, name) for one in parts]).tolist() == getattr(whole, name).tolist()


def test_memory_of_picking_is_half_of_what_it_was() -> None:
    """What was picked was held twice, as a whole: 75 bytes a row of a worker, labels and distances included."""
    n = 100_000_000
    assert memory.resample_stage(n, 1000, 8, n).total() < 37 * n
