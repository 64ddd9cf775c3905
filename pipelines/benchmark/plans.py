"""Accuracy of `hkm plan`: compare planned and actual time, peak memory and bytes of every phase.

    python -m pipelines.benchmark.plans shapes --nouns NOUNS.npy --repeats 3 --record
    python -m pipelines.benchmark.plans beside EMBEDDINGS.npy --n-clusters 2000,400,100 --n-resamples 10

Each plan and each run is a separate command, on threads; the time of a run is that of its whole command. Plans and runs
alternate, and results are medians. Ratios are actual over planned: 1 is exact.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipelines import records
from pipelines.benchmark.inputs import make_rows

#: Bytes, and seconds, of a phase below which its ratio means nothing: metadata and libraries dominate.
_FEW_BYTES, _FEW_SECONDS = 4 << 20, 0.5
#: Quantities reported for a phase, or for the whole run.
_KINDS = ("seconds", "read", "written")
HKM = [sys.executable, "-m", "hkm_dask"]


@dataclass(frozen=True)
class Shape:
    """The float16 rows of a run and its settings; the rows are synthetic, or the first `n` nouns, or all of them."""

    name: str
    words: str
    n_rows: int | None = None
    n_features: int | None = None
    limit: str = ""

    def rows(self, nouns: Path) -> NDArray[np.float16]:
        """Generate the rows, or read the nouns."""
        if self.n_features is None or self.n_rows is None:
            return np.load(nouns, mmap_mode="r")[: self.n_rows]
        made = make_rows(self.n_rows, self.n_features).rows
        return np.asarray(made, np.float16)


_SPLIT = "--n-clusters 200,100 --set levels.1.n_splits=25 --n-resamples 1"
#: Shapes whose time is spent in different phases. The cost model was adjusted with the first two.
SHAPES = (
    Shape("40,000 nouns", "--n-clusters 2000,400,100 --n-resamples 10", 40_000),
    Shape("60,000 × 128, flat", "--n-clusters 4000 --n-resamples 0", 60_000, 128),
    Shape("82,115 nouns", "--n-resamples 1"),
    Shape("400,000 × 64", "--n-clusters 4000,400,40 --n-resamples 1", 400_000, 64),
    Shape("100,000 × 16", "--n-clusters 1000,50 --n-resamples 3", 100_000, 16),
    Shape("2,000,000 × 32, 1 GiB", _SPLIT, 2_000_000, 32, limit="1GiB"),
)


def planned_phases(plan: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the planned seconds and bytes read and written of each phase.

    >>> level = {"seconds": {"Lloyd": 2.0}, "files": {"Lloyd": {"read": 5, "written": 7}}}
    >>> planned_phases({"levels": [level, level], "other": {"start": 1.0}})["Lloyd"]
    {'seconds': 4.0, 'read': 10.0, 'written': 14.0}
    """
    planned: dict[str, dict[str, float]] = {}

    def add(phase: str, kind: str, amount: float) -> None:
        planned.setdefault(phase, dict.fromkeys(_KINDS, 0.0))[kind] += amount

    for level in plan["levels"]:
        for phase, seconds in (level["seconds"] or {}).items():
            add(phase, "seconds", seconds)
        for phase, files in level["files"].items():
            add(phase, "read", files["read"])
            add(phase, "written", files["written"])
    for phase, seconds in plan["other"].items():
        add(phase, "seconds", seconds)
    return planned


