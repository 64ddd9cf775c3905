"""Export of everything known about the rows of a pool, a tree or an assignment, as one parquet file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr

from hkm_dask.compute.matmul import matmul
from hkm_dask.data import chunks, files, layout
from hkm_dask.data.objects import Location, location
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.hierarchy.assignment import DISTANCE, open_assignment
from hkm_dask.hierarchy.sampling.export import (
    BLOCK_ROWS,
    Columns,
    check_target,
    row_columns,
    stored_array,
    write_table,
)
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.pools import pool_of_tree
from hkm_dask.hierarchy.tree.tree import open_hierarchy

STAGE = "export"
# Bytes of embeddings read at once, for a projection or a column.
_BLOCK_BYTES = 64 * layout.MIB
_OWN = ("x", "y", "vector")


def export(
    store: str | os.PathLike[str] | xr.DataTree,
    out: str | os.PathLike[str],
    *,
    embeddings: bool = False,
    xy: bool = False,
    pool: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Location:
    """Write everything known about each row to a parquet file, for tools that read tables.

    The columns are those of a subset, see `write_subset`: ``row``, ``id``, the pool's columns, and for a tree or an
    assignment ``level_1``, ``level_2``, ... and ``distance``. The file is written block by block, and appears only when
    it is complete.

    Parameters
    ----------
    store : path or xarray.DataTree
        A pool, a tree on disk, or an assignment.
    out : path
        The ``.parquet`` file to write; it must not exist unless `overwrite` is true.
    embeddings : bool, default False
        Include a column ``vector`` of float32, shape (n_features,).
    xy : bool, default False
        Include columns ``x`` and ``y`` (float32): the first two principal components of all rows, for a scatter plot.
        Requires one more pass over the embeddings, with n_features² multiplications per row, and n_features² float64
        values of memory.
    pool : path, optional
        Current path of the pool of a tree or an assignment.
    overwrite : bool, default False
        Replace an existing file once the new one is complete.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        If the file, the store or the name of a column is invalid; all problems are reported before any work is done.
    StoreError
        If the store or its pool cannot be read, or the disk is full.

    Examples
    --------
    >>> import tempfile, numpy as np, pyarrow.parquet as pq
    >>> from hkm_dask import ingest
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pool = ingest(np.eye(3), f"{folder}/pool.zarr", ids=["a", "b", "c"])
    ...     pq.read_table(export(pool.path, f"{folder}/rows.parquet", embeddings=True)).column_names
    ['row', 'id', 'vector']
    """
    target = check_target(out, (".parquet",), overwrite=overwrite)
    table = _Table.open(store, embeddings, pool)
    if embeddings or xy:
        taken = ", ".join(name for name in _OWN if name in table.vectors().columns)
        if taken:
            raise InputError(f"the pool has columns {taken} of its own; rename them, or export without vectors")
    if xy:
        table = replace(table, projection=principal_axes(table.vectors()))
    files.write_whole(target, lambda partial: write_table(partial, table.blocks()), new=not overwrite)
    return target


@dataclass(frozen=True)
class _Table:
    """The sources of the columns."""

    n_rows: int
    pool: Pool | None
    tree: TreeArrays | None
    embeddings: bool
    assigned: Mapping[str, chunks.StoredArray] = field(default_factory=dict)
    projection: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def open(
        cls, store: str | os.PathLike[str] | xr.DataTree, embeddings: bool, place: str | os.PathLike[str] | None
    ) -> _Table:
        if not isinstance(store, xr.DataTree):
            path = location(store, "store")
            if files.stored_format(path) == layout.POOL_FORMAT:
                pool = open_pool(path)
                return cls(pool.n_samples, pool, None, embeddings)
            if files.stored_format(path) == layout.ASSIGNMENT_FORMAT:
                found = open_assignment(path)
                n_levels = sum(str(name).startswith("level_") for name in found.data_vars)
                names = [*(f"level_{level}" for level in range(1, n_levels + 1)), DISTANCE]
                assigned = {name: chunks.open_array(path / name) for name in names}
                known = pool_of_tree(found.attrs, path=place)
                return cls(found.sizes[layout.SAMPLE], known, None, embeddings, assigned)
            store = open_hierarchy(path)
        tree = TreeArrays(store)
        return cls(stored_array(tree, "labels").spec.shape[0], pool_of_tree(store.attrs, path=place), tree, embeddings)

    def vectors(self) -> Pool:
        """The pool from which embeddings are read."""
        if self.pool is None:
            raise InputError("the store is of an array, whose rows it does not have; make a pool of that first")
        return self.pool

    def blocks(self) -> Iterator[Columns]:
        """Yield the columns of all rows, block by block."""
        step, with_vectors = BLOCK_ROWS, self.embeddings or self.projection is not None
        if with_vectors:
            step = max(1, min(step, _BLOCK_BYTES // (4 * self.vectors().n_features)))
        for start in range(0, self.n_rows, step):
            stop = min(start + step, self.n_rows)
            columns = row_columns(np.arange(start, stop), self.pool, self.tree)
            columns |= {name: array.read(start, stop) for name, array in self.assigned.items()}
            if with_vectors:
                rows = self.vectors().rows().read(start, stop).astype(np.float32, copy=False)
                if self.projection is not None:
                    mean, axes = self.projection
                    columns["x"], columns["y"] = matmul(rows - mean, axes).T
                if self.embeddings:
                    columns["vector"] = rows
            yield columns
            emit("progress", stage=STAGE, done=stop, total=self.n_rows)


def principal_axes(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean (n_features,) of a pool's rows and their first two principal axes (n_features, 2), in one pass.

    Both are float32. Axes have length 1, and their largest coordinate is positive; the second is zero if there is only
    one feature.
    """
    rows, n_features = pool.rows(), pool.n_features
    products, total = np.zeros((n_features, n_features)), np.zeros(n_features)
    bounds = rows.bounds(_BLOCK_BYTES)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        centered = rows.read(start, stop).astype(np.float32) - pool.mean
        products += matmul(centered.T, centered)
        total += centered.sum(axis=0, dtype=np.float64)
        emit("progress", stage="principal axes", done=stop, total=rows.n_rows, then="writing")
    covariance = products / rows.n_rows - np.outer(total, total) / rows.n_rows**2
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :2]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    axes = np.zeros((n_features, 2), np.float32)
    axes[:, : vectors.shape[1]] = vectors
    return (pool.mean + total / rows.n_rows).astype(np.float32), axes
