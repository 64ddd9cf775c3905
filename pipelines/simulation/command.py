"""Run the simulations of arXiv:2405.15613: the toy example of §3.2, Figures 2 and 3, the five rings.

    python pipelines/simulation/run.py all --out simulation             # every figure, ten seeds
    python pipelines/simulation/run.py figure3 --seeds 1 --out quick    # one figure, in seconds
    python pipelines/simulation/run.py gap --out simulation             # settings that bring Figure 3 closer to uniform
    python pipelines/simulation/run.py beside --seeds 40                # its levels also with scikit-learn's k-means

Each study writes NAME.json and its plots as PNG and SVG. `all` excludes `gap`, which takes an hour, and `beside`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from hkm_dask.events import subscribe
from hkm_dask.view.progress import Display
from pipelines import records
from pipelines.simulation import beside, figure2, figure3, gap, rings, toy
from pipelines.simulation.drawing import copy_to_docs

Run = Callable[[Path, int], tuple[dict[str, Any], list[Path]]]

STUDIES: dict[str, tuple[Run, Callable[[dict[str, Any]], str]]] = {
    "toy": (toy.run, toy.summarize),
    "figure2": (figure2.run, figure2.summarize),
    "figure3": (figure3.run, figure3.summarize),
    "rings": (rings.run, rings.summarize),
    "gap": (gap.run, gap.summarize),
    "beside": (beside.run, beside.summarize),
}
STAGES = ("figure 2", "figure 3", "rings", "gap", "beside")  # as named in the events of these modules
ALL = ("toy", "figure2", "figure3", "rings")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=[*STUDIES, "all"], help="study to run")
    parser.add_argument("--out", type=Path, default=Path("hkm-simulation"), help="default: hkm-simulation")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of data and initialization; default: 10")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="also copy the small plots to this folder")
    records.add_option(parser)
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds={arguments.seeds} should be >= 1")
    return arguments


@contextmanager
def show_stages() -> Iterator[None]:
    """Show the progress of a study on stderr, without the events of its hundreds of k-means."""
    display = Display(Console(stderr=True, force_terminal=False))
    with subscribe(lambda event: display(event) if event.fields.get("stage") in STAGES else None):
        yield


def main() -> None:
    """Run the studies, and print and write the numbers."""
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ALL if arguments.study == "all" else (arguments.study,):
        run, summarize = STUDIES[name]
        begin = time.perf_counter()
        with show_stages():
            numbers, pictures = run(arguments.out, arguments.seeds)
        target = arguments.out / f"{name}.json"
        target.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        settings = {"seeds": arguments.seeds}
        records.save("simulation", name, numbers, out=arguments.out, settings=settings, record=arguments.record)
        written = [target, *pictures]
        if arguments.docs is not None:
            written += copy_to_docs(pictures, arguments.docs)
        print(f"\n{name}, {time.perf_counter() - begin:.0f} s\n{summarize(numbers)}")
        print(*(f"wrote {path}" for path in written), sep="\n")
