"""CPU time of the Dask scheduler per iteration, for a pool of very many blocks.

    python -m pipelines.benchmark.scheduler --blocks 10000 --workers 2

The scheduler has its own process. Blocks have only 200 synthetic rows of 8 features, to keep the load of the workers
small.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
from distributed import Client

import hkm_dask as hkm
from hkm_dask.events import Event, subscribe

_ROWS, _FEATURES = 200, 8  # of a block


@contextmanager
def cluster(folder: Path, n_workers: int) -> Iterator[tuple[Client, psutil.Process]]:
    """Start a scheduler and single-threaded workers as processes; yield a client, and the scheduler's process."""
    file = folder / "scheduler.json"
    dask, options = [sys.executable, "-m", "dask"], ["--scheduler-file", str(file), "--no-dashboard"]
    with ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen([*dask, *arguments, *options], stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0")
        for _ in range(n_workers):
            start("worker", "--nthreads", "1")
        client = stack.enter_context(Client(scheduler_file=str(file), timeout=60))
        client.wait_for_workers(n_workers)
        yield client, psutil.Process(scheduler.pid)


def scheduler_seconds(n_blocks: int, n_workers: int, n_iterations: int) -> list[float]:
    """Return the CPU time of the scheduler in each iteration after the first."""
    config = hkm.Config(levels=(hkm.Level(n_clusters=1000, n_resamples=0, max_iter=n_iterations, tol=0.0),))
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = np.random.default_rng(0).standard_normal((n_blocks * _ROWS, _FEATURES)).astype(np.float16)
        pool = hkm.ingest(rows, folder / "pool.zarr", chunk_mb=2 * _ROWS * _FEATURES / 2**20)
        assert pool.to_xarray()["embeddings"].data.numblocks[0] == n_blocks
        with cluster(folder, n_workers) as (client, scheduler):

            def note(event: Event) -> None:
                if event.kind == "iteration":
                    seconds.append(sum(scheduler.cpu_times()[:2]))

            with subscribe(note):
                hkm.build_hierarchy(pool.path, folder / "tree.zarr", config, client=client)
    return [after - before for before, after in itertools.pairwise(seconds)]


def main(arguments: list[str] | None = None) -> None:
    """Print the median and the maximum over the iterations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=12)
    given = parser.parse_args(arguments)
    spent = scheduler_seconds(given.blocks, given.workers, given.iterations)
    print(f"{given.blocks} blocks, {given.workers} workers: the scheduler takes {statistics.median(spent):.3f} s of")
    print(f"CPU time per iteration (median of {len(spent)}), {max(spent):.3f} s at most")


if __name__ == "__main__":
    main()
