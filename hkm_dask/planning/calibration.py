"""What this machine does in a second: small trees are built with the real engine, and rates fitted to what each took.

A phase of a build takes time for every operation of a product, for every value of a row it passes over, and for every
round of tasks. Trees of a few sizes tell the three apart; the counts are those of `hierarchy.cost`.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.runner import n_processors
from hkm_dask.config import Config, Level
from hkm_dask.data.pool import open_pool
from hkm_dask.events import subscribe
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.hierarchy.cost import Step, run_steps
from hkm_dask.hierarchy.rates import Rates
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.planning.phases import PhaseClock
from hkm_dask.planning.processor_rates import NO_LIMIT, PROCESSORS, Calibration, processor_rates

#: Rows of the smallest tree, and how many times more the next one has.
_FIRST_ROWS, _GROWTH = 2000, 2
#: Rows of a tree that is built before any is timed.
_WARMING_ROWS = 400
#: Rows of the tree of many clusters, and rows to each of those.
_WIDE_ROWS, _WIDE_PER_CLUSTER = 8192, 4
#: Rows to a cluster in a small tree, at most: what they cost beyond these grows evenly.
_MOST_PER_CLUSTER = 40
#: Resampling steps of a small tree, at most: each takes as long as another.
_MOST_RESAMPLES = 2
#: Seconds a tree of twice as many rows, and clusters, takes at most, over what the last one took.
_SLOWER = 4.0
#: Rows to a cluster that is split in a small tree, and its parts.
_SPLIT_ROWS, _SPLITS = 400, 20
#: Phases that compare rows with centroids.
_SEARCHING = ("seeding", "Lloyd", "assign", "split")


def made_rows(n_rows: int, n_features: int, *, seed: int = 0) -> NDArray[np.float16]:
    """Rows like embeddings: groups of very unequal size, in few directions that matter and many that hardly do.

    Examples
    --------
    >>> made_rows(5, 3).shape
    (5, 3)
    """
    rng = np.random.default_rng(seed)
    n_groups = max(1, n_rows // 20)
    shares = 1.0 / np.arange(1, n_groups + 1)
    groups = rng.choice(n_groups, n_rows, p=shares / shares.sum())
    scales = np.arange(1, n_features + 1) ** -0.4
    rows = rng.normal(size=(n_groups, n_features))[groups] + rng.normal(size=(n_rows, n_features))
    return np.asarray(rows * scales / np.linalg.norm(scales), np.float16)


def calibrate(
    config: Config,
    n_rows: int,
    rows: Callable[[int], NDArray[Any]],
    *,
    seconds: float = 8.0,
    memory_limit: int | None = None,
) -> Calibration:
    """Build small trees for some seconds, and fit rates to what they took.

    Parameters
    ----------
    config : Config
        Of the run that is planned: small trees have as many rows to a cluster, as far as that is worth it.
    n_rows : int
        Of the run.
    rows : callable
        Gives so many rows, at most, to build over.
    seconds : float
        To spend, about.
    """
    few = rows(min(_WARMING_ROWS, n_rows))
    _measure(few, scaled_config(config, n_rows, len(few)), memory_limit)  # what is compiled and loaded once
    begin, n, samples = time.perf_counter(), min(_FIRST_ROWS, n_rows), list[_Sample]()
    wide = rows(min(_WIDE_ROWS, n_rows))
    samples.append(_measure(wide, _wide_config(config, len(wide)), memory_limit))
    while True:
        some, started = rows(n), time.perf_counter()
        samples.append(_measure(some, scaled_config(config, n_rows, len(some)), memory_limit))
        took = time.perf_counter() - started
        n = min(_GROWTH * n, n_rows)
        if len(some) < n / _GROWTH or len(some) == n_rows or time.perf_counter() - begin + _SLOWER * took > seconds:
            break
    if any(level.n_splits > 1 for level in config.levels):
        samples.append(_measure(some, _split_config(len(some)), memory_limit))
    largest = max(samples, key=lambda one: one.n_rows)
    return Calibration(
        machine=_machine(), n_processors=n_processors(), rates=_fit(samples), iterations=_iterations(samples),
        n_rows=largest.n_rows, n_features=largest.n_features, seconds=round(time.perf_counter() - begin, 2),
        read=largest.read, write=largest.write,
    )  # fmt: skip


def scaled_config(config: Config, n_rows: int, n: int) -> Config:
    """The settings of a run over `n_rows` for `n` of them: fewer clusters, and no more resamplings than tell.

    Examples
    --------
    >>> scaled = scaled_config(Config.from_flags((2000, 400, 100)), 40_000, 4000)
    >>> [(level.n_clusters, level.n_resamples) for level in scaled.levels]
    [(200, 2), (40, 2), (10, 2)]
    """
    levels, below, small = [], n_rows, n
    for level in config.levels:
        small = max(1, min(small, round(small / min(below / level.n_clusters, _MOST_PER_CLUSTER))))
        below = level.n_centroids
        r = level.resample_size if level.resample_size == "auto" else min(level.resample_size, _MOST_PER_CLUSTER)
        changed = {"n_clusters": small, "n_splits": 1, "resample_size": r}
        levels.append(level.model_copy(update={**changed, "n_resamples": min(level.n_resamples, _MOST_RESAMPLES)}))
    return config.model_copy(update={"levels": tuple(levels), "subset": None, "fit_sample": None})


def _wide_config(config: Config, n: int) -> Config:
    """One level of many clusters, which shows what each of them costs, whatever else a small tree takes time for."""
    few = {"n_clusters": max(1, n // _WIDE_PER_CLUSTER), "n_splits": 1, "n_resamples": 0, "max_iter": 3}
    level = config.levels[0].model_copy(update=few)
    return config.model_copy(update={"levels": (level,), "subset": None, "fit_sample": None})


def _split_config(n: int) -> Config:
    level = Level(n_clusters=max(2, n // _SPLIT_ROWS), n_splits=_SPLITS, n_resamples=0)
    return Config(levels=[level])


@dataclass
class _Sample:
    """A small tree: its settings, what its phases took, and the rates of its pool."""

    config: Config
    n_rows: int
    n_features: int
    dtype: str
    clock: PhaseClock
    read: float
    write: float
    n_iterations: dict[tuple[int, bool], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.n_iterations = {place: float(np.mean(all_)) for place, all_ in self.clock.iterations.items()}

    def steps(self) -> list[Step]:
        """What was done, counted."""

        def iterations(number: int, resampled: bool, level: Level) -> int:
            return round(self.n_iterations.get((number, resampled), level.max_iter))

        return run_steps(
            self.n_rows, self.n_features, self.dtype, self.config.levels, structure=PROCESSORS, start_seconds=0.0,
            iterations=iterations,
        )  # fmt: skip


def _measure(rows: NDArray[Any], config: Config, memory_limit: int | None) -> _Sample:
    """Build a small tree over some rows, and time what is done."""
    with tempfile.TemporaryDirectory(prefix="hkm-plan-") as name:
        folder = Path(name)
        np.save(folder / "rows.npy", rows)
        times = [time.perf_counter()]
        ingest([folder / "rows.npy"], folder / "pool.zarr")
        times.append(time.perf_counter())
        open_pool(folder / "pool.zarr").rows().read(0, len(rows))
        times.append(time.perf_counter())
        clock = PhaseClock()
        with subscribe(clock):
            write_hierarchy(folder / "pool.zarr", folder / "tree.zarr", config, memory_limit=memory_limit)
    write, read = (rows.nbytes / max(took, 1e-6) for took in np.diff(times).tolist())
    return _Sample(config, len(rows), rows.shape[1], rows.dtype.name, clock, read, write)


def features_of(step: Step) -> tuple[float, float, float, float]:
    """What processors take time for: operations of products, measured values, rounds of tasks, bytes in stores.

    Where rows are searched, what is written beside is told from it by nothing, and left out.

    Examples
    --------
    >>> from hkm_dask.hierarchy.rates import Work
    >>> features_of(Step(1, "seeding", "walks", Work(products=2.0, shared_products=1.0, rounds=1.0, store_bytes=9)))
    (3.0, 0.0, 1.0, 0.0)
    """
    work = step.work
    if step.phase not in _SEARCHING:
        return 0.0, 0.0, work.rounds, work.store_bytes
    products = work.products + work.thread_products + work.shared_products
    return products, work.measured + work.thread_measured, work.rounds, 0.0


def _fit(samples: list[_Sample]) -> dict[str, Rates]:
    """Rates of every phase, none negative, that come closest to what all trees took of it, level by level."""
    from scipy.optimize import nnls

    counted: dict[str, list[tuple[NDArray[np.float64], float]]] = {}
    for sample in samples:
        of_place: dict[tuple[int, str], NDArray[np.float64]] = {}
        for step in sample.steps():
            place = step.level, step.phase
            of_place[place] = of_place.get(place, np.zeros(4)) + np.array(features_of(step))
        for (level, phase), features in of_place.items():
            seconds = sum(
                one.seconds for (t, _, name), one in sample.clock.spent.items() if (t, name) == (level, phase)
            )
            counted.setdefault(phase, []).append((features, seconds))
    rates = {}
    for phase, rows in counted.items():
        features, took = np.array([one for one, _ in rows]), np.array([one for _, one in rows])
        # What takes long counts most, but not alone.
        weights, units = 1.0 / np.sqrt(took + 0.01), np.maximum(features.max(axis=0), 1.0)
        costs = nnls(features / units * weights[:, None], took * weights)[0] / units
        product, measured, store = (1.0 / cost if cost > 0 else NO_LIMIT for cost in costs[[0, 1, 3]].tolist())
        rates[phase] = processor_rates(product, measured, float(costs[2]), store)
    return rates


def _iterations(samples: list[_Sample]) -> dict[str, list[float]]:
    """Iterations in the largest tree of one part to a cluster."""
    seen = max(samples[1:], key=lambda one: (one.config.levels[0].n_splits == 1, one.n_rows)).n_iterations
    return {
        name: [seen[place] for place in sorted(seen) if place[1] is resampled]
        for name, resampled in (("first", False), ("resampled", True))
    }


def _machine() -> str:
    """The processor, as Linux names it."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
