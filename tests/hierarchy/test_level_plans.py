"""Shapes of the levels of a run, and their planned memory."""

import pytest

from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.planned_runner import PlannedRunner
from hkm_dask.config import Config, Level
from hkm_dask.hierarchy.level_plans import level_plans, level_stages, resample_size


def stages(n: int, d: int, *, with_driver: bool) -> dict[str, StageBytes]:
    """Stages of level 2 over `n` centroids that level 1 has by splitting clusters."""
    config = Config(levels=[Level(n_clusters=n // 100, n_splits=100, n_resamples=0), Level(n_clusters=50)])
    plans = level_plans(config, n, d)
    with PlannedRunner(8, 1, 1 << 40, is_cluster=not with_driver) as runner:
        of_all = level_stages(plans, runner, runner.memory_budget, n_labeled=n)
    return {name: stage for name, stage in of_all.items() if name.endswith("level 2")}


def test_workers_need_not_hold_the_centroids_of_the_level_below() -> None:
    """They read them from the store, block by block; the numbers of those with members are 8 bytes each."""
    n, d = 2_000_000, 1024
    assert max(stage.total() for stage in stages(n, d, with_driver=False).values()) < 4 * n * d // 16
    assert all(stage.total() > 4 * n * d for stage in stages(n, d, with_driver=True).values())


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
