"""Thumbnails of images, and clusters as rows of their members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hkm_dask.demo.pictures import DPI, INK, MARGIN, PAPER, QUIET

SIDE = 48  # pixels of a thumbnail
GAP = 2
_LABEL = 240  # pixels left of a row
_HEAD = 92


@dataclass(frozen=True)
class Row:
    """One cluster to show.

    Attributes
    ----------
    title, caption : str
        Texts beside its members.
    members : ndarray of uint8, shape (n, side, side, 3)
        Thumbnails of some of them.
    """

    title: str
    caption: str
    members: NDArray[np.uint8]


def thumbnails(images: Sequence[NDArray[np.uint8]], *, side: int = SIDE) -> NDArray[np.uint8]:
    """Crop the central square of images and scale it.

    Parameters
    ----------
    images : sequence of ndarray of uint8, shape (height, width, 3)
        Of any size.
    side : int, default 48
        Pixels along a side.

    Returns
    -------
    ndarray of uint8, shape (n, side, side, 3)

    Examples
    --------
    >>> thumbnails([np.zeros((40, 90, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)], side=16).shape
    (2, 16, 16, 3)
    """
    small = np.empty((len(images), side, side, 3), np.uint8)
    for number, image in enumerate(images):
        small[number] = np.asarray(ImageOps.fit(Image.fromarray(image), (side, side), Image.Resampling.LANCZOS))
    return small


def draw_rows(rows: Sequence[Row], *, title: str, caption: str) -> Figure:
    """Draw clusters as rows of a few members.

    Parameters
    ----------
    rows : sequence of Row
    title, caption : str
        Texts above the rows.

    Returns
    -------
    matplotlib.figure.Figure
    """
    n_columns, side = max(len(row.members) for row in rows), rows[0].members.shape[1]
    width = MARGIN + _LABEL + n_columns * (side + GAP) + MARGIN
    height = _HEAD + len(rows) * (side + 3 * GAP) + MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER)
    sheet = np.full((height, width, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        top = _HEAD + number * (side + 3 * GAP)
        for column, member in enumerate(row.members):
            left = MARGIN + _LABEL + column * (side + GAP)
            sheet[top : top + side, left : left + side] = member
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    axes.text(MARGIN, 22, title, fontsize=17, fontweight="bold", color=INK, va="top")
    axes.text(MARGIN, 56, caption, fontsize=12, color=QUIET, va="top")
    for number, row in enumerate(rows):
        middle = _HEAD + number * (side + 3 * GAP) + side / 2
        axes.text(MARGIN, middle - 2, row.title, fontsize=12, color=INK, va="bottom")
        axes.text(MARGIN, middle + 4, row.caption, fontsize=10, color=QUIET, va="top")
    return figure
