"""Do models learn more from subsets drawn with a tree? Train small models on draws of the same size, and compare them.

    python pipelines/training/run.py images --out training

Each result is written immediately, so that an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pipelines import records
from pipelines.training.draws import DRAWS
from pipelines.training.quotes import draw, folded, table

STUDIES = ("images", "labeled", "text", "satellite")


def main() -> None:
    """Train missing models, print the table, and draw the plot."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("training"), help="folder for measurements and models")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--setting", choices=("cpu", "gpu"), default="cpu", help="a network for two cores, or for a GPU"
    )
    parser.add_argument("--draws", default=",".join(DRAWS), help="draws, separated by commas; default: all")
    records.add_option(parser)
    options = parser.parse_args()
    draws = options.draws.split(",")
    if wrong := [name for name in draws if name not in DRAWS]:
        parser.error(f"--draws={','.join(wrong)} should be some of {', '.join(DRAWS)}")
    if find_spec("torch") is None:
        parser.error("torch is not installed; pip install torch")
    study = import_module(f"pipelines.training.{options.study}")
    device = "cuda" if options.setting == "gpu" else "cpu"
    found = study.run(options.out, options.seeds, setting=options.setting, device=device, draws=draws)
    measured = folded([r for r in found.table() if r["setting"] == options.setting])
    text = table(measured, study.TABLE)
    print(text)
    (options.out / f"{options.study}.md").write_text(text, encoding="utf-8")
    settings = {"setting": options.setting, "columns": study.TABLE}
    records.save("training", options.study, measured, out=options.out, settings=settings, record=options.record)
    picture = options.out / "training.png"
    draw(json.loads((options.out / records.RESULTS).read_text(encoding="utf-8")), picture)
    if options.record:
        shutil.copy(picture, records.ROOT / "docs" / "images" / picture.name)
