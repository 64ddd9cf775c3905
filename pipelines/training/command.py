"""Do models learn more from what the tree draws? Train small ones on draws of the same size, and score them.

    python pipelines/training/run.py images --out training

Each result is written as it is made, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pipelines.measurements import Facts, mean_and_error
from pipelines.training.draws import DRAWS

STUDIES = ("images", "text", "satellite")


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("training"), help="folder of what is measured and made")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--setting", choices=("cpu", "gpu"), default="cpu", help="a network for two cores, or for a GPU"
    )
    parser.add_argument("--draws", default=",".join(DRAWS), help="some of the draws, with commas between")
    options = parser.parse_args()
    draws = options.draws.split(",")
    if wrong := [name for name in draws if name not in DRAWS]:
        parser.error(f"--draws={','.join(wrong)} should be some of {', '.join(DRAWS)}")
    if find_spec("torch") is None:
        parser.error("torch is not installed; pip install torch")
    study = import_module(f"pipelines.training.{options.study}")
    device = "cuda" if options.setting == "gpu" else "cpu"
    found = study.run(options.out, options.seeds, setting=options.setting, device=device, draws=draws)
    text = table([r for r in found.table() if r["setting"] == options.setting], study.TABLE)
    print(text)
    (options.out / f"{options.study}.md").write_text(text, encoding="utf-8")


def table(records: Sequence[Facts], columns: Sequence[str]) -> str:
    """Mean and standard error of the seeds, a line per draw."""
    lines = ["| | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for draw in dict.fromkeys(record["draw"] for record in records):
        of_draw = [record for record in records if record["draw"] == draw]
        cells = [draw, str(len(of_draw))]
        for column in columns:
            mean, error = mean_and_error([record[column] for record in of_draw])
            cells.append(f"{mean:.3f}" if len(of_draw) == 1 else f"{mean:.3f} ± {error:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
