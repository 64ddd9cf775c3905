"""Calibration of this machine: builds small trees with the real engine and fits unit costs to the measured times.

Every part of every tree is counted in units of `processor_work`. Trees of several sizes, and one of many clusters, make
the units distinguishable; their k-means show the number of iterations and the share of pairs that these compare.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.runner import n_processors
from hkm_dask.config import Config, Level
from hkm_dask.data.pool import open_pool
from hkm_dask.events import subscribe
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.planning.phases import PhaseClock, Spent, spent_so_far
from hkm_dask.planning.processor_rates import Calibration, Seen
from hkm_dask.planning.processor_work import Part, Table, run_parts, split_course, together
from hkm_dask.search.cpu.tally import counting

#: Rows of the smallest tree, and growth factor from one tree to the next.
_FIRST_ROWS, _GROWTH = 2000, 2
#: Rows of a warm-up tree, which is not timed.
_WARMING_ROWS = 400
#: Rows of the tree of many clusters, and rows per cluster: more than a seeding draws.
_WIDE_ROWS, _WIDE_PER_CLUSTER = 16384, 8
#: Most rows per cluster in a small tree; with more, it has too few clusters to show the cost of each.
_MOST_PER_CLUSTER = 40
#: Rows per cluster of the tree that shows the iterations of k-means with many rows per cluster.
_DENSE_PER_CLUSTER = 256
#: Operations per iteration of that tree, for each second of the time budget, and its least number of rows.
_DENSE_FLOPS, _DENSE_ROWS = 1e8, 4096
#: Factor by which the iterations of a k-means over all rows may lie outside the range seen over few.
_FURTHER = 1.3
#: Most resampling steps of a small tree, as all take equally long.
_MOST_RESAMPLES = 2
#: Upper bound on the time of a tree relative to the last one, with half the rows and clusters.
_SLOWER = 4.0
#: Clusters that are split in small trees, and rows per part; two combinations, to separate the costs of the two.
_SPLITS = ((10, 16), (4, 512))
#: Most rows times features times parts of such a tree, for each second of the time budget.
_SPLIT_PAIRS = 1.5e7
#: Parts that compare rows with centroids, and share units.
_SEARCHING = ("seeding", "Lloyd: first", "Lloyd: later", "assign")
#: Approximate ratios of unit costs that small trees hardly distinguish. A draw searches with more coordinates than an
#: iteration; a point of a walk is two memory accesses, and two entries of a table one multiplication.
_ALIKE = (("drawn", "searched", 1.7), ("labeled", "searched", 1.0), ("walked", "paired", 4.0))
#: Weight of these ratios, as a share of the evidence from all trees.
_PRIOR = 0.3
#: Seconds added to a part's time when its errors are weighted, so that short parts do not dominate.
_FEW_SECONDS = 0.01
#: Share of the pairs that iterations after the first compare, if none was seen.
_SHARE = 0.3


def made_rows(n_rows: int, n_features: int) -> NDArray[np.float16]:
    """Make rows that resemble embeddings: groups of very unequal size, variance concentrated in few directions.

    >>> made_rows(5, 3).shape
    (5, 3)
    """
    rng = np.random.default_rng(0)
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
    started: float = 0.0,
    clock: Literal["seconds", "cpu_seconds"] = "seconds",
) -> Calibration:
    """Build small trees for about the given seconds, and fit unit costs to the times they took.

    For a planned run of `n_rows`, small trees have the same number of rows per cluster where feasible; `rows` returns
    up to the given number of rows to build over. `started` is the time in seconds that a command takes to begin.
    `clock` selects wall-clock time, or processor time summed over all processors.
    """
    n_threads = n_processors() if clock == "seconds" else 1
    few = rows(min(_WARMING_ROWS, n_rows))
    asked = n_rows, few.shape[1], seconds
    splits = [(rows(n), one) for n, one in _split_configs(config, *asked)]
    # Kernels are loaded on first use, including those for splitting.
    cold, warm = (
        [_measure(*tree) for tree in [(few, scaled_config(config, n_rows, len(few))), *splits[:1]]] for _ in range(2)
    )
    now = time.perf_counter if clock == "seconds" else time.process_time
    begin, n, trees = now(), min(_FIRST_ROWS, n_rows), list[_Sample]()
    wide = rows(min(_WIDE_ROWS, n_rows))
    dense = [_measure(rows(n), one) for n, one in _dense_configs(config, *asked)]
    others = [*warm, _measure(wide, _wide_config(config, len(wide))), *dense, *(_measure(*tree) for tree in splits[1:])]
    while True:
        some, since = rows(n), now()
        trees.append(_measure(some, scaled_config(config, n_rows, len(some))))
        took = now() - since
        n = min(_GROWTH * n, n_rows)
        if len(some) < n / _GROWTH or len(some) == n_rows or now() - begin + _SLOWER * took > seconds:
            break
    largest, costs = trees[-1], _fit([*others, *trees], n_threads, clock)
    first, again = (
        sum(getattr(one, clock) for tree in built for one in tree.clock.spent.values()) for built in (cold, warm)
    )
    costs["run"] = costs.get("run", 0.0) + started + max(0.0, first - again)
    return Calibration(
        machine=_machine(), n_processors=n_processors(), costs=costs,
        seen=_seen(trees, dense, [per_cluster for _, per_cluster in _shapes(config, n_rows)]),
        n_rows=largest.n_rows, n_features=largest.n_features, seconds=round(now() - begin, 2),
        read=max(one.read for one in [*others, *trees]), write=max(one.write for one in [*others, *trees]),
    )  # fmt: skip


def scaled_config(config: Config, n_rows: int, n: int) -> Config:
    """Scale the settings of a run over `n_rows` to `n` rows: fewer clusters, and no more resamplings than needed.

    >>> scaled = scaled_config(Config.from_flags((2000, 400, 100)), 40_000, 4000)
    >>> [(level.n_clusters, level.n_resamples) for level in scaled.levels]
    [(200, 2), (40, 2), (10, 2)]
    """
    levels, small = [], n
    for level, per_cluster in _shapes(config, n_rows):
        small = max(1, min(small, round(small / min(per_cluster, _MOST_PER_CLUSTER))))
        r = level.resample_size if level.resample_size == "auto" else min(level.resample_size, _MOST_PER_CLUSTER)
        changed = {"n_clusters": small, "n_splits": 1, "resample_size": r}
        levels.append(level.model_copy(update={**changed, "n_resamples": min(level.n_resamples, _MOST_RESAMPLES)}))
    return _of_levels(config, *levels)


def _of_levels(config: Config, *levels: Level) -> Config:
    """Return settings with other levels, over all rows."""
    return config.model_copy(update={"levels": levels, "subset": None, "fit_sample": None})


def _shapes(config: Config, n_rows: int) -> Iterator[tuple[Level, float]]:
    """Yield the levels of a run with their number of rows per cluster."""
    for level in config.levels:
        yield level, n_rows / level.n_clusters
        n_rows = level.n_centroids


def _wide_config(config: Config, n: int) -> Config:
    """Return one level of many clusters, to isolate the cost per cluster."""
    few = {"n_clusters": max(1, n // _WIDE_PER_CLUSTER), "n_splits": 1, "n_resamples": 1, "max_iter": 4}
    level = config.levels[0].model_copy(update=few)
    return _of_levels(config, level)


def _dense_configs(config: Config, n_rows: int, n_features: int, seconds: float) -> Iterator[tuple[int, Config]]:
    """Yield rows and settings of a tree with many rows per cluster, if a level has more than small trees have."""
    per_cluster = min(_DENSE_PER_CLUSTER, max(n for _, n in _shapes(config, n_rows)))
    if per_cluster > _MOST_PER_CLUSTER:
        n = min(n_rows, max(_DENSE_ROWS, round((seconds * _DENSE_FLOPS * per_cluster / 2 / n_features) ** 0.5)))
        few = {"n_clusters": max(1, round(n / per_cluster)), "n_splits": 1}
        level = config.levels[0].model_copy(update={**few, "n_resamples": min(config.levels[0].n_resamples, 1)})
        yield n, _of_levels(config, level)


def _split_configs(config: Config, n_rows: int, n_features: int, seconds: float) -> Iterator[tuple[int, Config]]:
    """Yield rows and settings of trees whose clusters are split, if the run splits clusters."""
    for level, per_cluster in [shape for shape in _shapes(config, n_rows) if shape[0].n_splits > 1][:1]:
        most = max(_DENSE_ROWS, round(seconds * _SPLIT_PAIRS / n_features / level.n_splits))
        for n_clusters, per_part in _SPLITS:
            n = min(n_rows, most, round(n_clusters * min(per_cluster, per_part * level.n_splits)))
            few = level.model_copy(
                update={"n_clusters": max(1, min(n_clusters, n // level.n_splits)), "n_resamples": 0}
            )
            yield n, _of_levels(config, few)


@dataclass
class _Sample:
    """Measurements of a small tree: its settings, the time of its parts, and the read and write rates of its pool."""

    config: Config
    n_rows: int
    n_features: int
    itemsize: int
    clock: PhaseClock
    read: float
    write: float

    def course(self, number: int, resampled: bool, level: Level) -> tuple[float, float]:
        """Return the number of iterations of its k-means, and the share of pairs compared after the first one."""
        if not number:
            return split_course(level)
        made = self.clock.iterations.get((number, resampled), [1])
        later = self.clock.spent.get((number, resampled, "Lloyd: later"), Spent()).pairs
        first = self.clock.spent.get((number, resampled, "Lloyd: first"), Spent()).pairs
        n_later, n_first = sum(made) - len(made), len(made)
        share = later / n_later / (first / n_first) if n_later and first else _SHARE
        return float(np.mean(made)), min(1.0, share)

    def parts(self, n_threads: int) -> list[Part]:
        table = Table(self.n_rows, self.n_features, self.itemsize, n_threads)
        return run_parts(table, self.config.levels, self.course)


def _measure(rows: NDArray[Any], config: Config) -> _Sample:
    """Build a small tree over some rows and time its parts."""
    with tempfile.TemporaryDirectory(prefix="hkm-plan-") as name:
        folder = Path(name)
        np.save(folder / "rows.npy", rows)
        times = [time.perf_counter()]
        ingest([folder / "rows.npy"], folder / "pool.zarr")
        times.append(time.perf_counter())
        open_pool(folder / "pool.zarr").rows().read(0, len(rows))
        times.append(time.perf_counter())
        with counting() as tally:
            clock = PhaseClock(partial(spent_so_far, tally))
            with subscribe(clock):
                write_hierarchy(folder / "pool.zarr", folder / "tree.zarr", config)
    write, read = (rows.nbytes / max(took, 1e-6) for took in np.diff(times).tolist())
    return _Sample(config, len(rows), rows.shape[1], rows.dtype.itemsize, clock, read, write)


def _fit(samples: Sequence[_Sample], n_threads: int, clock: str = "seconds") -> dict[str, float]:
    """Fit non-negative seconds per unit to the times of all parts of all trees."""
    counted: dict[str, list[tuple[Mapping[str, float], float]]] = {}
    for sample in samples:
        took = {place: getattr(spent, clock) for place, spent in sample.clock.spent.items()}
        of_place: dict[tuple[int, bool, str], dict[str, float]] = {}
        for part in sample.parts(n_threads):
            place = part.level, part.resampled, part.name
            of_place[place] = together(of_place.get(place, {}), part.units)
        for place, units in of_place.items():
            name = place[2]
            group = "search" if name.startswith(_SEARCHING) else name
            counted.setdefault(group, []).append((units, took.get(place, 0.0)))
    costs: dict[str, float] = {}
    for parts in counted.values():
        costs |= _solve(parts)
    return costs


def _solve(parts: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Fit the costs of units to the times of parts by non-negative least squares, with relative errors."""
    from scipy.optimize import nnls

    names = sorted({unit for units, _ in parts for unit in units})
    amounts = np.array([[units.get(name, 0.0) for name in names] for units, _ in parts])
    took = np.array([seconds for _, seconds in parts])
    # Long parts get more weight, but not all of it.
    weights, scales = 1.0 / np.sqrt(took + _FEW_SECONDS), np.maximum(amounts.max(axis=0), 1e-300)
    told, known = amounts / scales * weights[:, None], took * weights
    for one, other, times in _ALIKE:
        if one in names and other in names:
            i, j = names.index(one), names.index(other)
            alike = np.zeros(len(names))
            # Scaled by the contribution of this unit to the evidence from all trees.
            alike[i] = _PRIOR * np.linalg.norm(told[:, i])
            alike[j] = -times * alike[i] * scales[i] / scales[j]
            told, known = np.vstack([told, alike]), np.append(known, 0.0)
    found = nnls(told, known)[0] / scales
    return dict(zip(names, found.tolist(), strict=True))


