"""Opening a tree on disk, with the `hkm` accessor for queries."""

from __future__ import annotations

import os

import xarray as xr

from hkm_dask.data import layout
from hkm_dask.data.files import read_complete, similar_store
from hkm_dask.data.lazy_arrays import checked_arrays
from hkm_dask.data.objects import location, whole_path, zarr_store
from hkm_dask.errors import StoreError
from hkm_dask.hierarchy.tree.accessor import HkmAccessor
from hkm_dask.untrusted import reading

__all__ = ["HkmAccessor", "open_hierarchy"]


def open_hierarchy(path: str | os.PathLike[str]) -> xr.DataTree:
    """Open a complete tree; arrays are read lazily.

    Parameters
    ----------
    path : path
        Path or URL of a tree made by `build_hierarchy` or ``hkm cluster``.

    Returns
    -------
    xarray.DataTree
        One node per level, ``level_1`` first, with the `hkm` accessor for queries. Chunks are checked when they are
        read; StoreError is raised for one that is missing, altered, or of a tree that has since replaced this one.

    Raises
    ------
    StoreError
        If it is missing, not a tree, incomplete, of another format version, or its metadata was altered.

    Examples
    --------
    >>> open_hierarchy("nowhere.zarr")
    Traceback (most recent call last):
    hkm_dask.errors.StoreError: ...nowhere.zarr is missing; make it with `hkm cluster`
    """
    folder = whole_path(location(path, "tree"))
    if not folder.exists():
        wip = layout.wip_path(folder)
        unfinished = f"{wip.name} is unfinished, run the same `hkm cluster` again"
        other = similar_store(folder, layout.TREE_FORMAT)
        remedy = unfinished if wip.exists() else f"{other}make it with `hkm cluster`"
        raise StoreError(f"{folder} is missing; {remedy}")
    read_complete(folder, layout.TREE_FORMAT)
    with reading(f"{folder} is damaged", layout.remedy(layout.TREE_FORMAT), StoreError):
        tree = xr.open_datatree(zarr_store(folder), engine="zarr", zarr_format=3)
        tree.encoding["source"] = str(folder)
        for level, node in tree.children.items():
            node.dataset = checked_arrays(node.to_dataset(), folder / level)
    return tree
