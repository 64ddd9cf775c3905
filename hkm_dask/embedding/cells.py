"""A small descriptor of patches that needs no weights: the colors of 8 × 8 cells, contrast on a logarithmic scale.

For patches in which little is to be seen but color and where it changes, such as those of satellite images. Plain ones
lie close together, whatever noise is in them; where edges run counts less than for `hkm_dask.embedding.hog`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hkm_dask.embedding.embed import Encoder
from hkm_dask.errors import InputError

CELLS = 8  # cells along a side, each the mean color of its pixels
N_FEATURES = CELLS * CELLS * 3
NOISE = 2.0  # the contrast, in gray levels, from which on its scale is logarithmic
PATTERN_WEIGHT = 1 / 64  # how much a patch's pattern counts beside its mean color


class Cells(Encoder):
    """Images to 192 numbers each: still a little picture, whose strong contrasts are tamed.

    Takes uint8 arrays of shape (height, width, 3) of any size.

    Examples
    --------
    >>> Cells()([np.zeros((16, 16, 3), np.uint8), np.full((20, 30, 3), 255, np.uint8)]).mean(axis=1).tolist()
    [0.0, 1.0]
    """

    name = "cells"
    fingerprint = f"cells-1-{CELLS}-{NOISE}-{PATTERN_WEIGHT}"
    n_features = N_FEATURES

    def prepare(self, items: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Average over cells, and describe; see `describe`."""
        embeddings, _, _ = describe(np.stack([average(item) for item in items]))
        return list(embeddings)

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Put descriptors together."""
        return np.stack(prepared).astype(np.float32)


def average(image: np.ndarray) -> NDArray[np.float64]:
    """Average an image over its cells; pixels on a border count in part to both sides.

    Parameters
    ----------
    image : np.ndarray of uint8, shape (height, width, 3)
        Red, green and blue.

    Returns
    -------
    np.ndarray of float64, shape (CELLS * CELLS, 3)
        In gray levels, 0 to 255.

    Raises
    ------
    InputError
        When it is no such array.

    Examples
    --------
    >>> average(np.arange(12, dtype=np.uint8).reshape(1, 12, 1).repeat(3, axis=2))[:3, 0].round(2).tolist()
    [0.33, 1.67, 3.33]
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"image={image.dtype}{image.shape} should be uint8 (height, width, 3); convert it")
    down, across = (_shares(n) for n in image.shape[:2])
    return np.einsum("ih,hwc,jw->ijc", down, image.astype(np.float64), across, optimize=True).reshape(-1, 3)


def _shares(n: int) -> NDArray[np.float64]:
    """Tell how much each of `n` pixels counts in each cell: (CELLS, n), rows summing to 1."""
    edges = np.arange(CELLS + 1) * (n / CELLS)
    pixels = np.arange(n)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    return overlap.clip(0) * (CELLS / n)


def describe(cells: NDArray[np.float64]) -> tuple[NDArray[np.float16], NDArray[np.float64], NDArray[np.float64]]:
    """Describe patches so that distance means what an eye sees: color first, then the pattern on a logarithmic scale.

    Without the logarithm the strongest edges alone would span the space, and foliage and tiles would lie together.

    Parameters
    ----------
    cells : ndarray of float64, shape (n_patches, CELLS * CELLS, 3)
        The cells of each patch, in gray levels.

    Returns
    -------
    embeddings : ndarray of float16, shape (n_patches, N_FEATURES)
        Still a little picture: the mean color, 0 to 1, plus the deviations from it, compressed.
    color : ndarray of float64, shape (n_patches, 3)
        The mean color, in gray levels.
    contrast : ndarray of float64, shape (n_patches,)
        The root mean square of the deviations, in gray levels.

    Examples
    --------
    >>> embeddings, color, contrast = describe(np.full((1, CELLS * CELLS, 3), 255.0))
    >>> embeddings.shape, float(embeddings.max()), color.tolist(), contrast.tolist()
    ((1, 192), 1.0, [[255.0, 255.0, 255.0]], [0.0])
    """
    color = cells.mean(axis=1)
    pattern = cells - color[:, None]
    contrast = np.sqrt((pattern**2).mean(axis=(1, 2)))
    loudness = PATTERN_WEIGHT * np.log1p(contrast / NOISE)
    pattern *= (loudness / np.maximum(contrast, 1e-9))[:, None, None]
    embeddings = color[:, None] / 255 + pattern
    return embeddings.reshape(len(cells), N_FEATURES).astype(np.float16), color, contrast
