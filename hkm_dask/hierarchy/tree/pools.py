"""The pool of a tree: whether it is where it was, and whether it is still the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hkm_dask.data import layout
from hkm_dask.data.files import similar_store
from hkm_dask.data.objects import location
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.errors import StoreError
from hkm_dask.events import emit


def pool_is_gone(attributes: Mapping[Any, Any]) -> bool:
    """Tell whether the pool of a tree is missing from its recorded path."""
    return bool(attributes.get("pool")) and not location(attributes["pool"]).exists()


def tell_of_another_pool(attributes: Mapping[Any, Any]) -> None:
    """Warn if the pool at the recorded path is not the one of the tree, so row numbers do not refer to it."""
    where, wanted = attributes.get("pool"), str(attributes.get("pool_fingerprint", ""))
    with suppress(StoreError):  # it may be missing
        if where and wanted and open_pool(where).n_known_as(wanted) is None:
            fact = f"pool={str(where)!r} is not the one the tree was built from, its content differs"
            emit("warning", message=f"{fact}; rows that are drawn are numbers of that one, put it back")


def pool_of_tree(
    attributes: Mapping[Any, Any], otherwise: str = "", path: str | os.PathLike[str] | None = None
) -> Pool | None:
    """Open the pool of a tree, at its recorded location or at `path`; None if the tree was built from an array.

    If the pool has grown since, only the rows known to the tree are returned, with a warning. Raises StoreError if it
    is a different pool, as its rows would be wrong.
    """
    where = path or attributes.get("pool")
    if not where:
        return None
    if path is None and pool_is_gone(attributes):
        other = similar_store(location(where), layout.POOL_FORMAT)
        raise StoreError(f"{where} is missing; {other}pool (--pool) says where it is now{otherwise}")
    pool = open_pool(where)
    wanted = attributes.get("pool_fingerprint")
    n_known = pool.n_known_as(str(wanted)) if wanted else pool.n_samples
    if n_known is None:
        raise StoreError(
            f"pool={str(where)!r} should be the one the tree was built from, but its content differs; "
            f"{'give that one' if path else 'put that pool back'}{otherwise}"
        )
    if n_known < pool.n_samples:
        fact = f"the tree knows {n_known:,} of the {pool.n_samples:,} rows of {where}"
        emit("warning", message=f"{fact}; `hkm update TREE {where}` adds the others")
    return pool.head(n_known)
