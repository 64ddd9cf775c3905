"""Partition of rows into parts, one per task, and of parts into blocks, each read at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hkm_dask.data.rows import Rows

#: Blocks of a part of mean size if parts differ in size, so that their ends can be near the intended places.
_UNEVEN_BLOCKS = 8


@dataclass(frozen=True)
class Part:
    """A run of blocks processed by one task."""

    rows: Rows  # the table that the rows belong to
    bounds: tuple[int, ...]  # block boundaries, with the first and the last
    budget: int  # bytes of rows, and of cached data about them, that the process may keep
    n_own: int | None = None  # rows of all parts of the process; all rows by default

    @property
    def start(self) -> int:
        """First row."""
        return self.bounds[0]

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.bounds[-1]

    def budget_beside(self, n_bytes: int, budget: int | None = None) -> int:
        """Return what is left of a budget (by default the part's) after reserving `n_bytes` per row of the process."""
        n_own = self.rows.n_rows if self.n_own is None else self.n_own
        return (self.budget if budget is None else budget) - n_bytes * n_own


def split_parts(
    rows: Rows, n_parts: int, *, block_bytes: int, budget: int, cuts: np.ndarray | None = None,
    ends: np.ndarray | None = None, n_own: int | None = None,
) -> list[Part]:  # fmt: skip
    """Cut rows into at most `n_parts` parts of about equal size.

    A block has at most `block_bytes`, but at least one storage chunk; `budget` and `n_own` are those of `Part`. Parts
    begin and end at `cuts` (int64), for tasks that write chunks, or at any block boundary; except where parts meet,
    the blocks are always the same, so that blocks left in memory serve the next pass. `ends`, as shares of the rows,
    gives approximate ends of parts of unequal size.

    >>> from hkm_dask.data.rows import ArrayRows
    >>> parts = split_parts(ArrayRows(np.zeros((10, 2), np.float32)), 3, block_bytes=1 << 20, budget=0)
    >>> [(part.start, part.stop) for part in parts]
    [(0, 3), (3, 6), (6, 10)]
    """
    if ends is None or np.allclose(ends, np.arange(1, n_parts + 1) / n_parts):
        targets, least = rows.n_rows * np.arange(n_parts + 1) // n_parts, n_parts
    else:
        targets, least = np.concatenate([[0], rows.n_rows * ends]).astype(np.int64), _UNEVEN_BLOCKS * n_parts
    bounds = rows.bounds(block_bytes, least)
    # With three blocks for two parts, one part would wait for the other.
    bounds = np.asarray(rows.bounds(block_bytes, -(-(len(bounds) - 1) // least) * least), dtype=np.int64)
    allowed = bounds if cuts is None else cuts
    chosen = np.unique(allowed[_nearest(allowed, targets)])
    return [
        Part(rows, (int(low), *bounds[(bounds > low) & (bounds < high)].tolist(), int(high)), budget, n_own)
        for low, high in itertools.pairwise(chosen)
    ]


def in_rounds(parts: Sequence[Part], cuts: np.ndarray, n_rounds: float) -> Iterator[list[Part]]:
    """Cut each of `parts` into about `n_rounds` pieces, at `cuts` (int64) only, which include the ends of parts.

    Yields the first pieces of all parts, then the second ones, and so on.

    >>> from hkm_dask.data.rows import ArrayRows
    >>> rows, cuts = ArrayRows(np.zeros((10, 2), np.float32)), np.arange(11)
    >>> parts = split_parts(rows, 2, block_bytes=1 << 20, budget=0, cuts=cuts)
    >>> [[(part.start, part.stop) for part in some] for some in in_rounds(parts, cuts, 3)]
    [[(0, 2), (5, 7)], [(2, 4), (7, 9)], [(4, 5), (9, 10)]]
    """
    for some in itertools.zip_longest(*(_cut(part, cuts, n_rounds) for part in parts)):
        yield [piece for piece in some if piece is not None]


def _cut(part: Part, cuts: np.ndarray, n_pieces: float) -> Iterator[Part]:
    own = cuts[(cuts >= part.start) & (cuts <= part.stop)]
    step = max(1, round((len(own) - 1) / max(1.0, n_pieces)))
    for low, high in itertools.pairwise(np.append(own[:-1:step], own[-1]).tolist()):
        yield replace(part, bounds=(low, *(bound for bound in part.bounds if low < bound < high), high))


def _nearest(allowed: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the index of the nearest of `allowed`, sorted, for every target within its range."""
    above = np.searchsorted(allowed, targets)
    below = np.maximum(above - 1, 0)
    return np.where(targets - allowed[below] < allowed[above] - targets, below, above)
