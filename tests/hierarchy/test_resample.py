import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute import memory
from hkm_dask.config import Level
from hkm_dask.hierarchy.resample import enough_members, resample_size


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


def test_memory_of_picking_is_half_of_what_it_was() -> None:
    """What was picked was held twice, as a whole: 75 bytes a row of a worker, labels and distances included."""
    n = 100_000_000
    assert memory.resample_stage(n, 1000, 8, n).total() < 37 * n
