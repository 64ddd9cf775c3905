"""The cost of integrity checks: builds with all checks and with none, in turns.

Without checks, no checksum is computed or compared, rows are not compared with the bound of their pool nor metadata
with their digest, and nothing is checked again at a commit.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.data import chunks, files, pool, rows, store
from pipelines.benchmark.measure import run_apart

_LEVELS = (1000, 100)


def checks(base: NDArray[np.float32], arguments: argparse.Namespace) -> dict[str, Any]:
    """Build trees of `--checked-rows` rows with 128 features, in memory and under `--memory-limit`."""
    results: dict[str, Any] = {"n": arguments.checked_rows, "d": 128, "k": _LEVELS}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        source = Path(name, "pool.zarr")
        hkm.ingest(_rows(base, arguments.checked_rows), source)
        for limit in (None, arguments.memory_limit):
            times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
            for checked in (True, False) * arguments.repeats:
                times[checked].append(run_apart(_build, str(source), f"{name}/tree.zarr", limit, checked))
            where = "resident" if limit is None else f"under {limit}"
            for kind, on, off in zip(("wall", "processors"), *map(_medians, times.values()), strict=True):
                results[f"{where}, {kind}"] = {"with": on, "without": off, "ratio": on / off}
                print(f"checks: {where}, {kind}: {on:.2f} s with, {off:.2f} s without: × {on / off:.3f}", flush=True)
    return results


def _medians(times: list[tuple[float, float]]) -> list[float]:
    return [statistics.median(kind) for kind in zip(*times, strict=True)]


def _rows(base: NDArray[np.float32], n_rows: int) -> NDArray[np.float16]:
    rng = np.random.default_rng(0)
    made = np.resize(base[:, :128], (n_rows, min(128, base.shape[1])))
    made += 0.1 * base.std() * rng.standard_normal(made.shape, dtype=np.float32)
    return made.astype(np.float16)


def _build(source: str, tree: str, limit: str | None, checked: bool) -> tuple[float, float]:
    """Return the wall time and the CPU time of a build, in seconds."""
    levels = [hkm.Level(n_clusters=k, n_resamples=1, max_iter=10, tol=0.0) for k in _LEVELS]
    with ExitStack() as stack:
        if not checked:
            for change in _without_checks():
                stack.enter_context(change)
        begin, begin_processors = time.perf_counter(), time.process_time()
        hkm.build_hierarchy(source, tree, hkm.Config(levels=levels), memory_limit=limit, restart=True)
        seconds = time.perf_counter() - begin, time.process_time() - begin_processors
    shutil.rmtree(tree)
    return seconds


def _without_checks() -> list[Any]:
    def nothing(*args: Any, **options: Any) -> None:
        pass

    def fill(array: chunks.StoredArray, index: int, *parts: np.ndarray) -> None:
        chunks._fill(array.chunk_path(index), list(parts))

    return [
        patch.object(chunks, "crc32c", lambda data, crc=0: 0),
        patch.object(chunks.StoredArray, "_read_chunk", fill),
        patch.object(chunks.StoredArray, "check", nothing),
        patch.object(chunks.StoredArray, "_check_place", nothing),
        patch.object(rows.ZarrRows, "_within_bound", lambda _, values: values),
        patch.object(files, "check_digest", nothing),
        patch.object(pool.Pool, "check_unchanged", nothing),
        patch.object(store, "sync", nothing),
    ]
