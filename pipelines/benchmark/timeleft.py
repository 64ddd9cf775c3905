"""Accuracy of the estimated time left: record the events of builds, replay them, and compare estimates with the truth.

    python -m pipelines.benchmark.timeleft record EMBEDDINGS.npy TRACE.jsonl --n-clusters 2000,400,100 --n-resamples 5
    python -m pipelines.benchmark.timeleft replay TRACE.jsonl...

A trace has the wall-clock time and the CPU time of this process and its workers. By default, estimates are evaluated by
CPU time, so that other load on the machine does not matter.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import psutil

from hkm_dask import Config, build_hierarchy, ingest
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.events import Event, subscribe
from hkm_dask.view.timeleft import TimeLeft

#: Estimates count after this share of the run, if at least so many seconds are left; number of moments per run.
JUDGED_FROM, LEAST_LEFT, N_MOMENTS = 0.2, 2.0, 400


@dataclass(frozen=True)
class Estimate:
    """An estimate relative to the true time left, made at share `at` of the run, after `n_resampled` resamplings."""

    at: float
    n_resampled: int
    expected: float
    bound: float


def processor_seconds(root: psutil.Process) -> float:
    """Return the CPU time of a process and its children, in seconds."""
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def write_trace(path: Path, events: Iterable[Event]) -> None:
    """Write events as JSON lines."""
    lines = [json.dumps({"kind": event.kind, "time": round(event.time, 4), **event.fields}) for event in events]
    path.write_text("\n".join([*lines, ""]))


def read_trace(path: Path, clock: str = "processor") -> list[Event]:
    """Read a trace of `write_trace`, timed by its clock ``"processor"`` or ``"wall"``."""
    events = []
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        times = {"wall": fields.pop("time"), "processor": fields.pop("processor", None)}
        events.append(Event(fields.pop("kind"), fields, times["wall"] if times[clock] is None else times[clock]))
    return events


def estimates(events: list[Event]) -> list[Estimate]:
    """Return estimates at evenly spaced moments of the run, each divided by the true time left."""
    left, begin, end = TimeLeft(), events[0].time, events[-1].time
    found, coming, n_resampled = [], iter(events), 0
    event = next(coming)
    for now in np.linspace(begin, end, N_MOMENTS, endpoint=False):
        while event.time <= now:
            left.update(event)
            n_resampled += event.kind == "assigned" and event.fields["step"] > 0
            event = next(coming)
        estimate, really = left.at(now), end - now
        if estimate is not None and really >= LEAST_LEFT:
            at = (now - begin) / (end - begin)
            found.append(Estimate(at, n_resampled, estimate.expected / really, estimate.bound / really))
    return found


def described(judged: list[Estimate]) -> str:
    """Describe estimates over the truth: quantiles 10, 50 and 90 %, how often the bound was exceeded, and was tight."""
    cells = []
    for name in ("expected", "bound"):
        values = np.quantile([getattr(one, name) for one in judged], [0.1, 0.5, 0.9])
        cells.append(f"{name} / came " + " ".join(f"{value:.2f}" for value in values))
    bounds = np.array([one.bound for one in judged])
    cells.append(f"above the bound {np.mean(bounds < 1):.0%}, within 1.5 times {np.mean(bounds <= 1.5):.0%}")
    return "; ".join(cells)


@click.group()
def main() -> None:
    """Record builds, and evaluate their estimates of the time left."""


@main.command()
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--n-clusters", required=True, help="Numbers of clusters, separated by commas, level 1 first.")
@click.option("--n-resamples", type=int, default=10)
@click.option("--rows", type=int, help="Use only this many rows, the first ones.")
@click.option("--set", "overrides", multiple=True)
@click.option("--workers", type=int)
def record(
    embeddings: Path, trace: Path, n_clusters: str, n_resamples: int, rows: int | None, overrides: tuple[str, ...],
    workers: int | None,
) -> None:  # fmt: skip
    """Build a tree of EMBEDDINGS.npy, and write its events."""
    config = Config.from_flags(tuple(map(int, n_clusters.split(","))), n_resamples=n_resamples, overrides=overrides)
    events: list[Event] = []
    process = psutil.Process()

    def keep(event: Event) -> None:
        clocks = {"processor": round(processor_seconds(process), 3)}
        events.append(Event(event.kind, {**event.fields, **clocks}, event.time))

    with tempfile.TemporaryDirectory() as folder, connect(workers=workers) as runner, subscribe(keep):
        data = ingest(np.load(embeddings, mmap_mode="r")[:rows], f"{folder}/pool.zarr")
        events.clear()
        build_hierarchy(data, f"{folder}/tree.zarr", config, client=runner.client)
    write_trace(trace, events)


@main.command()
@click.argument("traces", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--clock", type=click.Choice(["processor", "wall"]), default="processor")
def replay(traces: tuple[Path, ...], clock: str) -> None:
    """Print quantiles (10, 50 and 90 %) of estimated over true time left, after the first fifth of each trace.

    One line per trace, then one line over all traces for each number of resamplings timed before the estimate, and one
    over all moments, with the mean over traces of the logarithm of the median over the truth, and its standard error.
    """
    of_all: list[Estimate] = []
    logs: list[float] = []
    for trace in traces:
        events = read_trace(trace, clock)
        found = estimates(events)
        judged = [one for one in found if one.at >= JUDGED_FROM]
        seconds = events[-1].time - events[0].time
        if not judged:
            click.echo(f"{trace.stem}: {seconds:.0f} s, too short to be evaluated")
            continue
        of_all += judged
        logs.append(float(np.mean(np.log([one.expected for one in judged]))))
        click.echo(f"{trace.stem}: {seconds:.0f} s, told from {found[0].at:.2f} of it on; {described(judged)}")
    for numbers, name in ((range(1), "none"), (range(1, 2), "one"), (range(2, 1 << 30), "more")):
        some = [one for one in of_all if one.n_resampled in numbers]
        if some:
            click.echo(f"resamplings before, {name}: {len(some) / len(of_all):.0%} of all moments; {described(some)}")
    if len(logs) > 1:
        error = np.std(logs, ddof=1) / len(logs) ** 0.5
        click.echo(f"{len(logs)} runs: {described(of_all)}; log of expected / came {np.mean(logs):+.3f} +- {error:.3f}")


if __name__ == "__main__":
    main()
