"""The command line of the simulations: which study, for how many seeds, where to."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

import simulation_beside
import simulation_figure2
import simulation_figure3
import simulation_gap
import simulation_rings
import simulation_toy
from hkm_dask.events import subscribe
from hkm_dask.view.progress import Display
from simulation_drawing import copy_to_docs

Run = Callable[[Path, int], tuple[dict[str, Any], list[Path]]]

STUDIES: dict[str, tuple[Run, Callable[[dict[str, Any]], str]]] = {
    "toy": (simulation_toy.run, simulation_toy.summarize),
    "figure2": (simulation_figure2.run, simulation_figure2.summarize),
    "figure3": (simulation_figure3.run, simulation_figure3.summarize),
    "rings": (simulation_rings.run, simulation_rings.summarize),
    "gap": (simulation_gap.run, simulation_gap.summarize),
    "beside": (simulation_beside.run, simulation_beside.summarize),
}
STAGES = ("figure 2", "figure 3", "rings", "gap", "beside")  # as these modules tell
ALL = ("toy", "figure2", "figure3", "rings")


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Read the command line.

    Parameters
    ----------
    description : str or None
        What ``--help`` begins with.

    Returns
    -------
    argparse.Namespace
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "all"], help="what to make")
    parser.add_argument("--out", type=Path, default=Path("hkm-simulation"), help="folder; default: hkm-simulation")
    parser.add_argument("--seeds", type=int, default=10, help="data sets and starts to average over; default: 10")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="also copy the pictures that are small to here")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds={arguments.seeds} should be >= 1")
    return arguments


@contextmanager
def show_stages() -> Iterator[None]:
    """Show on stderr how far a study is; what the hundreds of k-means in it tell would drown that."""
    display = Display(Console(stderr=True, force_terminal=False))
    with subscribe(lambda event: display(event) if event.fields.get("stage") in STAGES else None):
        yield


def main(description: str | None) -> None:
    """Run what was asked for, print the numbers, and write them.

    Parameters
    ----------
    description : str or None
        What ``--help`` begins with.
    """
    arguments = parse_arguments(description)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ALL if arguments.study == "all" else (arguments.study,):
        run, summarize = STUDIES[name]
        begin = time.perf_counter()
        with show_stages():
            numbers, pictures = run(arguments.out, arguments.seeds)
        target = arguments.out / f"{name}.json"
        target.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        written = [target, *pictures]
        if arguments.docs is not None:
            written += copy_to_docs(pictures, arguments.docs)
        print(f"\n{name}, {time.perf_counter() - begin:.0f} s\n{summarize(numbers)}")
        print(*(f"wrote {path}" for path in written), sep="\n")
