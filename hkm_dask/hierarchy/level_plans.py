"""What the levels of a run are, and the memory each of their stages takes: known before anything is read or written."""

from __future__ import annotations

from typing import Any

from hkm_dask.compute.memory import StageBytes, assign_stage, project_level
from hkm_dask.config import Config
from hkm_dask.data import layout
from hkm_dask.hierarchy.resample import resample_size


def level_plans(config: Config, n_rows: int, n_features: int) -> list[dict[str, Any]]:
    """Shapes and settings of every level over so many rows, as the event ``run_started`` has them.

    Examples
    --------
    >>> config = Config.from_flags((200, 10), n_resamples=1)
    >>> [(plan["n"], plan["k"], plan["r"]) for plan in level_plans(config, 5000, 8)]
    [(5000, 200, 12), (200, 10, 10)]
    """
    plans = []
    for level in config.levels:
        plans.append(
            {"n": n_rows, "k": level.n_clusters, "d": n_features, "m": level.n_resamples,
             "r": resample_size(level, n_rows), "max_iter": level.max_iter, "tol": level.tol, "init": level.init,
             "n_splits": level.n_splits}
        )  # fmt: skip
        n_rows = level.n_centroids
    return plans


def level_stages(
    plans: list[dict[str, Any]], *, n_total: int, n_labeled: int, n_workers: int, n_threads: int, with_driver: bool
) -> dict[str, StageBytes]:
    """Bytes a worker needs for each stage of every level, above its idle size and its inputs; see `project_level`.

    Parameters
    ----------
    plans : list of dict
        From `level_plans`.
    n_total, n_labeled : int
        Rows that level 1 has labels for, and rows that get one: more than level 1 is fit on with a `fit_sample`.

    Examples
    --------
    >>> plans = level_plans(Config.from_flags((200, 10), n_resamples=0), 5000, 8)
    >>> stages = level_stages(plans, n_total=5000, n_labeled=5000, n_workers=1, n_threads=2, with_driver=True)
    >>> [name for name in stages if "level 2" in name][:2]
    ['finding directions of level 2', 'seeding of level 2']
    """
    stages = dict[str, StageBytes]()
    for t, plan in enumerate(plans, 1):
        n_rows = n_total if t == 1 else plan["n"]
        projected = project_level(
            plan["n"], plan["k"], plan["d"], init=plan["init"], n_resamples=plan["m"], r=plan["r"],
            n_splits=plan["n_splits"], n_workers=n_workers, n_threads=n_threads, with_driver=with_driver,
        )  # fmt: skip
        held = 0 if t == 1 else _bytes_of_centroids_below(n_rows, plan["d"], with_driver)
        stages |= {f"{name} of level {t}": stage + StageBytes(held) for name, stage in projected.items()}
    if plans[0]["n"] < n_labeled:
        k = plans[0]["k"] * plans[0]["n_splits"]
        stages["assigning all rows"] = assign_stage(-(-n_labeled // n_workers), k, plans[0]["d"])
    return stages


def _bytes_of_centroids_below(n_rows: int, n_features: int, with_driver: bool) -> int:
    """Bytes held of the rows of an upper level, which are centroids: all in one process, on workers only some chunks.

    Workers have the numbers of those with members besides.
    """
    if with_driver:
        return 4 * n_rows * n_features
    chunk_bytes = 4 * n_features * layout.chunk_rows(n_rows, 4 * n_features)
    return min(4 * n_rows * n_features, 2 * chunk_bytes) + 8 * n_rows
