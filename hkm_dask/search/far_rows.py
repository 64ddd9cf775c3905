"""Rows with values beyond a limit, found in one pass and named in messages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import iter_blocks
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import Rows
from hkm_dask.errors import N_NAMED, first_few


@dataclass(frozen=True)
class RowsBeyond:
    """Rows with values beyond a limit: the first few row numbers, their count, and the largest value of any row."""

    first: NDArray[np.int64]
    n_rows: int
    largest: float

    def __add__(self, other: RowsBeyond) -> RowsBeyond:
        first = np.sort(np.concatenate([self.first, other.first]))[:N_NAMED]
        return RowsBeyond(first, self.n_rows + other.n_rows, max(self.largest, other.largest))

    def names(self, rows: Rows) -> str:
        """Return their names for messages: the row numbers in the table that a subset was taken from."""
        first, label = self.first, rows.label
        if isinstance(rows, SubsetRows):
            first, label = rows.index[first], rows.base.label
        if self.n_rows == 1:
            return f"row {first[0]} of {label}"
        return f"{self.n_rows} rows ({first_few(first, self.n_rows)}) of {label}"


def _find_beyond(limit: float, origin: NDArray[np.float32] | None, part: Part) -> RowsBeyond:
    """Task: find rows with a value at least `limit` from the origin, or NaN."""
    found = RowsBeyond(np.empty(0, np.int64), 0, 0.0)
    for start, block in iter_blocks(part):
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.asarray(block, dtype=np.float32)
            values = np.abs(values if origin is None else values - origin).max(axis=1, initial=0.0)
        beyond = np.flatnonzero(~(values < limit))
        found += RowsBeyond(start + beyond[:N_NAMED], len(beyond), float(values.max(initial=0.0)))
    return found


def rows_beyond(rows: Rows, runner: Runner, limit: float, *, origin: NDArray[np.float32] | None = None) -> RowsBeyond:
    """Find rows with a value at least `limit` from the origin, in one pass."""
    found: RowsBeyond = runner.map_reduce(
        partial(_find_beyond, limit, origin), runner.split(rows, 1), combine=RowsBeyond.__add__, stage="measure"
    )
    return found
