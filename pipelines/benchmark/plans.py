"""How right plans are: runs are planned, run and compared, in time, peak memory and bytes of every phase.

    python -m pipelines.benchmark.plans beside EMBEDDINGS.npy --n-clusters 2000,400,100 --n-resamples 10

Each run is a process of its own, on threads. Ratios are of what came over what was planned; 1 is right.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

#: Bytes in a phase below which its ratio tells nothing: metadata and libraries.
_FEW_BYTES = 4 << 20


def measure(pool: Path, tree: Path, words: list[str]) -> dict[str, Any]:
    """Run `hkm cluster` in a process of its own: seconds, bytes by phase, and the most memory it held."""
    command = [sys.executable, "-m", "pipelines.benchmark.plans", "child", str(pool), str(tree), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(plan: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios of what a run took over what was planned: time, and time, bytes read and written of each phase."""
    phases: dict[str, dict[str, float]] = {}
    planned: dict[str, dict[str, float]] = {}
    for level in plan["levels"]:
        for phase, seconds in (level["seconds"] or {}).items():
            planned.setdefault(phase, {"seconds": 0.0, "read": 0.0, "written": 0.0})["seconds"] += seconds
        for phase, files in level["files"].items():
            one = planned.setdefault(phase, {"seconds": 0.0, "read": 0.0, "written": 0.0})
            one["read"], one["written"] = one["read"] + files["read"], one["written"] + files["written"]
    for phase, seconds in plan["other"].items():
        planned.setdefault(phase, {"seconds": 0.0, "read": 0.0, "written": 0.0})["seconds"] += seconds
    for phase, spent in run["phases"].items():
        expected = planned.get(phase, {})
        phases[phase] = {
            name: spent[name] / expected[name]
            for name, least in (("seconds", 0.1), ("read", _FEW_BYTES), ("written", _FEW_BYTES))
            if expected.get(name, 0.0) > least
        }
    totals = {
        name: sum(one[name] for one in run["phases"].values()) / max(1, sum(one[name] for one in planned.values()))
        for name in ("read", "written")
    }
    return {
        "seconds": run["seconds"] / plan["seconds"], "peak": run["peak"] / plan["memory"]["peak"], **totals,
        "phases": phases,
    }  # fmt: skip


@click.group(invoke_without_command=False)
def main() -> None:
    """Plans beside runs."""


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--rows", type=int, help="Take the first so many rows.")
@click.option("--seconds", type=float, default=10.0, help="To measure the machine.")
def beside(embeddings: Path, words: tuple[str, ...], rows: int | None, seconds: float) -> None:
    """Plan and run hkm cluster with WORDS over EMBEDDINGS, and print the ratios."""
    with tempfile.TemporaryDirectory(prefix="hkm-plans-") as name:
        folder = Path(name)
        np.save(folder / "rows.npy", np.load(embeddings, mmap_mode="r")[:rows])
        hkm = [sys.executable, "-m", "hkm_dask"]
        subprocess.run([*hkm, "ingest", "rows.npy", "pool.zarr"], check=True, cwd=folder, capture_output=True)
        asked = [*hkm, "plan", "pool.zarr", *words, "--seconds", str(seconds), "--json"]
        plan = json.loads(subprocess.run(asked, check=True, cwd=folder, capture_output=True, text=True).stdout)
        run = measure(folder / "pool.zarr", folder / "tree.zarr", list(words))
    click.echo(json.dumps({"planned": plan["seconds"], "took": run["seconds"], "ratios": compare(plan, run)}, indent=2))


@main.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.argument("pool", type=click.Path(path_type=Path))
@click.argument("tree", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def child(pool: Path, tree: Path, words: tuple[str, ...]) -> None:
    """Build a tree, and print what it took as one line of JSON."""
    from hkm_dask.cli import main as hkm
    from hkm_dask.events import subscribe
    from hkm_dask.planning.phases import PhaseClock

    clock = PhaseClock()
    with subscribe(clock):
        hkm(["cluster", str(pool), str(tree), *words], standalone_mode=False)
    told = {
        "seconds": sum(one.seconds for one in clock.spent.values()),
        "phases": {phase: asdict(one) for phase, one in clock.phases().items()},
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }
    click.echo(json.dumps(told))


if __name__ == "__main__":
    main()
