"""The pool of the demo: two photographs cut into overlapping patches, with a descriptor of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hkm_dask.embedding.descriptors import CELLS, describe_cells
from hkm_dask.events import emit

PATCH = 16  # side in pixels
PLAIN = 8.0  # contrast, in gray levels of 255, below which a patch is sky, still water or blur
SHARD = 16_384  # patches processed at once: 25 MB in float64, 6 MB in the shard
CREDITS = """\
The photographs are distributed with scikit-learn under the license CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/):
  china.jpg   https://www.flickr.com/photos/danielbuechele/6061409035/
  flower.jpg  https://www.flickr.com/photos/vultilion/6056698931/
"""


def load_photographs() -> dict[str, NDArray[np.uint8]]:
    """Load the two photographs that ship with scikit-learn: a pagoda under a pale sky, a dahlia before dark leaves.

    >>> [(name, pixels.shape) for name, pixels in load_photographs().items()]
    [('china.jpg', (427, 640, 3)), ('flower.jpg', (427, 640, 3))]
    """
    from sklearn.datasets import load_sample_image  # a slow import that only the demo needs

    return {name: load_sample_image(name) for name in ("china.jpg", "flower.jpg")}


def patch_corners(height: int, width: int, *, step: int) -> NDArray[np.int32]:
    """Place patches on a photograph, at the black squares of a checkerboard whose squares measure `step` pixels.

    Returns top and left of every patch that fits, shape (n_patches, 2), in reading order.

    >>> patch_corners(17, 19, step=1).tolist()
    [[0, 0], [0, 2], [1, 1], [1, 3]]
    """
    top, left = np.mgrid[0 : height - PATCH + 1 : step, 0 : width - PATCH + 1 : step].astype(np.int32)
    black = (top // step + left // step) % 2 == 0
    return np.stack([top[black], left[black]], axis=1)


def cell_means(pixels: NDArray[np.uint8], corners: NDArray[np.int32]) -> NDArray[np.float64]:
    """Average a photograph, shape (height, width, 3), over the cells of the patches with top and left at `corners`.

    Returns gray levels, 0 to 255, shape (n_patches, CELLS * CELLS, 3).
    """
    side = PATCH // CELLS
    # Sums over all squares of `side` pixels from two cumulative sums, exact because they are integers.
    sums = np.pad(pixels.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))
    squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    offsets = np.arange(CELLS) * side
    rows = corners[:, 0, None, None] + offsets[:, None]
    columns = corners[:, 1, None, None] + offsets
    return squares[rows, columns].reshape(len(corners), CELLS * CELLS, 3) / side**2


@dataclass(frozen=True)
class Patches:
    """The rows of the demo's pool: patches of photographs, one photograph after another."""

    photographs: Mapping[str, NDArray[np.uint8]]  # (height, width, 3), by file name
    photograph: NDArray[np.int64]  # (n_patches,): number of the photograph of each patch
    corners: NDArray[np.int32]  # (n_patches, 2): top and left of each patch, in pixels
    color: NDArray[np.float32]  # (n_patches, 3): mean color of each patch, in gray levels
    #: (n_patches,): root mean square deviation from that color, in gray levels.
    contrast: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.corners)

    def crops(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Cut the patches of some rows out of their photographs; returns an array of shape (n, PATCH, PATCH, 3)."""
        window = np.arange(PATCH)
        crops = np.empty((len(rows), PATCH, PATCH, 3), np.uint8)
        for number, pixels in enumerate(self.photographs.values()):
            inside = self.photograph[rows] == number
            top, left = self.corners[rows[inside]].T
            crops[inside] = pixels[top[:, None, None] + window[:, None], left[:, None, None] + window]
        return crops


def cut_patches(photographs: Mapping[str, NDArray[np.uint8]], shards: Path, *, step: int) -> Patches:
    """Cut photographs into patches and write their embeddings as shards, in the layout of clip-retrieval.

    The folder `shards` gets ``img_emb/img_emb_0.npy`` and so on, each float16 of shape (up to SHARD, 192), and
    ``metadata/metadata_0.parquet`` and so on with a column ``id``, like ``china.jpg[16x16+340+120]``: the photograph,
    and the patch's width, height, left and top in pixels. Patches are in the order of their rows, at distances given
    by `step`; see `patch_corners`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     patches = cut_patches(load_photographs(), Path(folder), step=40)
    ...     shards = [np.load(path).shape for path in sorted(Path(folder).glob("img_emb/*.npy"))]
    >>> len(patches), shards
    (176, [(88, 192), (88, 192)])
    """
    grids = {name: patch_corners(*pixels.shape[:2], step=step) for name, pixels in photographs.items()}
    jobs = [(name, grid[low : low + SHARD]) for name, grid in grids.items() for low in range(0, len(grid), SHARD)]
    for folder in ("img_emb", "metadata"):
        (shards / folder).mkdir(exist_ok=True)
    colors, contrasts = [], []
    for shard, (name, corners) in enumerate(jobs):
        embeddings, color, contrast = describe_cells(cell_means(photographs[name], corners))
        np.save(shards / "img_emb" / f"img_emb_{shard}.npy", embeddings)
        ids = [f"{name}[{PATCH}x{PATCH}+{left}+{top}]" for top, left in corners.tolist()]
        pq.write_table(pa.table({"id": ids}), shards / "metadata" / f"metadata_{shard}.parquet")
        colors.append(color)
        contrasts.append(contrast)
        emit("progress", stage="cut", done=shard + 1, total=len(jobs))
    return Patches(
        photographs,
        photograph=np.repeat(np.arange(len(grids)), [len(grid) for grid in grids.values()]),
        corners=np.concatenate(list(grids.values())),
        color=np.concatenate(colors).astype(np.float32),
        contrast=np.concatenate(contrasts).astype(np.float32),
    )
