"""Remedies if a run does not fit: more memory or workers, fewer clusters, splitting in two steps, smaller chunks."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hkm_dask.compute.memory import StageBytes, limit_mib
from hkm_dask.compute.planned_runner import DEVICE_SHARE
from hkm_dask.compute.range_memory import ranges_on_device
from hkm_dask.config import Config, Level
from hkm_dask.data.rows import Rows
from hkm_dask.data.summary import size_text
from hkm_dask.hierarchy.level_plans import level_plans, level_stages, with_ranges
from hkm_dask.kmeans.seeding.random_rows import INITS_BY_RANGES
from hkm_dask.planning.workers import PlannedRows, Workers

#: Most workers that are proposed.
_MOST_WORKERS = 1 << 14
#: Least rows per part of a split cluster.
_ROWS_PER_PART = 2
#: Bytes of a small chunk.
_SMALL_CHUNK = 1 << 20


@dataclass(frozen=True)
class Check:
    """The checks that a build makes before it writes anything, for modifiable settings, rows and workers.

    Level 1 is fit on `rows`, and assigns labels to `n_labeled` rows.
    """

    config: Config
    rows: Rows
    workers: Workers
    n_labeled: int

    def plans(self) -> list[dict[str, Any]]:
        """Return the shape and settings of every level, with the number of ranges of its clusters."""
        plans = level_plans(self.config, self.rows.n_rows, self.rows.n_features)
        with self.workers.runner() as runner:
            return with_ranges(plans, runner, runner.memory_budget - runner.input_bytes(self.rows))

    def stages(self) -> dict[str, StageBytes]:
        """Return the bytes that each stage needs, by name, besides `inputs`."""
        with self.workers.runner() as runner:
            budget = runner.memory_budget - runner.input_bytes(self.rows)
            return level_stages(self.plans(), runner, budget, n_labeled=self.n_labeled)

    def need(self, level: int | None = None) -> int:
        """Return the least memory limit in bytes for all stages, or for those of one level."""
        names = [one for one in self.stages() if level is None or one.endswith(f"of level {level}")]
        with self.workers.runner() as runner:
            inputs = runner.input_bytes(self.rows)
        return int(limit_mib(max(self.stages()[one].total() for one in names) + inputs) * 2**20) + 1

    def fits(self, level: int | None = None) -> bool:
        """Return whether the build would begin and device memory suffices, for all levels or one."""
        plans = self.plans() if level is None else self.plans()[level - 1 : level]
        gpu = self.workers.gpu
        on_device = gpu is None or all(
            one["n_ranges"] >= ranges_on_device(one["k"], one["d"], int(DEVICE_SHARE * gpu.size)) for one in plans
        )
        return on_device and self.need(level) <= self.workers.memory_limit + 1

    def with_level(self, number: int, level: Level) -> Check:
        """Return a copy with one level replaced."""
        levels = [level if t == number else one for t, one in enumerate(self.config.levels, 1)]
        return replace(self, config=self.config.model_copy(update={"levels": tuple(levels)}))


def remedies_for(check: Check) -> Iterator[str]:
    """Yield changes that make the run fit, each checked as the build would; nothing if it fits."""
    if check.fits():
        return
    limit, need = check.workers.memory_limit, check.need()
    if replace(check, workers=replace(check.workers, memory_limit=need)).fits():
        yield f"--memory {math.ceil(need / 2**20)}MiB per worker, instead of {limit >> 20}MiB"
    n = check.workers.n_workers
    while n < _MOST_WORKERS:
        n *= 2
        if replace(check, workers=replace(check.workers, n_workers=n, is_cluster=True)).fits():
            yield f"{n} such workers"
            break
    for t in range(1, len(check.config.levels) + 1):
        if not check.fits(t):
            yield from _fewer_clusters(check, t)
    small = PlannedRows(check.rows.n_rows, check.rows.n_features, check.rows.dtype.name)
    small.chunk_rows = max(1, _SMALL_CHUNK // small.row_bytes)
    if check.rows.chunk_rows > small.chunk_rows and replace(check, rows=small).fits():
        least = size_text(check.rows.chunk_rows * check.rows.row_bytes)
        yield f"hkm ingest --chunk-mb 1: chunks of 1 MiB instead of {least}"


def _fewer_clusters(check: Check, number: int) -> Iterator[str]:
    """Yield remedies for a level that does not fit: the same number of clusters in two steps, or fewer."""
    level = check.config.levels[number - 1]
    n_rows = level_plans(check.config, check.rows.n_rows, check.rows.n_features)[number - 1]["n"]
    name = f"--set levels.{number}"
    for init in INITS_BY_RANGES:
        if check.with_level(number, level.model_copy(update={"init": init})).fits(number):
            yield f"{name}.init={init}: then no worker has to hold all clusters"
    for n_splits in (10, 100, 1000):
        parts = level.model_copy(update={"n_clusters": -(-level.n_centroids // n_splits), "n_splits": n_splits})
        enough = n_rows >= _ROWS_PER_PART * level.n_centroids and parts.n_clusters > 1
        if enough and check.with_level(number, parts).fits(number):
            yield f"{name}.n_clusters={parts.n_clusters} {name}.n_splits={n_splits}: as many clusters, in two steps"
            break

    def is_too_much(k: int) -> bool:
        return not check.with_level(number, level.model_copy(update={"n_clusters": k})).fits(number)

    most = bisect_left(range(1, level.n_clusters), True, key=is_too_much)
    if most > 1:
        unit = 10 ** max(0, len(str(most)) - 2)  # round to two digits
        yield f"{name}.n_clusters={most // unit * unit}: about as many as fit"
