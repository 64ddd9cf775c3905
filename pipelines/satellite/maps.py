"""Maps of the patches that a draw selected from a raster: the others are dimmed, and dots show the kinds' shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from hkm_dask.demo.pictures import DPI, INK, LIGHTNESS, MARGIN, PAPER, QUIET

WIDTH = 752  # pixels of one map
POOL = "#9aa2ab"
_DARK, _LIGHT = 92.0, 170.0  # gray levels of black and white in dimmed areas


@dataclass(frozen=True)
class KeptMap:
    """One draw to show.

    Attributes
    ----------
    title, caption : str
        Name, and one line of description.
    color : str
        Color of the title and the dots.
    at : ndarray of int64, shape (n, 2)
        Top and left of the selected patches, in pixels of the raster.
    shares : mapping of str to float
        Share of each kind among them.
    """

    title: str
    caption: str
    color: str
    at: NDArray[np.int64]
    shares: Mapping[str, float]


def light_up(picture: NDArray[np.uint8], at: NDArray[np.floating], *, size: float) -> NDArray[np.uint8]:
    """Dim a picture to gray, except for some squares.

    Parameters
    ----------
    picture : ndarray of uint8, shape (height, width, 3)
        Red, green and blue.
    at : ndarray of float, shape (n, 2)
        Top and left of the squares, in pixels of the picture.
    size : float
        Pixels along a side of a square; at least one pixel stays undimmed.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Examples
    --------
    >>> light_up(np.full((2, 3, 3), 255, np.uint8), np.array([[0, 1]]), size=1)[:, :, 0].tolist()
    [[170, 255, 170], [170, 170, 170]]
    """
    gray = _DARK + (picture @ LIGHTNESS) * ((_LIGHT - _DARK) / 255)
    lit = np.zeros(picture.shape[:2], bool)
    begin = np.floor(at).astype(np.int64)
    end = np.maximum(np.rint(at + size).astype(np.int64), begin + 1)
    for (top, left), (bottom, right) in zip(begin.tolist(), end.tolist(), strict=True):
        lit[top:bottom, left:right] = True
    return np.where(lit[:, :, None], picture, np.rint(gray)[:, :, None]).astype(np.uint8)


def draw_kept(
    picture: NDArray[np.uint8], maps: Sequence[KeptMap], *, size: int, scale: float, pool: Mapping[str, float]
) -> Figure:
    """Draw maps of draws side by side, and below them the shares of each kind.

    Parameters
    ----------
    picture : ndarray of uint8, shape (height, width, 3)
        The raster, reduced; best twice `WIDTH` wide.
    maps : sequence of KeptMap
    size : int
        Pixels along a side of a patch, in the raster.
    scale : float
        Pixels of the picture per pixel of the raster.
    pool : mapping of str to float
        Shares in the pool, in the order in which they are shown; empty for none.

    Returns
    -------
    matplotlib.figure.Figure
    """
    height = round(WIDTH * picture.shape[0] / picture.shape[1])
    bars = 34 + 26 * len(pool) if pool else 0
    width_all = MARGIN + len(maps) * (WIDTH + MARGIN)
    height_all = 92 + height + (bars + 92 if bars else MARGIN)
    figure = Figure(figsize=(width_all / DPI, height_all / DPI), dpi=DPI, facecolor=PAPER)
    for number, one in enumerate(maps):
        left = MARGIN + number * (WIDTH + MARGIN)
        for top, text, font, weight, color in (
            (20, one.title, 17, "bold", one.color),
            (54, one.caption, 12, "normal", QUIET),
        ):
            figure.text(left / width_all, 1 - top / height_all, text, size=font, weight=weight, color=color, va="top")
        axes = figure.add_axes(
            (left / width_all, 1 - (88 + height) / height_all, WIDTH / width_all, height / height_all)
        )
        lit = light_up(picture, one.at * scale, size=size * scale)
        small = Image.fromarray(lit).resize((WIDTH, height), Image.Resampling.LANCZOS)
        axes.imshow(np.asarray(small), interpolation="nearest")
        axes.set_axis_off()
    if pool:
        _draw_shares(figure, maps, pool, (MARGIN, 88 + height + 40, width_all, height_all, bars))
    return figure


def _draw_shares(
    figure: Figure, maps: Sequence[KeptMap], pool: Mapping[str, float], place: tuple[float, float, float, float, float]
) -> None:
    """Draw a row of dots for every kind: one for the pool and one per draw."""
    left, top, width_all, height_all, height = place
    label = 190
    axes = figure.add_axes((
        (left + label) / width_all,
        1 - (top + height) / height_all,
        (width_all - 2 * left - label) / width_all,
        height / height_all,
    ))  # fmt: skip
    rows = np.arange(len(pool))
    series = [("pool", POOL, pool), *((one.title.partition(" of ")[0].lower(), one.color, one.shares) for one in maps)]
    thick = 0.8 / len(series)
    for number, (name, color, shares) in enumerate(series):
        values = [100 * shares.get(kind, 0.0) for kind in pool]
        axes.barh(rows + (number - (len(series) - 1) / 2) * thick, values, thick, color=color, label=name)
    axes.set_yticks(rows, list(pool), fontsize=11, color=INK)
    axes.invert_yaxis()
    axes.set_xlabel("share of the patches, %", color=QUIET, fontsize=10)
    axes.tick_params(colors=QUIET, labelsize=9, axis="x")
    axes.tick_params(length=0, axis="y")
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=11)
