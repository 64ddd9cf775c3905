"""The descriptor of images that needs no weights: where edges run, and where which color lies.

Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) on a grid of 4 × 4 cells beside the mean colors of the
same cells. Distances between them mean what the eye sees at a glance, no more: layout, texture, color. A learned model
knows better what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from hkm_dask.embedding.embed import Encoder
from hkm_dask.errors import InputError

SIDE = 64  # pixels of the square that every image is scaled to
CELL = 16  # pixels along a side of a cell
CELLS = SIDE // CELL
ORIENTATIONS = 9  # of 20° each; edges from dark to light and from light to dark are the same
N_GRADIENTS = 4 * ORIENTATIONS * (CELLS - 1) ** 2
N_COLORS = 3 * CELLS**2
# On CIFAR-10, 0.2 to 0.3 are best for the class of the nearest neighbors; the gradients of an image have length 1.
COLOR_WEIGHT = 0.25
# A block this faint counts for 0.7 of a strong one: noise in a clear sky is no texture. Photographs have 0.02 to 0.1.
FAINT = 0.02
AT_ONCE = 16  # images whose gradients stay in the cache together
CLIP = 0.2  # of a normalized block, as Dalal and Triggs have it
EPSILON = 1e-5
_SINES = np.sin(np.pi / ORIENTATIONS * np.arange(1, ORIENTATIONS)).astype(np.float32)
_COSINES = np.cos(np.pi / ORIENTATIONS * np.arange(1, ORIENTATIONS)).astype(np.float32)


class Hog(Encoder):
    """Images to 372 numbers each: 324 of gradients, 48 of color.

    Takes uint8 arrays of shape (height, width, 3) of any size. Work is done image by image in `prepare`, so that all
    threads share it.

    Examples
    --------
    >>> images = [np.zeros((20, 30, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)]
    >>> Hog()(images).shape
    (2, 372)
    """

    name = "hog"
    fingerprint = f"hog-1-{SIDE}-{CELL}-{ORIENTATIONS}-{COLOR_WEIGHT}-{FAINT}"
    n_features = N_GRADIENTS + N_COLORS

    def prepare(self, items: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Describe images, a few at a time; see `describe`."""
        pieces = (items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE))
        return [row for piece in pieces for row in describe(np.stack([squeeze(item) for item in piece]))]

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Put descriptors together."""
        return np.stack(prepared)


def squeeze(image: np.ndarray) -> np.ndarray:
    """Scale an image to the square that is described, whatever its proportions.

    Parameters
    ----------
    image : np.ndarray of uint8, shape (height, width, 3)
        Red, green and blue.

    Returns
    -------
    np.ndarray of uint8, shape (SIDE, SIDE, 3)

    Raises
    ------
    InputError
        When it is no such array.

    Examples
    --------
    >>> squeeze(np.full((3, 200, 3), 7, np.uint8)).shape
    (64, 64, 3)
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"image={image.dtype}{image.shape} should be uint8 (height, width, 3); convert it")
    if image.shape[:2] == (SIDE, SIDE):
        return image
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def describe(images: np.ndarray) -> np.ndarray:
    """Describe images of the right size.

    Parameters
    ----------
    images : np.ndarray of uint8, shape (n, SIDE, SIDE, 3)

    Returns
    -------
    np.ndarray of float32, shape (n, 372)
        First the gradients: 3 × 3 blocks of 2 × 2 cells in reading order, in each block its cells in reading order,
        in each cell the 9 orientations. A block has length n / √(n² + FAINT²) / 3, where n is that of its histograms.
        Then the 4 × 4 cells' mean red, green and blue, from −0.5 to 0.5, times ``COLOR_WEIGHT``.

    References
    ----------
    Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005: square root of the intensities,
    the channel with the largest gradient, L2-Hys; but theirs are all of one length, however faint.

    Examples
    --------
    >>> gray = describe(np.full((1, SIDE, SIDE, 3), 255, np.uint8))
    >>> float(gray[0, :N_GRADIENTS].max()), float(gray[0, -1])
    (0.0, 0.125)
    """
    planes = np.ascontiguousarray(np.moveaxis(images, 3, 0), dtype=np.float32) / 255
    magnitude, orientation = _gradients(np.sqrt(planes))
    blocks = _blocks(_histograms(magnitude, orientation))
    n = len(images)
    colors = planes.reshape(3, n, CELLS, CELL, CELLS, CELL).mean(axis=(3, 5)).transpose(1, 2, 3, 0) - 0.5
    gradients = blocks.reshape(n, -1) / (CELLS - 1)
    return np.concatenate([gradients, COLOR_WEIGHT * colors.reshape(n, -1)], axis=1)


def _gradients(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Magnitude and orientation, of the channel whose gradient is the largest; each (n, SIDE, SIDE)."""
    down, right = np.zeros_like(planes), np.zeros_like(planes)
    np.subtract(planes[:, :, 2:], planes[:, :, :-2], out=down[:, :, 1:-1])
    np.subtract(planes[..., 2:], planes[..., :-2], out=right[..., 1:-1])
    square = down**2 + right**2
    strongest, dy, dx = square[0], down[0], right[0]
    for channel in (1, 2):
        stronger = square[channel] > strongest
        strongest = np.where(stronger, square[channel], strongest)
        dy, dx = np.where(stronger, down[channel], dy), np.where(stronger, right[channel], dx)
    # Half a turn for those that point up: angles from 0° to below 180°.
    flip = np.where((dy < 0) | ((dy == 0) & (dx < 0)), np.float32(-1), np.float32(1))
    dy, dx = dy * flip, dx * flip
    orientation = np.zeros(dy.shape, dtype=np.int8)
    for sine, cosine in zip(_SINES, _COSINES, strict=True):
        orientation += dy * cosine >= dx * sine  # the angle is at least that of (cosine, sine)
    orientation[strongest == 0] = 0
    return np.sqrt(strongest), orientation


def _histograms(magnitude: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Mean magnitude by orientation in every cell: (n, CELLS, CELLS, ORIENTATIONS)."""
    n = len(magnitude)
    cell = np.arange(SIDE) // CELL
    places = (np.arange(n)[:, None, None] * CELLS + cell[:, None]) * CELLS + cell
    places = places * ORIENTATIONS + orientation
    sums = np.bincount(places.ravel(), magnitude.ravel(), minlength=n * CELLS**2 * ORIENTATIONS)
    return (sums / CELL**2).astype(np.float32).reshape(n, CELLS, CELLS, ORIENTATIONS)


def _blocks(histograms: np.ndarray) -> np.ndarray:
    """Blocks of 2 × 2 cells, normalized, clipped and normalized again: (n, CELLS - 1, CELLS - 1, 4 * ORIENTATIONS)."""
    h = histograms
    blocks = np.concatenate([h[:, :-1, :-1], h[:, :-1, 1:], h[:, 1:, :-1], h[:, 1:, 1:]], axis=3)
    square = (blocks**2).sum(axis=3, keepdims=True)
    clipped = np.minimum(blocks / np.sqrt(square + EPSILON**2), CLIP)
    normalized = clipped / np.sqrt((clipped**2).sum(axis=3, keepdims=True) + EPSILON**2)
    return normalized * np.sqrt(square / (square + FAINT**2))
