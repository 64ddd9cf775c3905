"""Scaling: a pool larger than memory, growth with n and k, the overhead of Dask, cost of checks, a large draw.

    python -m pipelines.benchmark.scale --data embeddings.npy --suite stream,growth,overhead,checks,sample

* stream: one pool under a memory limit and with everything resident; the pool is kept out of the page cache.
* growth: seconds per Lloyd iteration as rows and clusters grow by factors of four.
* overhead: an iteration on a pool of 256 blocks, through Dask and as a plain loop over the same blocks, in turns.
* checks: builds of 1M × 128 with all integrity checks, and with none.
* sample: targets and draw for 10 million of 74.3 million leaves under four levels.

Rows are those of --data, tiled and perturbed, or synthetic. Results are printed and written to scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.pool import open_pool
from hkm_dask.data.rows import ArrayRows, Rows, ZarrRows
from hkm_dask.hierarchy.sampling.sample import draw_members
from hkm_dask.hierarchy.sampling.shares import hierarchical_targets
from hkm_dask.kmeans.lloyd import AssignAndAdd, PartialSums, Update
from hkm_dask.search.geometry import make_geometry
from pipelines.benchmark.checks import checks
from pipelines.benchmark.inputs import load_rows, make_rows
from pipelines.benchmark.measure import clock, run_apart
from pipelines.benchmark.ours import pick_start, time_iterations
from pipelines.benchmark.report import describe_machine

_GIB = 1 << 30
_PIECE = 1 << 16


def _pieces(base: NDArray[np.float32], n_rows: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """Yield the rows of `base` repeatedly, each time perturbed by a tenth of their standard deviation."""
    rng = np.random.default_rng(0)
    spread = np.float32(0.1) * base.std(axis=0)
    noise = rng.standard_normal((2 * _PIECE, base.shape[1]), dtype=np.float32) * spread
    for start in range(0, n_rows, _PIECE):
        n = min(_PIECE, n_rows - start)
        rows = base[rng.integers(len(base), size=n)]
        at = int(rng.integers(_PIECE))
        yield start, (rows + noise[at : at + n]).astype(np.float16)


# -- stream -----------------------------------------------------------------------------------------------------------


def stream(base: NDArray[np.float32], arguments: argparse.Namespace) -> dict[str, Any]:
    """Time iterations on a pool of `--pool-bytes` under `--memory-limit`, and with all of it resident."""
    n_rows = int(arguments.pool_bytes / (2 * base.shape[1]))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder = Path(name)
        offset = create_npy(folder / "rows.npy", (n_rows, base.shape[1]), np.dtype("f2"))
        for start, rows in _pieces(base, n_rows):
            write_npy_rows(folder / "rows.npy", offset, start, rows)
        hkm.ingest([folder / "rows.npy"], folder / "pool.zarr")
        (folder / "rows.npy").unlink()
        results: dict[str, Any] = {"n": n_rows, "bytes": 2 * n_rows * base.shape[1], "k": 1000}
        results["read_seconds"] = _read_all(folder / "pool.zarr")
        for limit in (arguments.memory_limit, "20GiB"):
            with _cold(folder / "pool.zarr"):
                seconds, peak = _run_apart(folder / "pool.zarr", limit)
            results[limit] = {"seconds_per_iteration": seconds, "peak_mib": peak >> 20}
            print(f"stream: {limit}: {seconds:.1f} s per iteration, peak {peak >> 20} MiB", flush=True)
    streamed, resident = (results[limit]["seconds_per_iteration"] for limit in (arguments.memory_limit, "20GiB"))
    bound = max(resident, results["read_seconds"])
    results["share_of_bound"] = bound / streamed
    print(
        f"stream: reading alone {results['read_seconds']:.1f} s; {bound / streamed:.2f} of its upper bound", flush=True
    )
    return results


def _files(pool: Path) -> list[Path]:
    return [path for path in (pool / "embeddings").rglob("*") if path.is_file()]


def _forget(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _cold(pool: Path) -> Iterator[None]:
    """Keep the pool out of the page cache."""
    files, done = _files(pool), threading.Event()
    os.sync()

    def drop() -> None:
        while not done.wait(0.5):
            for path in files:
                _forget(path)

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _read_all(pool: Path) -> float:
    """Return the seconds to read the pool from disk, with checks, by one thread per core."""
    rows = ZarrRows(pool, "embeddings")
    with _cold(pool), Runner() as runner:
        bounds = rows.bounds(64 << 20, runner.n_threads)
        begin = time.perf_counter()
        runner.map(_ReadAlone(rows), list(pairwise(bounds)), stage="read")
        return time.perf_counter() - begin


class _ReadAlone:
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __call__(self, pair: tuple[int, int]) -> int:
        return len(self.rows.read(int(pair[0]), int(pair[1])))


def _run_apart(pool: Path, limit: str) -> tuple[float, int]:
    """Run in a new process; return the seconds per iteration, and the peak memory (bytes) of its process tree."""
    peak = 0
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        future = executor.submit(_iterate_pool, pool, limit)
        while not future.done():
            with suppress(psutil.Error):
                workers = [psutil.Process(worker.pid) for worker in active_children()]
                held = [p for worker in workers for p in [worker, *worker.children(recursive=True)]]
                peak = max(peak, sum(p.memory_info().rss for p in held))
            time.sleep(0.05)
    return future.result(), peak


def _iterate_pool(pool: Path, limit: str) -> float:
    """Return the median seconds of iterations 3 to 5, when the caches are filled."""
    from dask.utils import parse_bytes

    rows, opened = ZarrRows(pool, "embeddings"), open_pool(pool)
    with Runner(memory_limit=int(parse_bytes(limit))) as runner:
        geometry = make_geometry(rows, runner, n_clusters=1000, mean=opened.mean, max_abs=opened.max_abs)
        seconds, _ = time_iterations(rows, pick_start(rows, 1000), geometry, runner, 5)
    return statistics.median(seconds[2:])


# -- growth -----------------------------------------------------------------------------------------------------------


def growth(base: NDArray[np.float32], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of iterations 3 to 5 as n or k grows by factors of four, and the ratios."""
    result: dict[str, Any] = {}
    sizes = [int(n) for n in arguments.growth_rows.split(",")]
    everything = np.empty((max(sizes), base.shape[1]), np.float16)
    for start, rows in _pieces(base, max(sizes)):
        everything[start : start + len(rows)] = rows
    first, *larger = (int(k) for k in arguments.growth_k.split(","))
    shapes = [(n, first) for n in sizes] + [(sizes[1], k) for k in larger]
    cases = [(f"n={n}, k={k}", n, k) for n, k in shapes]
    times: dict[str, list[float]] = {name: [] for name, _, _ in cases}
    for name, n, k in cases * 3:
        table = ArrayRows(everything[:n])
        with Runner() as runner:
            geometry = make_geometry(table, runner, n_clusters=k)
            each, _ = time_iterations(table, pick_start(table, k), geometry, runner, 5)
            times[name].extend(each[2:])
        forget(table.key)
    seconds = {name: statistics.median(kept) for name, kept in times.items()}
    for name, middle in seconds.items():
        print(f"growth: {name}: {middle:.3f} s per iteration", flush=True)
    result["seconds"] = seconds
    names = list(seconds)
    chains = (names[: len(sizes)], [names[1], *names[len(sizes) :]])
    result["ratios"] = {f"{b} to {a}": seconds[b] / seconds[a] for chain in chains for a, b in pairwise(chain)}
    for name, ratio in result["ratios"].items():
        print(f"growth: {name}: × {ratio:.2f}", flush=True)
    return result


