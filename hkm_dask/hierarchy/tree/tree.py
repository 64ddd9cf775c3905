"""Opening a tree on disk, with the `hkm` accessor for queries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xarray as xr

from hkm_dask.data import layout
from hkm_dask.data.files import read_complete, similar_store
from hkm_dask.data.lazy_arrays import checked_arrays
from hkm_dask.data.objects import Location, location, whole_path, zarr_store
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import StoreError
from hkm_dask.hierarchy.tree.accessor import HkmAccessor
from hkm_dask.untrusted import reading

__all__ = ["HkmAccessor", "open_hierarchy"]


def open_hierarchy(path: str | os.PathLike[str], *, pool: str | os.PathLike[str] | None = None) -> xr.DataTree:
    """Open a complete tree; arrays are read lazily.

    Parameters
    ----------
    path : path
        Path or URL of a tree made by `build_hierarchy` or ``hkm cluster``.
    pool : path, optional
        Current path of the tree's pool, which is read for ids, columns and embeddings. By default its recorded path; if
        the pool is not there, a pool of the same name beside the tree, as both may have been moved.

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
        if (place := _place_of_pool(folder, tree.attrs, pool)) is not None:
            tree.attrs["pool"] = place
        for level, node in tree.children.items():
            node.dataset = checked_arrays(node.to_dataset(), folder / level)
    return tree


def _place_of_pool(folder: Location, attributes: Mapping[Any, Any], given: str | os.PathLike[str] | None) -> str | None:
    """Where the pool of a tree lies, if that is not where it was; whoever reads of it looks at its fingerprint."""
    if given is not None:
        return str(whole_path(location(given, "pool")))
    was = location(attributes["pool"]) if attributes.get("pool") else None
    if not (isinstance(folder, Path) and isinstance(was, Path)) or was.exists():
        return None
    beside = folder.with_name(was.name)
    with suppress(StoreError):
        if open_pool(beside).n_known_as(str(attributes.get("pool_fingerprint"))) is not None:
            return str(beside)
    return None
