"""Level 2 over very many level-1 centroids, on workers: peak memory of every process, and the largest message.

    python -m pipelines.benchmark.upper_level --n 1000000 --k 5000
    python -m pipelines.benchmark.upper_level --n 10000000 --k 50000 --memory 4GiB

Level 1 is written without clustering: every row is its own cluster, as if produced by `n_splits`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from distributed import Worker
from rich.console import Console
from rich.table import Table

import hkm_dask as hkm
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.compute.runner import Runner
from hkm_dask.data import layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.objects import location
from hkm_dask.hierarchy import build, level_arrays
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.hierarchy.source import open_source
from pipelines.benchmark.inputs import RowMaker
from pipelines.benchmark.measure import clock
from pipelines.benchmark.processes import peak_mib

#: Parts of each cluster of level 1.
_PARTS = 100


def largest_message(dask_worker: Worker) -> int:
    """Return the bytes of the largest transfer from another worker."""
    return max((transfer["total"] for transfer in dask_worker.transfer_incoming_log), default=0)


def make_level_1(folder: str, config: hkm.Config, n: int, d: int) -> None:
    """Create a pool of float16 rows, and an unfinished tree whose level 1 has one cluster per row."""
    rows = Path(folder, "rows.npy")
    offset = create_npy(rows, (n, d), np.dtype(np.float16))
    for place, values in RowMaker(np, d).pieces(n):
        write_npy_rows(rows, offset, place.start, values.astype(np.float16))
    source = open_source(hkm.ingest(rows, f"{folder}/pool.zarr").path, config)
    rows.unlink()
    wip = store.create_group(layout.wip_path(location(f"{folder}/tree.zarr")), build._identity(config, source))
    level = wip / "level_1"
    level_arrays.create_row_arrays(level, 1, n, source.chunk_rows)
    level_arrays.write_row_arrays(level, np.arange(n, dtype=np.int32), np.zeros(n, np.float32))
    centroids = open_array(level_arrays.create_centroids(level, 1, (n, d)))
    for low in range(0, n, centroids.spec.chunk_rows):
        centroids.write(low, source.rows.read(low, min(low + centroids.spec.chunk_rows, n)).astype(np.float32))
    with Runner() as runner:
        level_arrays.write_cluster_arrays(level, 1, None, [np.ones(1)], runner)
    store.mark_complete(level, {"level": 1, "seconds": 0.0, "step_seconds": [0.0], "missing": -1})


def main(words: Sequence[str] | None = None) -> None:
    """Build level 2, and print its time, memory and messages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--n", type=int, default=1_000_000, help="centroids of level 1; default: 1000000")
    add("--d", type=int, default=32, help="features; default: 32")
    add("--k", type=int, default=5000, help="clusters of level 2; default: 5000")
    add("--init", default="coreset", help="seeding of level 2; default: coreset")
    add("--iterations", type=int, default=2, help="iterations of level 2; default: 2")
    add("--workers", type=int, default=2, help="single-threaded worker processes; default: 2")
    add("--memory", default="4GiB", help="memory limit of each worker; default: 4GiB")
    given = parser.parse_args(words)
    lower = hkm.Level(n_clusters=-(-given.n // _PARTS), n_splits=_PARTS, n_resamples=0)
    upper = hkm.Level(n_clusters=given.k, init=given.init, n_resamples=0, max_iter=given.iterations, tol=0.0)
    config = hkm.Config(levels=[lower, upper])
    with tempfile.TemporaryDirectory() as folder:
        # In another process, so that its memory does not count as the driver's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            other.submit(make_level_1, folder, config, given.n, given.d).result()
        with connect(workers=given.workers, memory_limit=given.memory) as runner:
            assert runner.client is not None
            idle = runner.client.run(peak_mib)
            pool, tree = f"{folder}/pool.zarr", f"{folder}/tree.zarr"
            seconds, _ = clock(lambda: write_hierarchy(pool, tree, config, client=runner.client))
            peaks, messages = runner.client.run(peak_mib), runner.client.run(largest_message)
    table = Table("process", "idle (MiB)", "peak (MiB)", "largest message received (MB)")
    table.add_row("driver and scheduler", "", f"{peak_mib():.0f}", "")
    for i, worker in enumerate(peaks):
        table.add_row(f"worker {i}", f"{idle[worker]:.0f}", f"{peaks[worker]:.0f}", f"{messages[worker] / 1e6:.1f}")
    console = Console(width=100)
    shape = f"{given.n:,} x {given.d}, k={given.k:,}, {given.init}, {given.iterations} iterations"
    console.print(f"level 2: {shape}: {seconds:.0f} s")
    console.print(table)


if __name__ == "__main__":
    main()
