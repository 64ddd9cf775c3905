"""The whole command, from a pool to a subset: the time of each phase, and whether two trees are identical."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import hkm_dask as hkm
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.data.pool import open_pool
from hkm_dask.events import Event, subscribe
from pipelines.benchmark.device import computing_on
from pipelines.benchmark.measure import clock

#: Where the whole command runs: in one process on its GPU, twice because the first run compiles; on CPU threads, to
#: check the result; on workers.
PLACES = {"GPU": "cuda", "GPU again": "cuda", "threads": "cpu", "--local-cuda": "workers"}


def whole_config(levels: Sequence[int], *, n_resamples: int, max_iter: int) -> hkm.Config:
    """Return the configuration of the whole command."""
    return hkm.Config(levels=tuple(hkm.Level(n_clusters=k, n_resamples=n_resamples, max_iter=max_iter) for k in levels))


def run_whole(pool: Path, tree: Path, config: hkm.Config, place: str) -> tuple[float, str]:
    """Return the seconds from start to subset, including starting workers, and a text with those of each phase.

    `place` is "cuda" or "cpu" for this process, or "workers" for one worker per GPU.
    """
    events: list[Event] = []

    def run() -> None:
        with ExitStack() as stack:
            stack.enter_context(subscribe(events.append))
            # A LocalCUDACluster assigns devices to its workers; threads of this process follow the variable.
            stack.enter_context(computing_on("cuda" if place == "cuda" else "cpu"))
            client = stack.enter_context(connect(local_cuda=True)).client if place == "workers" else None
            hkm.build_hierarchy(pool, tree, config, client=client)
            hkm.sample(tree, size=open_pool(pool).n_samples // 10)

    begin = time.time()
    seconds, _ = clock(run)
    phases = seconds_by_phase(events, begin, time.time())
    return seconds, ", ".join(f"{phase} {spent:.2f} s" for phase, spent in phases.items())


#: The phase that ends with an event, if not "start".
_PHASE_BEFORE = {
    "seeding": "seeding", "iteration": "Lloyd", "step_finished": "Lloyd", "assigned": "assign", "splitting": "split",
    "level_finished": "write", "run_finished": "write",
}  # fmt: skip


def seconds_by_phase(events: Sequence[Event], begin: float, end: float) -> dict[str, float]:
    """Divide the seconds of a run among its phases, by its events.

    The time before a first iteration, less that of a mean iteration, is seeding; before a resampled k-means, gathering.

    Examples
    --------
    >>> told = [("step_started", 1.0), ("iteration", 5.0), ("iteration", 6.0), ("assigned", 8.0), ("step_started", 9.0)]
    >>> events = [Event(kind, {"iteration": i, "step": int(i == 4)}, time) for i, (kind, time) in enumerate(told)]
    >>> seconds_by_phase(events, begin=0.5, end=9.5)
    {'start': 0.5, 'seeding': 3.0, 'Lloyd': 2.0, 'assign': 2.0, 'gather': 1.0, 'sample': 0.5}
    """
    spent = dict.fromkeys(("start", "seeding", "Lloyd", "assign", "gather", "split", "write", "sample"), 0.0)
    last, first_iterations, seconds, n_later = begin, 0, 0.0, 0
    for event in events:
        phase = _PHASE_BEFORE.get(event.kind, "start")
        if event.kind == "step_started" and event.fields["step"]:
            phase = "gather"
        if event.kind == "progress" and event.fields["stage"] == "sample":
            phase = "sample"
        if event.kind == "iteration":
            if event.fields["iteration"] == 1:
                phase, first_iterations = "seeding", first_iterations + 1
            else:
                seconds, n_later = seconds + event.time - last, n_later + 1
        spent[phase] += event.time - last
        last = event.time
    moved = min(spent["seeding"], first_iterations * seconds / max(1, n_later))
    spent["seeding"], spent["Lloyd"] = spent["seeding"] - moved, spent["Lloyd"] + moved
    spent["sample"] += end - last
    return {phase: value for phase, value in spent.items() if value > 0}


def compare_trees(one: Path, other: Path, n_levels: int) -> tuple[str, ...]:
    """Report, level by level, whether two hierarchies are bitwise identical."""
    trees = hkm.open_hierarchy(one), hkm.open_hierarchy(other)
    facts = []
    for t in range(1, n_levels + 1):
        pair = [tree[f"level_{t}"] for tree in trees]
        parts = {name: [level[name].to_numpy() for level in pair] for name in ("labels", "centroids")}
        same = {name: np.array_equal(a, b, equal_nan=name == "centroids") for name, (a, b) in parts.items()}
        said = ", ".join(f"{name} {'the same bits' if equal else 'differ'}" for name, equal in same.items())
        n_off = int((parts["labels"][0] != parts["labels"][1]).sum())
        facts.append(f"level {t}: {said}; {n_off} of {parts['labels'][0].size} labels differ")
    return tuple(facts)
