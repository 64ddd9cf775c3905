"""How good the time left is: the events of builds are recorded, played again, and every estimate is held to what came.

    python -m pipelines.benchmark.timeleft record EMBEDDINGS.npy TRACE.jsonl --n-clusters 2000,400,100 --n-resamples 5
    python -m pipelines.benchmark.timeleft replay TRACE.jsonl...

The clock of a trace is this process's processor time, so that other work on the machine does not count.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from hkm_dask import Config, build_hierarchy
from hkm_dask.events import Event, subscribe
from hkm_dask.view.timeleft import TimeLeft

#: Shares of a run between which its estimates are judged.
JUDGED_FROM, JUDGED_UNTIL = 0.2, 0.95


@dataclass(frozen=True)
class Estimate:
    """An estimate made at a share of the run, over what then came."""

    at: float
    expected: float
    bound: float


def write_trace(path: Path, events: Iterable[Event]) -> None:
    """Write events as JSON, one a line."""
    lines = [json.dumps({"kind": event.kind, "time": round(event.time, 4), **event.fields}) for event in events]
    path.write_text("\n".join([*lines, ""]))


def read_trace(path: Path) -> list[Event]:
    """Read what `write_trace` wrote."""
    told = [json.loads(line) for line in path.read_text().splitlines()]
    return [Event(one.pop("kind"), one, one.pop("time")) for one in told]


def estimates(events: list[Event]) -> list[Estimate]:
    """Estimates after each event, over the time that was really left, but for those at the very end."""
    left, begin, end = TimeLeft(), events[0].time, events[-1].time
    found = []
    for event in events:
        left.update(event)
        estimate, really = left.at(event.time), end - event.time
        if estimate is not None and really > (1 - JUDGED_UNTIL) * (end - begin):
            share = (event.time - begin) / (end - begin)
            found.append(Estimate(share, estimate.expected / really, estimate.bound / really))
    return found


@click.group()
def main() -> None:
    """Record builds and judge the time left that they were told."""


@main.command()
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--n-clusters", required=True, help="Clusters of each level, with commas between them.")
@click.option("--n-resamples", type=int, default=10)
@click.option("--rows", type=int, help="Take the first so many rows.")
@click.option("--set", "overrides", multiple=True)
def record(
    embeddings: Path, trace: Path, n_clusters: str, n_resamples: int, rows: int | None, overrides: tuple[str, ...]
) -> None:
    """Build a tree over EMBEDDINGS.npy, and write the events of it."""
    config = Config.from_flags(tuple(map(int, n_clusters.split(","))), n_resamples=n_resamples, overrides=overrides)
    events: list[Event] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        subscribe(lambda event: events.append(Event(event.kind, event.fields, time.process_time()))),
    ):
        build_hierarchy(np.load(embeddings, mmap_mode="r")[:rows], f"{folder}/tree.zarr", config)
    write_trace(trace, events)


@main.command()
@click.argument("traces", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
def replay(traces: tuple[Path, ...]) -> None:
    """Print how the estimates of each trace compare with what came, after a fifth of it."""
    for trace in traces:
        events = read_trace(trace)
        found = estimates(events)
        judged = [one for one in found if one.at >= JUDGED_FROM]
        click.echo(f"{trace.stem}: {events[-1].time - events[0].time:.0f} s, told from {found[0].at:.2f} of it on")
        for name in ("expected", "bound"):
            values = np.quantile([getattr(one, name) for one in judged], [0, 0.1, 0.5, 0.9, 1])
            click.echo(f"  {name} / came, quantiles 0, 10, 50, 90, 100 %: " + " ".join(f"{v:.2f}" for v in values))


if __name__ == "__main__":
    main()