def compare(plan: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return planned and actual values and their ratio: of the run, and of each phase large enough for a ratio."""
    planned, phases = planned_phases(plan), {}
    least = {"seconds": _FEW_SECONDS, "read": _FEW_BYTES, "written": _FEW_BYTES}
    for phase in dict.fromkeys([*planned, *run["phases"]]):
        was = run["phases"].get(phase, dict.fromkeys(_KINDS, 0.0))
        thought = planned.get(phase, dict.fromkeys(_KINDS, 0.0))
        compared = {
            kind: _ratio(thought[kind], was[kind]) for kind in _KINDS if max(was[kind], thought[kind]) > least[kind]
        }
        if compared:
            phases[phase] = compared
    whole = {
        "seconds": _ratio(plan["seconds"], run["seconds"]), "peak": _ratio(plan["memory"]["peak"], run["peak"]),
        **{kind: _ratio(*(sum(one[kind] for one in those.values()) for those in (planned, run["phases"])))
           for kind in ("read", "written")},
    }  # fmt: skip
    return {**whole, "range": [plan["at_least"], plan["likely_at_most"]], "phases": phases}


def _ratio(planned: float, came: float) -> dict[str, float]:
    return {"planned": planned, "came": came, "ratio": came / planned if planned else float("inf")}


def compare_in_turns(rows: NDArray[Any], words: Sequence[str], *, limit: str, repeats: int, seconds: float) -> Any:
    """Plan and run `hkm cluster` alternately, `repeats` times, and compare the median plan with the median run."""
    with tempfile.TemporaryDirectory(prefix="hkm-plans-") as name:
        folder = Path(name)
        np.save(folder / "rows.npy", rows)
        subprocess.run([*HKM, "ingest", "rows.npy", "pool.zarr"], check=True, cwd=folder, capture_output=True)
        plans, runs = [], []
        for i in range(repeats):
            asked = ["plan", "pool.zarr", *words, *(["--memory", limit] if limit else [])]
            plan = _run([*HKM, *asked, "--seconds", str(seconds), "--json"], folder)
            plans.append(json.loads(plan))
            runs.append(measure(folder, f"tree-{i}.zarr", [*words, *(["--memory-limit", limit] if limit else [])]))
    plan, run = (sorted(those, key=lambda one: one["seconds"])[len(those) // 2] for those in (plans, runs))
    ratios = [run["seconds"] / plan["seconds"] for plan, run in zip(plans, runs, strict=True)]
    return compare(plan, run) | {"ratios": ratios, "median": statistics.median(ratios)}


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr.strip()[-2000:])
    return done.stdout


def measure(folder: Path, tree: str, words: list[str]) -> dict[str, Any]:
    """Run `hkm cluster` in its own process; return seconds in all and per phase, bytes, and peak memory."""
    begin = time.perf_counter()
    child = [sys.executable, "-m", "pipelines.benchmark.plans", "child", "pool.zarr", tree, *words]
    run: dict[str, Any] = json.loads(_run(child, folder).splitlines()[-1])
    run["seconds"] = time.perf_counter() - begin
    # Time that belongs to no phase is that of starting and ending the process.
    run["phases"]["start"]["seconds"] += run["seconds"] - sum(one["seconds"] for one in run["phases"].values())
    return run


def table(found: Mapping[str, Any]) -> Table:
    """Tabulate all comparisons: the whole run first, then its phases."""
    made = Table("", "planned", "came", "ratio", "range", "peak", "read", "written", title="came / planned")
    for name, one in found.items():
        low, high = one["range"]
        made.add_row(f"[bold]{name}", *_cells(one["seconds"]), f"{low:.0f}-{high:.0f} s", *_ratios(one))
        for phase, values in one["phases"].items():
            cells = _cells(values["seconds"]) if "seconds" in values else ["", "", ""]
            made.add_row(f"  {phase}", *cells, "", *_ratios(values))
        made.add_section()
    return made


def _cells(values: Mapping[str, float]) -> list[str]:
    return [f"{values['planned']:.1f} s", f"{values['came']:.1f} s", f"{values['ratio']:.2f}"]


def _ratios(values: Mapping[str, Any]) -> Iterable[str]:
    return (f"{values[kind]['ratio']:.2f}" if kind in values else "" for kind in ("peak", "read", "written"))


@click.group(invoke_without_command=False)
def main() -> None:
    """Compare plans with runs."""


_repeats = click.option("--repeats", type=click.IntRange(min=1), default=1, help="Plans and runs of each shape.")
_seconds = click.option("--seconds", type=float, default=10.0, help="Time for each plan to measure the machine.")


@main.command()
@click.option("--nouns", type=click.Path(path_type=Path, exists=True), required=True, help="82,115 × 384 array, .npy.")
@click.option("--only", type=int, multiple=True, metavar="N", help="Run only the N-th shape, counted from 1.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Folder for results.json.")
@click.option("--record", is_flag=True, help="Keep the results, and update the documents.")
@_repeats
@_seconds
def shapes(nouns: Path, only: tuple[int, ...], out: Path, record: bool, repeats: int, seconds: float) -> None:
    """Compare plans with runs for several shapes, and print one table."""
    found = {}
    for i, shape in enumerate(SHAPES, 1):
        if only and i not in only:
            continue
        click.echo(f"{shape.name}: {shape.words}", err=True)
        found[shape.name] = compare_in_turns(
            shape.rows(nouns), shape.words.split(), limit=shape.limit, repeats=repeats, seconds=seconds
        )
    Console(width=110).print(table(found))
    settings = {"repeats": repeats, "seconds": seconds, "words": {one.name: one.words for one in SHAPES}}
    out.mkdir(parents=True, exist_ok=True)
    records.save(
        "benchmark", "plans", found, out=out, settings=settings, record=record, program="-m pipelines.benchmark.plans"
    )


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--rows", type=int, help="Use only this many rows, the first ones.")
@click.option("--limit", default="", help="Memory limit, for example 1GiB.")
@_repeats
@_seconds
def beside(
    embeddings: Path, words: tuple[str, ...], rows: int | None, limit: str, repeats: int, seconds: float
) -> None:
    """Plan and run hkm cluster with WORDS on EMBEDDINGS, and print the ratios."""
    some = np.load(embeddings, mmap_mode="r")[:rows]
    found = compare_in_turns(some, words, limit=limit, repeats=repeats, seconds=seconds)
    Console(width=110).print(table({embeddings.name: found}))
    click.echo(json.dumps(found, indent=2))


@main.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.argument("pool", type=click.Path(path_type=Path))
@click.argument("tree", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def child(pool: Path, tree: Path, words: tuple[str, ...]) -> None:
    """Build a tree, and print its time, bytes and memory as one line of JSON."""
    import hkm_dask.hierarchy.build  # imported first: reading modules does not count
    import hkm_dask.view.info  # noqa: F401
    from hkm_dask.cli import main as hkm
    from hkm_dask.events import subscribe
    from hkm_dask.planning.phases import PhaseClock

    clock = PhaseClock()
    with subscribe(clock):
        hkm(["cluster", str(pool), str(tree), *words], standalone_mode=False)
    result = {
        "phases": {phase: asdict(one) for phase, one in clock.phases().items()},
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
