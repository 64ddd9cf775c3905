"""Memory, bytes read and written, and messages of a build on workers, by phase, in comparison with `hkm plan`.

    python -m pipelines.benchmark.footprint 10000000 8 --memory 1GiB \
        --n-clusters 1000,100 --n-resamples 1 --set levels.1.max_iter=2 --set levels.2.max_iter=2

Rows are synthetic, float16. The arguments after them are passed to `hkm cluster`. The driver's process also runs the
scheduler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from distributed import default_client
from rich.console import Console
from rich.table import Table

from hkm_dask.cli import main as hkm
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.events import Event, subscribe
from hkm_dask.planning.phases import PhaseClock, Place, Spent, spent_so_far
from pipelines.benchmark.inputs import RowMaker
from pipelines.benchmark.plans import HKM, planned_phases
from pipelines.benchmark.processes import forget_peak, largest_message, peak_mib, weigh_messages


@dataclass
class Footprint:
    """Peak memory of each process in a phase (MiB), and the largest message (bytes)."""

    peaks: dict[str, float] = field(default_factory=dict)
    message: int = 0


class Watch:
    """Event subscriber that collects peak memory and messages of driver and workers at the end of every phase."""

    def __init__(self) -> None:
        self.phases: dict[str, Footprint] = {}
        self._workers: dict[str, int] = {}
        self._before = Spent()
        weigh_messages()
        forget_peak()
        self.clock = PhaseClock(self._spent, ended=self._ended)

    def __call__(self, event: Event) -> None:
        """Handle an event."""
        if event.kind == "connected":
            client = default_client()
            self._workers = dict(client.run(os.getpid))
            client.run(weigh_messages)
            self._before = self._of_workers()
        self.clock(event)

    def _spent(self) -> Spent:
        return spent_so_far() + self._of_workers() - self._before

    def _of_workers(self) -> Spent:
        counts = [psutil.Process(pid).io_counters() for pid in self._workers.values()]
        return Spent(read=sum(io.read_chars for io in counts), written=sum(io.write_chars for io in counts))

    def _ended(self, place: Place) -> None:
        phase = self.phases.setdefault(place[2].partition(":")[0], Footprint())
        messages = [largest_message(), *default_client().run(largest_message).values()]
        phase.message = max(phase.message, *messages)
        names = {"driver": os.getpid(), **{f"worker {i}": pid for i, pid in enumerate(self._workers.values())}}
        for name, pid in names.items():
            phase.peaks[name] = max(phase.peaks.get(name, 0.0), peak_mib(pid=pid))
            forget_peak(pid)


def make_pool(folder: Path, n: int, d: int) -> None:
    """Create a pool of float16 rows in other processes, whose memory does not count."""
    words = [sys.executable, "-m", "pipelines.benchmark.footprint", "rows", str(folder / "rows.npy"), str(n), str(d)]
    subprocess.run(words, check=True)
    subprocess.run([*HKM, "ingest", "rows.npy", "pool.zarr"], check=True, cwd=folder, capture_output=True)
    (folder / "rows.npy").unlink()


def table(planned: Mapping[str, Any], watch: Watch) -> Table:
    """Tabulate each phase: memory, largest message, bytes read and written, and their ratios to the plan."""
    names = list(next(iter(watch.phases.values())).peaks)
    made = Table("phase", *(f"{name} (MiB)" for name in names), "message (MB)", "read (MB)", "/ plan", "written (MB)",
                 "/ plan")  # fmt: skip
    spent, files = watch.clock.phases(), planned_phases(planned)
    for phase, one in watch.phases.items():
        cells = [phase, *(f"{one.peaks[name]:.0f}" for name in names), f"{one.message / 1e6:.2f}"]
        made.add_row(*cells, *_cells(spent[phase], files.get(phase, {})))
    of_all = {kind: sum(those[kind] for those in files.values()) for kind in ("read", "written")}
    peaks = [f"{max(one.peaks[name] for one in watch.phases.values()):.0f}" for name in names]
    message = max(one.message for one in watch.phases.values())
    made.add_row("all", *peaks, f"{message / 1e6:.2f}", *_cells(sum(spent.values(), Spent()), of_all))
    return made


def _cells(spent: Spent, planned: Mapping[str, float]) -> Iterator[str]:
    for came, thought in ((spent.read, planned.get("read", 0)), (spent.written, planned.get("written", 0))):
        yield f"{came / 1e6:.0f}"
        yield f"{came / thought:.2f}" if thought > 4e6 else ""


@contextmanager
def _folder(where: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hkm-footprint-", dir=where) as name:
        yield Path(name)


@click.command(context_settings={"ignore_unknown_options": True}, help=__doc__)
@click.argument("n", type=click.IntRange(min=1))
@click.argument("d", type=click.IntRange(min=1))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--workers", type=click.IntRange(min=1), default=2, help="Worker processes with one thread each.")
@click.option("--memory", default="1GiB", help="Memory limit of each worker.")
@click.option("--dir", "where", type=click.Path(path_type=Path, exists=True), help="Folder for all files.")
def main(n: int, d: int, words: tuple[str, ...], workers: int, memory: str, where: Path | None) -> None:
    """Build a tree of synthetic rows, and print memory, bytes and messages."""
    console = Console(width=120)
    with _folder(where) as folder:
        make_pool(folder, n, d)
        place = ["--workers", str(workers)]
        asked = [*HKM, "plan", "pool.zarr", *words, *place, "--memory", memory, "--seconds", "0", "--json"]
        done = subprocess.run(asked, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(done.stderr.strip()[-2000:])
        planned, watch, begin = json.loads(done.stdout), Watch(), time.perf_counter()
        with subscribe(watch):
            command = ["cluster", str(folder / "pool.zarr"), str(folder / "tree.zarr"), *words, *place]
            hkm([*command, "--memory-limit", memory], standalone_mode=False)
        seconds = time.perf_counter() - begin
    if not watch.phases:  # the build was refused, with a message
        raise SystemExit(1)
    peak = planned["memory"]["peak"] / 2**20
    console.print(f"{n:,} x {d}: {' '.join(words)}, {workers} workers of {memory}: {seconds:.0f} s")
    console.print(f"hkm plan: {peak:.0f} MiB in a worker at most")
    console.print(table(planned, watch))


def make_rows(path: Path, n: int, d: int) -> None:
    """Write synthetic rows, float16."""
    offset = create_npy(path, (n, d), np.dtype(np.float16))
    for place, rows in RowMaker(np, d).pieces(n):
        write_npy_rows(path, offset, place.start, rows.astype(np.float16))


if __name__ == "__main__":
    if sys.argv[1:2] == ["rows"]:
        make_rows(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