def _seen(trees: Sequence[_Sample], dense: Sequence[_Sample], per_cluster: Sequence[float]) -> dict[str, list[Seen]]:
    """Summarize iterations and shares in the larger half of `trees` (in ascending order): means and range.

    Levels with more rows per cluster than small trees use the `dense` trees instead, if there are any.
    """
    seen: dict[str, list[Seen]] = {"first": [], "resampled": []}
    larger = [(t, one) for one in trees[len(trees) // 2 :] for t in range(1, len(per_cluster) + 1)]
    for name, resampled in (("first", False), ("resampled", True)):
        for number, n_rows in enumerate(per_cluster, 1):
            those = [(t, one) for t, one in larger if t == number]
            if n_rows > _MOST_PER_CLUSTER and any((1, resampled) in one.clock.iterations for one in dense):
                those = [(1, one) for one in dense]
            those = [(t, one) for t, one in those if (t, resampled) in one.clock.iterations]
            if not those:
                break
            courses = np.array([one.course(t, resampled, one.config.levels[t - 1]) for t, one in those])
            made = [n for t, one in those for n in one.clock.iterations[t, resampled]]
            n_iter, share = courses.mean(axis=0).tolist()
            seen[name].append(Seen(n_iter, max(1.0, min(made) / _FURTHER), max(made) * _FURTHER, share))
    return seen


def _machine() -> str:
    """Return the name of the processor as reported by Linux."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
