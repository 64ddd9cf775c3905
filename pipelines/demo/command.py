"""Run the demo, and write the README's picture from its plots."""

import argparse
from pathlib import Path

from PIL import Image

from hkm_dask.demo.demo import run_demo
from hkm_dask.view.progress import show_progress


def main() -> None:
    """Parse the arguments, run the demo, and print its summary."""
    parser = argparse.ArgumentParser("python -m pipelines.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("hkm-demo"), help="output folder")
    parser.add_argument("--quick", action="store_true", help="less data: seconds instead of minutes")
    parser.add_argument("--readme", type=Path, metavar="PNG", help="also write the README's picture here")
    arguments = parser.parse_args()
    with show_progress():
        summary = run_demo(arguments.out, quick=arguments.quick)
    print(summary)
    if arguments.readme:
        shrink(arguments.out / "overview.png", arguments.readme)


def shrink(source: Path, target: Path) -> None:
    """Write a picture with 256 colors, including its rare ones, which takes a quarter of the bytes."""
    with Image.open(source) as picture:
        few = picture.convert("RGB").quantize(
            256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
        )
        few.save(target, optimize=True)
