"""The whole method on workers and on the same number of threads: seconds, phases, CPU time, identical results.

    python -m pipelines.benchmark.workers --data embeddings.npy --n 40000 --levels 2000,400,100 --resamples 10

The configurations run in turns, so that other load on the machine affects all of them. Each run has new processes,
which load our kernels when they need them; starting workers does not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

import hkm_dask as hkm
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy.build import write_hierarchy
from pipelines.benchmark.inputs import load_rows, make_rows, pick_rows
from pipelines.benchmark.measure import clock, run_apart
from pipelines.benchmark.whole import compare_trees, seconds_by_phase, whole_config


def places(n_threads: int) -> dict[str, dict[str, Any]]:
    """Return the configurations to compare, each with `n_threads` threads in all.

    >>> list(places(2).values())
    [{}, {'workers': 1, 'threads_per_worker': 2}, {'workers': 2}]
    """
    return {
        f"{n_threads} threads": {},
        f"--workers 1 --threads-per-worker {n_threads}": {"workers": 1, "threads_per_worker": n_threads},
        f"--workers {n_threads}": {"workers": n_threads},
    }


@contextmanager
def _bound_to(n_processors: int) -> Iterator[None]:
    """Restrict this process, and the workers it starts, to `n_processors` processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:n_processors]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _processor_seconds() -> float:
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [own, *own.children(recursive=True)])


def run_once(pool: str, tree: Path, config: hkm.Config, place: dict[str, Any]) -> tuple[float, float, dict[str, float]]:
    """Cluster a pool in one configuration; return wall seconds, CPU seconds, and seconds of each phase."""
    events: list[Event] = []
    with connect(**place) as runner, subscribe(events.append):
        before = _processor_seconds()
        seconds, _ = clock(lambda: write_hierarchy(pool, tree, config, client=runner.client))
        spent = _processor_seconds() - before
    begin = events[0].time
    return seconds, spent, seconds_by_phase(events, begin, begin + seconds)


def main(words: Sequence[str] | None = None) -> None:
    """Run the configurations in turns, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, metavar="NPY", help="rows to cluster; default: synthetic rows")
    add("--n", type=int, default=40_000, help="number of rows to draw or generate; default: 40000")
    add("--levels", default="2000,400,100", help="clusters of each level; default: 2000,400,100")
    add("--resamples", type=int, default=10, help="resamplings of each level; default: 10")
    add("--threads", type=int, default=2, help="threads of each configuration; default: 2")
    add("--repeats", type=int, default=3, help="rounds after the warm-up; default: 3")
    given = parser.parse_args(words)
    data = make_rows(given.n, 384) if given.data is None else pick_rows(load_rows(given.data), given.n)
    levels = tuple(map(int, given.levels.split(",")))
    config = whole_config(levels, n_resamples=given.resamples, max_iter=50)
    taken: dict[str, list[tuple[float, float, dict[str, float]]]] = {name: [] for name in places(given.threads)}
    with tempfile.TemporaryDirectory() as folder, _bound_to(given.threads):
        pool, trees = hkm.ingest(data.rows, f"{folder}/pool.zarr").path, []
        for turn in range(given.repeats + 1):
            for i, (name, place) in enumerate(places(given.threads).items()):
                tree = Path(folder, f"tree-{turn}-{i}.zarr")
                outcome = run_apart(run_once, pool, tree, config, place)
                if turn:
                    taken[name].append(outcome)
                else:
                    trees.append(tree)
        facts = [fact for other in trees[1:] for fact in compare_trees(trees[0], other, len(levels))]
    _print(taken, facts)


def _print(taken: dict[str, list[tuple[float, float, dict[str, float]]]], facts: Sequence[str]) -> None:
    table = Table("configuration", "seconds", "ratio", "CPU s", "phases (s) of the median run")
    base = statistics.median(seconds for seconds, _, _ in next(iter(taken.values())))
    for name, runs in taken.items():
        seconds, spent, phases = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
        phase_seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in phases.items())
        table.add_row(name, f"{seconds:.1f}", f"{seconds / base:.2f}", f"{spent:.1f}", phase_seconds)
    console = Console(width=160)
    console.print(table)
    for fact in facts:
        console.print(fact)


if __name__ == "__main__":
    main()
