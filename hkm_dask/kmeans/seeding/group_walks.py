"""Greedy k-means++ walks over groups of points: in parallel on the workers' devices, or one by one on CPU threads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.memory import WALK_POINTS, StageBytes, grid_bytes
from hkm_dask.compute.runner import Report, Runner, n_processors
from hkm_dask.compute.threads import share_out
from hkm_dask.search.engine import LEAST_FEATURES, GridWalk, Walked
from hkm_dask.search.worker import engine_for

#: Bytes of grid points that a worker prepares at once: enough groups for every multiprocessor of a device.
_GRID_BYTES = 512 << 20
#: A group's number, its points, and how many of them to choose.
Group = tuple[int, NDArray[np.int64], int]


class GroupWalk(Protocol):
    """The walk over the points of a group."""

    def __call__(self, group: Group, /) -> Walked:
        """Run the walk on a CPU thread."""

    def on_grid(self, group: Group, /) -> GridWalk | None:
        """Return the walk in the form for devices, or None if they cannot run it."""


def walk_groups(
    walk: GroupWalk, groups: Sequence[Group], runner: Runner, *, n_features: int, takes: StageBytes, report: Report
) -> list[Walked]:
    """Walk over groups of points, on the workers' devices if they have any; on CPU threads if these cannot.

    `takes` is the memory a worker needs for all groups, and for one walk on a CPU thread. `report` gets the number of
    groups walked, and the total.
    """
    outcomes: list[Walked | None] = [None] * len(groups)
    with runner.on_processors() as processors:
        has_devices = processors is not runner
    if has_devices and n_features >= LEAST_FEATURES and max(len(points) for _, points, _ in groups) <= WALK_POINTS:
        outcomes = _walk_on_devices(walk, groups, runner, n_features, takes.process)
    rest = [group for group, walked in zip(groups, outcomes, strict=True) if walked is None]
    n_walked = len(groups) - len(rest)
    if n_walked:
        report(n_walked, len(groups))

    def walked_more(done: int, _: int) -> None:
        report(n_walked + done, len(groups))

    if rest:
        with runner.on_processors() as processors:
            others = iter(processors.map(walk, rest, stage="seed", takes=takes, report=walked_more))
        outcomes = [walked or next(others) for walked in outcomes]
    return [walked for walked in outcomes if walked is not None]


def _walk_on_devices(
    walk: GroupWalk, groups: Sequence[Group], runner: Runner, n_features: int, n_bytes: int
) -> list[Walked | None]:
    """Share the groups out to the workers' devices; each worker holds `n_bytes` for all groups."""
    takes = grid_bytes(max(len(points) for _, points, _ in groups), n_features)
    n_threads = max(1, min(n_processors(), (runner.memory_budget - n_bytes) // takes))
    n_shares = min(runner.n_workers, len(groups))
    cuts = (len(groups) * np.arange(n_shares + 1) // n_shares).tolist()
    shares = [groups[low:high] for low, high in itertools.pairwise(cuts)]
    stage = StageBytes(n_bytes, n_threads * takes)
    outcomes = runner.map(_WalkTogether(walk, n_features, n_threads), shares, stage="seed", takes=stage)
    return [walked for share in outcomes for walked in share]


@dataclass(frozen=True)
class _WalkTogether:
    """Task: walk over some groups on the device; None for those left to CPU threads."""

    walk: GroupWalk
    n_features: int
    n_threads: int  # that quantize points to their grids

    def __call__(self, groups: Sequence[Group]) -> list[Walked | None]:
        sizes, d = [len(points) for _, points, _ in groups], self.n_features
        outcomes: list[Walked | None] = [None] * len(groups)
        engine = engine_for(2.0 * d * sum(n * n for n in sizes))
        if not engine.walks_groups(d):
            return outcomes
        n_at_once = max(1, _GRID_BYTES // (2 * d * max(sizes)))
        n_threads = min(self.n_threads, n_processors())
        for low in range(0, len(groups), n_at_once):
            made = enumerate(share_out(self.walk.on_grid, groups[low : low + n_at_once], n_threads), low)
            walks = {place: one for place, one in made if one is not None}
            walked = engine.walk_groups(list(walks.values()))
            for (place, one), outcome in zip(walks.items(), walked, strict=True):
                # A walk that ends early may have lost points on the grid.
                if outcome is not None and len(outcome[0]) == len(one.draws):
                    outcomes[place] = groups[place][1][outcome[0]], outcome[1]
        return outcomes
