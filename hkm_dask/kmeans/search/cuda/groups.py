"""Many small searches at once: which lines and which centroids each block of the fused kernel looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows of a tile of the fused kernel.
FUSED_ROWS = 128


@dataclass(frozen=True)
class Groups:
    """Rows and centroids in groups, for many small searches at once."""

    of_rows: Any  # int32 (n_rows,): the group of every row
    lines: NDArray[np.int64]  # (n_groups + 1,): where the rows of each group begin, among those that are looked at
    columns: NDArray[np.int64]  # (n_groups + 1,): where its centroids begin
    numbers: NDArray[np.int32]  # (n_centroids,): what each centroid is called; they rise within a group


def tiles_of(lines: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lines and centroids of each block of the fused kernel; see `nearest_two`."""
    n_tiles = -(-np.diff(lines) // FUSED_ROWS)
    group = np.repeat(np.arange(len(n_tiles)), n_tiles)
    within = np.arange(len(group)) - np.repeat(np.cumsum(n_tiles) - n_tiles, n_tiles)
    first, end = lines[group] + FUSED_ROWS * within, lines[group + 1]
    return np.stack([first, end, columns[group], np.diff(columns)[group]], axis=1)
