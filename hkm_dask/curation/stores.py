"""Stores that curation works on: a pool, a tree together with its pool, or plain rows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.config import Config
from hkm_dask.data import layout
from hkm_dask.data.chunks import check_rows
from hkm_dask.data.files import stored_format
from hkm_dask.data.objects import location
from hkm_dask.data.pool import Pool
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import Rows
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.hierarchy.sampling.subset_files import read_rows
from hkm_dask.hierarchy.source import open_source
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.pools import pool_of_tree
from hkm_dask.hierarchy.tree.tree import open_hierarchy


@dataclass(frozen=True)
class CuratedStore:
    """Rows, with their pool and the tree over them if there are any."""

    rows: Rows  # all rows, including those that the tree leaves out
    pool: Pool | None  # the pool of the rows, if there is one
    arrays: TreeArrays | None

    def clustered(self) -> NDArray[np.int64] | None:
        """Return the numbers of the rows in the tree; None for all rows."""
        if self.arrays is None:
            return None
        left = np.flatnonzero(self.arrays.read(1, "labels") >= 0)
        return None if len(left) == self.rows.n_rows else left

    def chosen(self, subset: Any) -> NDArray[np.int64]:
        """Return the sorted, unique row numbers of a subset: an array, or a file that `read_rows` accepts."""
        if isinstance(subset, str | os.PathLike):
            rows, where = read_rows(subset, self.rows.n_rows, pool=self.pool), f" of {subset}"
        else:
            rows, where = check_rows(np.sort(np.asarray(subset)), self.rows.n_rows), ""
        once = np.unique(rows)
        if len(once) < len(rows):
            repeats = f"{len(rows) - len(once):,} of the {len(rows):,} rows{where} are repeats"
            emit("warning", message=f"{repeats}: each row is used once")
        return once

    def some(self, index: NDArray[np.int64] | None) -> tuple[Rows, Rows]:
        """Return the rows with the sorted numbers `index`, or all rows, as stored and scaled to unit length."""
        if index is None:
            return self.rows, UnitRows(self.rows)
        return SubsetRows(self.rows, index), SubsetRows(UnitRows(self.rows), index)

    def check_unchanged(self) -> None:
        """Raise StoreError if the pool has been replaced since it was opened."""
        if self.pool is not None:
            self.pool.check_unchanged()


def open_store(store: Any, pool: Any = None) -> CuratedStore:
    """Open a pool, a tree with its pool, which may have moved to `pool`, or rows that `as_rows` accepts.

    Raises InputError for rows with NaN or Inf and for a tree built from an array; StoreError if the store, or the pool
    of a tree, is missing, damaged or has been replaced.
    """
    if isinstance(store, str | os.PathLike) and stored_format(location(store)) == layout.TREE_FORMAT:
        store = open_hierarchy(store)
    if isinstance(store, xr.DataTree):
        place = pool.path if isinstance(pool, Pool) else pool
        known = pool_of_tree(store.attrs, ", or make the tree again", place)
        if known is None:
            raise InputError("the tree was built from an array, not from a pool; ingest the array and cluster the pool")
        return CuratedStore(known.rows(), known, TreeArrays(store))
    source = open_source(store, Config.from_flags((1,)))
    return CuratedStore(source.rows, source.pool, None)
