"""Projected hours of the paper's full runs on 8, 64 and 128 GPUs, from the cost model; none of them was run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hkm_dask.config import Config
from hkm_dask.planning.gpus import GPUS
from hkm_dask.planning.plan import make_plan
from hkm_dask.planning.workers import PlannedRows, Workers
from pipelines.cluster.simulator import Cluster, passes_of, reload_seconds, simulate
from pipelines.records import ROOT

#: Configuration, rows, features, and description.
RUNS = {
    "web": ("web-images.yaml", 743_000_000, 1024, "web images, 743M × 1024"),
    "text": ("ccnet-2.yaml", 789_000_000, 768, "text, 789M × 768"),
    "satellite": ("satellite.yaml", 18_000_000, 1024, "satellite, 18M × 1024"),
}
N_GPUS = (8, 64, 128)
#: Failures per GPU and hour: 419 in 54 days of 16,384 GPUs (arXiv:2407.21783), rounded up to one in 40,000 hours.
FAILURES = 1 / 40_000
#: Variation in the time of shares of equal size: a few percent between GPUs of one kind.
UNEVENNESS = 0.03
#: Bytes of host memory of each worker.
MEMORY = 256 << 30
#: Mean number of failures in the simulations that measure the cost of one, and number of those simulations.
_LOSSES, _SEEDS = 10, 3


def project(name: str, n_gpus: int, gpu: str = "a100") -> dict[str, Any]:
    """Project the hours of each level, memory, network traffic, and the cost of losing a worker."""
    file, n, d, _ = RUNS[name]
    config, workers = Config.from_yaml(ROOT / "configs" / file), Workers.of_gpus(GPUS[gpu], n_gpus, MEMORY)
    plan = make_plan(config, PlannedRows(n, d, "float16"), workers)
    passes, reload = passes_of(config, n, d, workers), reload_seconds(n, d, workers, GPUS[gpu].rates)
    even = Cluster(n_gpus, unevenness=UNEVENNESS, reload=reload)
    quiet = simulate(passes, even)
    often = replace(even, failures=_LOSSES * 3600 / quiet.total / n_gpus)
    lossy = [simulate(passes, often, seed) for seed in range(_SEEDS)]
    n_lost = sum(one.lost for one in lossy)
    price = sum(one.total - simulate(passes, even, seed).total for seed, one in enumerate(lossy)) / max(1, n_lost)
    hours = {str(level): seconds / 3600 for level, seconds in quiet.seconds.items()}
    return {
        "hours": hours, "total": quiet.total / 3600, "price_of_a_loss": price,
        "expected_losses": n_gpus * quiet.total / 3600 * FAILURES,
        "peak": plan.peak, "need": plan.need, "fits": plan.fits, "resident": plan.resident,
        "read": sum(one.read for level in plan.levels for one in level.files.values()),
        "written": sum(one.written for level in plan.levels for one in level.files.values()),
        "network": float(np.sum([level.network for level in plan.levels])),
        "flops": sum(level.flops for level in plan.levels),
    }  # fmt: skip


def project_all() -> dict[str, Any]:
    """Project all runs on all numbers of GPUs."""
    return {name: {str(n): project(name, n) for n in N_GPUS} for name in RUNS}
