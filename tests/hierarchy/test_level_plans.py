"""Memory that the levels of a run are said to take."""

from hkm_dask.compute.memory import StageBytes
from hkm_dask.config import Config, Level
from hkm_dask.hierarchy.level_plans import level_plans, level_stages


def stages(n: int, d: int, *, with_driver: bool) -> dict[str, StageBytes]:
    """Stages of level 2 over `n` centroids that level 1 has by splitting clusters."""
    config = Config(levels=[Level(n_clusters=n // 100, n_splits=100, n_resamples=0), Level(n_clusters=50)])
    plans = level_plans(config, n, d)
    of_all = level_stages(
        plans, n_labeled=n, n_workers=8, n_threads=1, with_driver=with_driver
    )  # fmt: skip
    return {name: stage for name, stage in of_all.items() if name.endswith("level 2")}


def test_workers_need_not_hold_the_centroids_of_the_level_below() -> None:
    """They read them from the store, block by block; the numbers of those with members are 8 bytes each."""
    n, d = 2_000_000, 1024
    assert max(stage.total() for stage in stages(n, d, with_driver=False).values()) < 4 * n * d // 16
    assert all(stage.total() > 4 * n * d for stage in stages(n, d, with_driver=True).values())
