"""Shapes of the levels of a run, and the memory that each stage takes, known before anything is read or written."""

from __future__ import annotations

from typing import Any

from hkm_dask.compute.memory import StageBytes, project_level
from hkm_dask.compute.range_memory import label_stage, n_ranges_for, project_ranges
from hkm_dask.compute.runner import Runner
from hkm_dask.config import Config, Level
from hkm_dask.data import layout
from hkm_dask.kmeans.seeding.random_rows import INITS_BY_RANGES


def resample_size(level: Level, n_rows: int) -> int:
    """Return the members to take per cluster (arXiv:2405.15613 §3.3); "auto" is half the mean size, at least 2.

    >>> resample_size(Level(n_clusters=100), 5000), resample_size(Level(n_clusters=100, resample_size=7), 5000)
    (25, 7)
    """
    if level.resample_size == "auto":
        # Clusters are split after resampling, so the clusters of the k-means count, not their parts.
        return max(2, n_rows // (2 * level.n_clusters))
    return int(level.resample_size)


def level_plans(config: Config, n_rows: int, n_features: int) -> list[dict[str, Any]]:
    """Return shapes and settings of every level, as in the event ``run_started``; see `with_ranges`.

    >>> config = Config.from_flags((200, 10), n_resamples=1)
    >>> [(plan["n"], plan["k"], plan["r"]) for plan in level_plans(config, 5000, 8)]
    [(5000, 200, 12), (200, 10, 10)]
    """
    plans = []
    for level in config.levels:
        plans.append(
            {"n": n_rows, "k": level.n_clusters, "d": n_features, "m": level.n_resamples,
             "r": resample_size(level, n_rows), "max_iter": level.max_iter, "tol": level.tol, "init": level.init,
             "n_splits": level.n_splits, "n_ranges": 1}
        )  # fmt: skip
        n_rows = level.n_centroids
    return plans


def level_stages(plans: list[dict[str, Any]], runner: Runner, budget: int, *, n_labeled: int) -> dict[str, StageBytes]:
    """Return the bytes that a worker needs for each stage of every level, above its idle size and its inputs.

    `plans` are from `level_plans`; `n_labeled` is the number of rows labeled at level 1, which exceeds the rows of the
    fit if there is a `fit_sample`. The `budget` for a stage of a worker of the `runner` decides whether one process
    holds the centroids that a higher level clusters. See `project_level`.

    >>> from hkm_dask.compute.planned_runner import PlannedRunner
    >>> plans = level_plans(Config.from_flags((200, 10), n_resamples=0), 5000, 8)
    >>> with PlannedRunner(1, 2, 1 << 30) as runner:
    ...     stages = level_stages(plans, runner, 1 << 30, n_labeled=5000)
    >>> [name for name in stages if "level 2" in name][:2]
    ['finding directions of level 2', 'seeding of level 2']
    """
    stages = dict[str, StageBytes]()
    for t, plan in enumerate(plans, 1):
        stages |= _stages_of(t, plan, runner, budget)
    if plans[0]["n"] < n_labeled:
        k, n_ranges = plans[0]["k"] * plans[0]["n_splits"], plans[0]["n_ranges"] if plans[0]["n_splits"] == 1 else 1
        stages["assigning all rows"] = label_stage(-(-n_labeled // runner.n_workers), k, plans[0]["d"], n_ranges)
    return stages


def _stages_of(t: int, plan: dict[str, Any], runner: Runner, budget: int) -> dict[str, StageBytes]:
    """Return the bytes of each stage of one level, by name."""
    shape = plan["n"], plan["k"], plan["d"]
    members: dict[str, int] = {
        "n_resamples": plan["m"], "r": plan["r"], "n_workers": runner.n_workers, "n_threads": runner.threads_per_worker
    }  # fmt: skip
    projected = project_level(
        *shape, init=plan["init"], n_splits=plan["n_splits"], with_driver=runner.in_process, **members
    )
    if plan["n_ranges"] > 1:
        projected |= project_ranges(*shape, plan["n_ranges"], **members)
    held = 0
    if t > 1:
        in_memory = runner.in_process and 4 * plan["n"] * plan["d"] <= budget // 4
        held = _bytes_of_centroids_below(plan["n"], plan["d"], in_memory)
    return {f"{name} of level {t}": stage + StageBytes(held) for name, stage in projected.items()}


def with_ranges(plans: list[dict[str, Any]], runner: Runner, budget: int) -> list[dict[str, Any]]:
    """Return the plans, with the clusters of a level split into ranges if they exceed a worker's `budget`.

    The budget is the part of it that a stage may use; see `range_memory.n_ranges_for` and, for devices,
    `Runner.least_ranges`. Only some seeding methods support ranges.

    >>> from hkm_dask.compute.planned_runner import PlannedRunner
    >>> plans = level_plans(Config.from_flags((100_000, 10), init="random"), 10**6, 256)
    >>> with PlannedRunner(1, 2, 2 << 30) as runner:
    ...     [plan["n_ranges"] for plan in with_ranges(plans, runner, 1 << 30)]
    [5, 1]
    """

    def ranges_of(t: int, plan: dict[str, Any]) -> int:
        def stages_of(n_ranges: int) -> dict[str, StageBytes]:
            return _stages_of(t, plan | {"n_ranges": n_ranges}, runner, budget)

        n_ranges = n_ranges_for(stages_of, plan["k"], budget=budget, n_threads=runner.threads_per_worker)
        return max(runner.least_ranges(plan["k"], plan["d"]), n_ranges)

    return [
        plan | {"n_ranges": ranges_of(t, plan) if plan["init"] in INITS_BY_RANGES else 1}
        for t, plan in enumerate(plans, 1)
    ]


def shareable(plans: list[dict[str, Any]], runner: Runner, budget: int) -> list[int]:
    """Return the levels that do not fit in memory, but would with a seeding method that supports ranges.

    >>> from hkm_dask.compute.planned_runner import PlannedRunner
    >>> plans = level_plans(Config.from_flags((100_000, 10)), 10**6, 256)
    >>> with PlannedRunner(1, 2, 2 << 30) as runner:
    ...     shareable(plans, runner, 1 << 30)
    [1]
    """
    shared = with_ranges([plan | {"init": INITS_BY_RANGES[0]} for plan in plans], runner, budget)

    def fits(t: int, plan: dict[str, Any]) -> bool:
        return max(stage.total() for stage in _stages_of(t, plan, runner, budget).values()) <= budget

    levels = enumerate(zip(plans, shared, strict=True), 1)
    return [t for t, (plan, other) in levels if not fits(t, plan) and other["n_ranges"] > 1 and fits(t, other)]


def _bytes_of_centroids_below(n_rows: int, n_features: int, in_memory: bool) -> int:
    """Return the bytes of the rows of a higher level, which are centroids: all `in_memory`, or only some chunks.

    In the latter case, the numbers of the clusters with members are held as well.
    """
    if in_memory:
        return 4 * n_rows * n_features
    chunk_bytes = 4 * n_features * layout.chunk_rows(n_rows, 4 * n_features)
    return min(4 * n_rows * n_features, 2 * chunk_bytes) + 8 * n_rows
