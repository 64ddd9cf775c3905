"""Simulation of the passes of a planned run on workers that vary in speed and fail now and then.

In a pass each worker processes a share of the rows. When all shares are done, one worker does the remaining work of the
pass. The share of a failed worker is repeated by the first free worker after the failure is noticed. A replacement
worker arrives later, and reads the rows of its share before it works on them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hkm_dask.config import Config
from hkm_dask.planning.cost import Step, run_steps
from hkm_dask.planning.rates import Rates, Work
from hkm_dask.planning.workers import Workers

#: Work that every worker does for its own rows; the rest is done by one worker for all.
_SHARED = ("products", "measured", "device_bytes", "link_bytes", "launches", "synchronizations")


@dataclass(frozen=True)
class Pass:
    """One pass of a level (0 for none): seconds of each worker's share, then of the work of one worker for all."""

    level: int
    share: float
    after: float


@dataclass(frozen=True)
class Cluster:
    """Workers, and how often and how they fail.

    Attributes
    ----------
    n_workers : int
    failures : float
        Failures per worker and hour.
    notice, replace, reload : float
        Seconds until a failure is noticed, until a replacement arrives, and for it to read its share of the rows.
    unevenness : float
        Standard deviation of the logarithm of the time of a share.
    """

    n_workers: int
    failures: float = 0.0
    notice: float = 30.0
    replace: float = 300.0
    reload: float = 0.0
    unevenness: float = 0.0


@dataclass
class Outcome:
    """Result of a simulated run.

    Attributes
    ----------
    seconds : dict
        Seconds by level.
    shares : int
        Completed shares: passes times workers.
    lost : int
        Number of failed workers.
    wasted : float
        Seconds of work lost with them.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    shares: int = 0
    lost: int = 0
    wasted: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all levels together."""
        return sum(self.seconds.values())


class _Run:
    """State of the workers: when each is free, and when it will fail."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster, self.rng, self.outcome = cluster, np.random.default_rng(seed), Outcome()
        self.free = np.zeros(cluster.n_workers)
        self.loss = np.array([self._next_loss(0.0) for _ in range(cluster.n_workers)])

    def _next_loss(self, now: float) -> float:
        rate = self.cluster.failures
        return now + self.rng.exponential(3600.0 / rate) if rate else math.inf

    def lose(self, worker: int) -> float:
        """Let a worker fail and be replaced; return the time when the failure is noticed."""
        loss = float(self.loss[worker])
        self.free[worker] = loss + self.cluster.replace + self.cluster.reload
        self.loss[worker] = self._next_loss(float(self.free[worker]))
        self.outcome.lost += 1
        return loss + self.cluster.notice

    def share(self, worker: int, since: float, seconds: float) -> tuple[bool, float]:
        """Run a share on a worker; return True and the end, or False and when the worker's failure is noticed."""
        begin = max(float(self.free[worker]), since)
        loss = float(self.loss[worker])
        if loss < begin + seconds:
            self.outcome.wasted += max(0.0, loss - begin)
            return False, max(self.lose(worker), since)
        self.free[worker] = begin + seconds
        self.outcome.shares += 1
        return True, begin + seconds

    def all_shares(self, now: float, seconds: np.ndarray) -> float:
        """Run a share on every worker, and lost shares on the first free workers; return when all are done."""
        lost, ends = list[tuple[float, int]](), [now]
        for worker, one in enumerate(seconds.tolist()):
            done, time = self.share(worker, now, one)
            ends.append(time) if done else heapq.heappush(lost, (time, worker))
        while lost:
            noticed, share = heapq.heappop(lost)
            done, time = self.share(int(np.argmin(self.free)), noticed, float(seconds[share]))
            ends.append(time) if done else heapq.heappush(lost, (time, share))
        return max(ends)


def simulate(passes: Sequence[Pass], cluster: Cluster, seed: int = 0) -> Outcome:
    """Simulate the passes one after the other.

    Examples
    --------
    >>> outcome = simulate([Pass(1, share=2.0, after=0.5), Pass(2, 3.0, 0.0)], Cluster(n_workers=4))
    >>> outcome.seconds, outcome.shares
    ({1: 2.5, 2: 3.0}, 8)
    """
    run, now = _Run(cluster, seed), 0.0
    spread = np.random.default_rng([seed, 1])  # a separate stream, so that failures do not change it
    for one in passes:
        uneven = np.exp(spread.normal(0.0, cluster.unevenness, cluster.n_workers))
        end = run.all_shares(now, one.share * uneven) + one.after
        run.outcome.seconds[one.level] = run.outcome.seconds.get(one.level, 0.0) + end - now
        now = end
    return run.outcome


def passes_of(config: Config, n_rows: int, n_features: int, workers: Workers, dtype: str = "float16") -> list[Pass]:
    """Return the passes of a run, from the plan's counts and rates; every k-means takes max_iter iterations."""
    steps = run_steps(n_rows, n_features, dtype, config.levels, n_workers=workers.n_workers)
    return [one for step in steps for one in _passes_of(step, workers, n_features)]


def _passes_of(step: Step, workers: Workers, n_features: int) -> Iterator[Pass]:
    rates = workers.rates
    assert rates is not None
    n = max(1, round(step.work.rounds))
    own = replace(Work(), **{name: getattr(step.work, name) for name in _SHARED})
    if step.level == 0 and step.phase == "start":  # all read at once
        own = step.work
    share = rates.seconds(own, n_features)
    after = max(0.0, rates.seconds(step.work, n_features) - share)
    yield from [Pass(step.level, share / n, after / n)] * n


def reload_seconds(n_rows: int, n_features: int, workers: Workers, rates: Rates, itemsize: int = 2) -> float:
    """Return the seconds for a replacement worker to read its share of the rows with three threads."""
    return math.ceil(n_rows / workers.n_workers) * n_features * itemsize / (3 * rates.store)
