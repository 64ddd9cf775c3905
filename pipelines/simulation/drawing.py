"""Style of the simulations' plots, and writing them as PNG and SVG, reproducibly to the byte."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from hkm_dask.demo.pictures import DPI, INK, PAPER, QUIET

__all__ = ["BLUE", "GREEN", "INK", "ORANGE", "QUIET", "copy_to_docs", "empty_figure", "plain", "write"]

# Distinguishable with all common kinds of color vision (Okabe and Ito).
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
LARGEST_SVG = 300_000  # maximum bytes of a plot in the documentation


def empty_figure(width: int, height: int) -> Figure:
    """Create a figure of a size in pixels.

    Parameters
    ----------
    width, height : int

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes) -> None:
    """Remove axes, ticks and frames that carry no information.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelsize=9)


def write(figure: Figure, out: Path, name: str) -> list[Path]:
    """Write a figure as PNG and as SVG.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    out : Path
        Folder, created if necessary.
    name : str
        File name without suffix.

    Returns
    -------
    list of Path
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.png", out / f"{name}.svg"]
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(paths[0], dpi=DPI)
        figure.savefig(paths[1], dpi=DPI, metadata={"Date": None, "Creator": None})
    with Image.open(paths[0]) as picture:  # 256 colors are enough, and a quarter of the bytes
        few = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(paths[0], optimize=True)
    return paths


def copy_to_docs(pictures: Sequence[Path], folder: Path) -> list[Path]:
    """Copy the plots that are small enough into the documentation.

    Parameters
    ----------
    pictures : sequence of Path
    folder : Path

    Returns
    -------
    list of Path
        The files written, each as ``simulation_NAME``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    small = [path for path in pictures if path.stat().st_size <= LARGEST_SVG]
    return [Path(shutil.copyfile(path, folder / f"simulation_{path.name}")) for path in small]