# -- overhead ---------------------------------------------------------------------------------------------------------


def overhead(base: NDArray[np.float32], arguments: argparse.Namespace) -> dict[str, Any]:
    """Time an iteration over 256 blocks through Dask, and the same tasks called in a loop on one thread."""
    height = arguments.block_rows
    table = ArrayRows(np.ascontiguousarray(np.resize(base, (256 * height, base.shape[1]))))
    k = 1000
    with Runner(n_threads=1) as runner:
        geometry = make_geometry(table, runner, n_clusters=k)
        centroids = runner.array_store.put("centroids", table.array[:: len(table.array) // k][:k].copy())
        parts = runner.split(table, k)
        bounds = tuple(range(0, table.n_rows + 1, height))
        parts = [type(part)(part.rows, bounds, part.budget) for part in parts]
        task = AssignAndAdd(centroids, geometry, "overhead")
        update = Update(centroids, geometry, table, runner.array_store, "next")

        def through_dask() -> None:
            runner.map_reduce(task, parts, combine=PartialSums.__add__, finish=update, stage="assign")

        def bare() -> None:
            update(task(parts[0]))

        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            times = _in_turns([through_dask, bare], 9)
    ratio = times[0] / times[1]
    print(f"overhead: {times[0]:.3f} s through Dask, {times[1]:.3f} s bare: × {ratio:.3f}", flush=True)
    return {"blocks": 256, "dask_seconds": times[0], "bare_seconds": times[1], "ratio": ratio}


def _in_turns(works: list[Callable[[], None]], repeats: int) -> list[float]:
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, kept in zip(works, times, strict=True):
            seconds, _ = clock(work)
            if turn:
                kept.append(seconds)
    return [statistics.median(kept) for kept in times]


# -- sample -----------------------------------------------------------------------------------------------------------


def sample(base: NDArray[np.float32], arguments: argparse.Namespace) -> dict[str, Any]:
    """Time targets and draw in a new process, so that its memory is measured alone."""
    results: dict[str, Any] = run_apart(_draw, arguments.leaves)
    print(f"sample: {results['seconds']:.1f} s, peak {results['peak_gib']:.2f} GiB", flush=True)
    return results


def _draw(n_leaves: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    counts = [n_leaves, *(max(n_leaves * k // 74_300_000, 4) for k in (1_000_000, 50_000, 5_000, 1_000))]
    indptr, members, leaf_sizes = [], [], [np.ones(n_leaves, np.int64)]
    for below, n in pairwise(counts):
        weights = rng.lognormal(0.0, 1.0, n)
        cuts = np.floor(np.cumsum(weights) / weights.sum() * below).astype(np.int64)
        cuts[-1] = below
        indptr.append(np.concatenate([[0], cuts]))
        members.append(rng.permutation(below))
        sizes = np.concatenate([[0], np.cumsum(leaf_sizes[-1][members[-1]])])
        leaf_sizes.append(sizes[indptr[-1][1:]] - sizes[indptr[-1][:-1]])
    begin = time.perf_counter()
    size = n_leaves * 10_000_000 // 74_300_000
    targets = hierarchical_targets(indptr, members, leaf_sizes[1:], size, seed=0)
    rows = draw_members(indptr[0], members[0], targets, key=stream_key(0, "within"))
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
    distinct = bool((np.diff(rows) > 0).all())
    return {"leaves": n_leaves, "size": len(rows), "distinct": distinct, "seconds": seconds, "peak_gib": peak}


SUITES = {"stream": stream, "growth": growth, "overhead": overhead, "checks": checks, "sample": sample}


def main() -> None:
    """Run the suites asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=",".join(SUITES), help=f"any of {','.join(SUITES)}; default: all")
    parser.add_argument("--data", type=Path, metavar="NPY", help="rows to tile and perturb; default: synthetic rows")
    parser.add_argument("--pool-bytes", type=float, default=8e9, help="size of the streamed pool; default: 8e9")
    parser.add_argument("--memory-limit", default="1GiB", help="for the streamed pool; default: 1GiB")
    parser.add_argument("--growth-rows", default="50000,200000,800000,3200000", help="rows, growing by factors of four")
    parser.add_argument("--growth-k", default="1000,4000,16000", help="clusters, growing by factors of four")
    parser.add_argument("--block-rows", type=int, default=1024, help="rows of each of the 256 blocks; default: 1024")
    parser.add_argument("--checked-rows", type=int, default=1_000_000, help="rows of the suite checks; default: 1M")
    parser.add_argument("--repeats", type=int, default=3, help="builds with checks and without; default: 3")
    parser.add_argument("--leaves", type=int, default=74_300_000, help="leaves of the sampled tree; default: 74.3M")
    parser.add_argument("--scratch", type=Path, help="folder for the streamed pool; default: the temporary folder")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="output folder; default: benchmark")
    arguments = parser.parse_args()
    base = make_rows(80_000, 384).rows if arguments.data is None else load_rows(arguments.data).rows
    results: dict[str, Any] = {"machine": describe_machine()}
    for name in arguments.suite.split(","):
        if name not in SUITES:
            parser.error(f"--suite={name} should be one of {', '.join(SUITES)}")
        results[name] = SUITES[name](base, arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "scale.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
