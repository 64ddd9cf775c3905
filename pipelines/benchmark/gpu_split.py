"""Thousands of small k-means: all of them together on the device, one by one there, and on the processors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.hierarchy.split import Split, split_clusters
from hkm_dask.kmeans.fit import Settings
from hkm_dask.kmeans.search.geometry import Geometry
from pipelines.benchmark import ours
from pipelines.benchmark.gpu_cases import DeviceOptions
from pipelines.benchmark.gpu_report import Check, DeviceCase
from pipelines.benchmark.gpu_rows import Maker, computing_on, free_memory
from pipelines.benchmark.measure import Case, Outcome, Run, take_turns

#: Features, rows of a cluster, and parts it is split into, in at most so many iterations.
_FEATURES, _ROWS, _PARTS, _ITERATIONS = 384, 1000, 50, 10


def split(options: DeviceOptions) -> Iterator[DeviceCase]:
    """Split clusters of a thousand rows into fifty parts each.

    Parameters
    ----------
    options : DeviceOptions

    Yields
    ------
    DeviceCase
    """
    import cupy

    d, size = _FEATURES, _ROWS
    n_clusters = max(2, (options.n_rows or int(options.gigabytes * 1e9 / (2 * d))) // size)
    rows = np.empty((n_clusters * size, d), np.float16)
    geometry = Maker(cupy, d).fill(rows)
    # Which rows make a cluster does not matter for the time it takes.
    indptr, members = np.arange(n_clusters + 1) * size, np.arange(len(rows))
    places = {"together": ("cuda", True), "one by one": ("cuda", False), "processors": ("cpu", False)}
    found: dict[str, Split] = {}

    def time_split(name: str, device: str, together: bool, repeat: int) -> Outcome:
        begin = time.perf_counter()
        found[name] = _split(rows, indptr, members, geometry, device, together=together)
        return Outcome(time.perf_counter() - begin)

    runs: dict[str, Run] = {f"{ours.NAME}, {name}": partial(time_split, name, *how) for name, how in places.items()}
    title = f"{n_clusters:,} clusters of {size} rows split into {_PARTS} each, at most {_ITERATIONS} iterations"
    options.tell(f"split: {title}")
    _split(rows[: 4 * size], indptr[:5], members[: 4 * size], geometry, "cuda", together=True)  # compiles
    measured = take_turns(runs, repeats=options.repeats, patience=60.0, judge=lambda _: 0.0, tell=options.tell)
    right = found["processors"].labels
    checks = {f"{ours.NAME}, {name}": Check(len(rows), int((one.labels != right).sum())) for name, one in found.items()}
    fact = "Wrong labels are those that are not the processors'."
    base = f"{ours.NAME}, together"
    case = Case("split", title, f"made, {d} features", rows.shape, (_PARTS,), base, measured, (fact,))
    yield DeviceCase(case, 0.0, 0.0, checks)
    free_memory()


def _split(
    rows: NDArray[np.float16], indptr: NDArray[np.int64], members: NDArray[np.int64], geometry: Geometry,
    device: str, *,
    together: bool,
) -> Split:  # fmt: skip
    """Split clusters on a device or on the processors, files and all."""
    table = ArrayRows(rows)
    try:
        with computing_on(device), Runner() as runner:
            settings = Settings(_PARTS, max_iter=_ITERATIONS)
            return split_clusters(table, indptr, members, settings, geometry=geometry, runner=runner, together=together)
    finally:
        forget(table.key)
