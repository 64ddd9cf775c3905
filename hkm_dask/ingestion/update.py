"""Addition of new samples to a pool and its tree, without clustering again."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.data import layout, store
from hkm_dask.data.files import read_attributes, remove, stored_format
from hkm_dask.data.grow_pool import MAKE_A_POOL, check_fits, grow
from hkm_dask.data.locks import lock
from hkm_dask.data.objects import Location, location
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.hierarchy.update import check_memory, write_updated
from hkm_dask.ingestion.ingest import ingest, ingest_unknown

if TYPE_CHECKING:
    from distributed import Client

#: Warn if new samples are this many times as far from their centroids as the other samples.
_FAR = 1.5


def update(
    tree: str | os.PathLike[str],
    pool: str | os.PathLike[str],
    *new: Any,
    ids: Any = None,
    ids_file: str | os.PathLike[str] | None = None,
    column: str | None = None,
    skip_known: bool = False,
    client: Client | None = None,
    memory_limit: int | str | None = None,
) -> xr.DataTree:
    """Add new samples to a pool and its tree, in place, without clustering again.

    The new rows are appended to those of the pool, so that row numbers and existing subsets stay valid. Each is
    assigned to the nearest of all level-1 centroids. Centroids and the clusters of clusters do not change; labels,
    members, sizes and distances cover all rows afterwards. Both old stores remain until the new ones are complete;
    unchanged parts of the pool are linked, not copied. After an interruption, the same call resumes.

    Parameters
    ----------
    tree, pool : path
        A tree and the pool it was built from.
    *new : path, Pool or array
        New samples, in this order: pools, or sources that `ingest` accepts, of which the columns that the pool has are
        kept. None if the pool has already grown, by an update of another tree, or only its path has changed.
    ids, ids_file, column : optional
        For sources that are not pools, as in `ingest`: the name of their ids, or the ids themselves; a file of ids and
        further columns; the name of their embeddings.
    skip_known : bool, default False
        Leave out rows of sources that are not pools if their id is in the pool already, whatever their embedding. By
        default, such rows are an error.
    client : distributed.Client, optional
        Where to run; by default distributed's current client if there is one, otherwise threads of this process.
    memory_limit : int or str, optional
        Most bytes that this process may use when it runs on threads.

    Returns
    -------
    xarray.DataTree
        The tree, as returned by `open_hierarchy`.

    Raises
    ------
    InputError
        If the tree was built from another pool; or if new samples have another number of features, lack ids or columns
        that the pool has, or have an id that is already in the pool.
    ComputeError
        If the samples do not fit in `memory_limit` or in a worker's memory; names the limit that suffices.
    StoreError
        If a store is damaged, another process is writing it, or the disk is full.

    Examples
    --------
    >>> import tempfile, numpy as np, hkm_dask as hkm
    >>> x = np.float32([[0], [1], [10], [11], [100], [101]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pool = hkm.ingest(x, f"{folder}/pool.zarr")
    ...     _ = hkm.build_hierarchy(pool, f"{folder}/tree.zarr", hkm.Config.from_flags((3, 2), n_resamples=0))
    ...     tree = hkm.update(f"{folder}/tree.zarr", pool.path, np.float32([[9], [102]]))
    ...     tree.hkm.n_samples, tree.hkm.path(7) == tree.hkm.path(5)
    (8, True)
    """
    target, home = location(tree, "tree").absolute(), location(pool, "pool").absolute()
    options = {"ids": ids, "ids_file": ids_file, "column": column, "skip_known": skip_known or None}
    work = layout.work_path(target) / "update"
    with lock(target), lock(home):
        for path in (target, home):
            store.settle(path)
        opened, grown = open_hierarchy(target), open_pool(home)
        _check_unfinished(target)
        n_before = grown.n_known_as(str(opened.attrs.get("pool_fingerprint", "")))
        if n_before is None or n_before != opened.hkm.n_samples:
            made = opened.attrs.get("pool") or "an array"
            fact = f"but was built from {made}; give that pool"
            if made == str(home):
                fact = "but the content of that pool has changed; put the old one back, or build the tree again"
            raise InputError(f"{target} should be a tree of {home}, {fact}")
        with _pools(new, home, grown, options, may_join=n_before == grown.n_samples) as added:
            if _has_joined(added, grown):
                added = []
                emit("resumed", what="these samples are already in the pool")
            elif added and n_before < grown.n_samples:
                n = grown.n_samples - n_before
                rest = f"{n:,} samples of {home} that it lacks; run `hkm update {tree} {pool}` first"
                raise InputError(f"{target} should know all of its pool before more join, there are {rest}")
            if added or n_before < grown.n_samples:
                with runner_for(client, memory_limit) as runner:
                    n_added = grown.n_samples - n_before + sum(one.n_samples for one in added)
                    check_memory(opened, grown, n_added, runner)
                _check(added, grown, opened)
                if added and any(_fingerprints(added) == before for *_, before in grown.history):
                    emit(
                        "warning",
                        message="samples with the same embeddings were added before: they are in the pool twice",
                    )
                times_as_far = _write(opened, grown, added, n_before, work, client=client, memory_limit=memory_limit)
                if times_as_far > _FAR:
                    fact = f"the new samples lie {times_as_far:.2g} times as far from their centroids as the others"
                    changed = "the clusters may no longer fit; `hkm cluster` makes new ones"
                    emit("warning", message=f"{fact}: {changed}")
        if read_attributes(target).get("pool") != str(home):  # which a new tree has
            store.mark_complete(target, {"pool": str(home)})
            emit("note", message=f"{target} finds its pool at {home} from now on")
        remove(work.parent)
    return open_hierarchy(target)


def _write(
    tree: xr.DataTree, pool: Pool, added: Sequence[Pool], n_before: int, work: Location, *, client: Client | None,
    memory_limit: int | str | None,
) -> float:  # fmt: skip
    """Write both stores, then put the pool in place before the tree, since a pool recognizes trees of its past states.

    Returns how many times as far from their centroids the new samples are as the others.
    """
    with store.staged(str(tree.encoding["source"]), overwrite=True, keep=False) as folder, ExitStack() as stack:
        grown = pool
        if added:
            wip = stack.enter_context(store.staged(pool.path, overwrite=True, keep=False))
            grow(pool, added, wip)
            grown = open_pool(wip)
        return write_updated(
            tree, grown, n_before, folder, work, pool_path=pool.path, client=client, memory_limit=memory_limit
        )


def _check(added: Sequence[Pool], pool: Pool, tree: xr.DataTree) -> None:
    check_fits(pool, added)
    n_zero = sum(one.n_zero_rows for one in added)
    if tree.attrs["metric"] == "cosine" and n_zero:
        raise InputError(f"n_zero_rows={n_zero} of the new samples should be 0 for metric='cosine'; leave them out")


def _has_joined(added: Sequence[Pool], pool: Pool) -> bool:
    """Return whether these samples are the last addition: the same rows and, if the pool has ids, the same ids."""
    if not (added and pool.history) or pool.history[-1][2] != _fingerprints(added):
        return False
    if not pool.has_ids or not all(one.has_ids for one in added):
        return True
    first = pool.n_samples - sum(one.n_samples for one in added)
    for one in added:
        for low in range(0, one.n_samples, layout.MAX_ID_CHUNK_ROWS):
            high = min(low + layout.MAX_ID_CHUNK_ROWS, one.n_samples)
            there = pool.column_piece(layout.IDS, first + low, first + high)
            if not np.array_equal(one.column_piece(layout.IDS, low, high), there):
                return False
        first += one.n_samples
    return True


def _fingerprints(pools: Sequence[Pool]) -> tuple[str, ...]:
    return tuple(one.fingerprint for one in pools)


def _check_unfinished(target: Location) -> None:
    """Raise InputError if an interrupted ``hkm cluster --restart`` is still to be resumed."""
    wip = layout.wip_path(target)
    if stored_format(wip) == layout.TREE_FORMAT and "updates" not in read_attributes(wip):
        raise InputError(
            f"{wip} should not exist: it is an unfinished tree; finish it with `hkm cluster`, or remove it"
        )


@contextmanager
def _pools(
    new: Sequence[Any], home: Location, pool: Pool, options: Mapping[str, Any], *, may_join: bool
) -> Iterator[list[Pool]]:
    """Yield the new samples as pools; adjacent sources that are not pools become a temporary one beside the pool."""
    folder = layout.work_path(home)
    remove(folder)
    given = [name for name, value in options.items() if value is not None]
    if given and all(map(_is_pool, new)):
        raise InputError(
            f"{' and '.join(given)} should be of new samples that are no pools, and there are none; leave it out"
        )
    try:
        opened = list[Pool]()
        for is_pool, group in itertools.groupby(new, _is_pool):
            some = list(group)
            if is_pool:
                opened += [one if isinstance(one, Pool) else open_pool(one) for one in some]
                continue
            if may_join or options["skip_known"]:
                _check_ids(some, pool, options)
            keep = pool.columns if may_join else ()
            made = _made(some, folder / f"new-{len(opened)}.zarr", home, pool, **options, keep=keep)
            opened += [] if made is None else [made]
        yield opened
    finally:
        remove(folder)


def _is_pool(new: Any) -> bool:
    if isinstance(new, str | os.PathLike):
        return stored_format(location(new)) == layout.POOL_FORMAT
    return isinstance(new, Pool)


def _made(
    new: list[Any], target: Location, home: Location, pool: Pool, *, skip_known: bool | None, **options: Any
) -> Pool | None:
    """Make a pool of new samples that are not in one, None if the pool has all of them and they are to be skipped.

    Raises InputError if they lack columns that the pool has.
    """
    options |= {"dtype": pool.dtype, "normalize": bool(read_attributes(home).get("normalized"))}
    try:
        return ingest_unknown(new, target, pool, **options) if skip_known else ingest(new, target, **options)
    except InputError as error:
        if not any(problem.startswith("keep=") for problem in error.problems):
            raise
        fact = f"{_names(new)} should have the columns {', '.join(pool.columns)}, as {pool.path} has"
        remedy = f"give them in the table of ids_file (--ids-file), or {MAKE_A_POOL}"
        raise InputError(f"{fact}; {remedy}") from error


def _check_ids(new: list[Any], pool: Pool, options: Mapping[str, Any]) -> None:
    """Raise InputError for new samples without ids if the pool has ids; missing sources are reported later.

    Also if known samples are to be skipped and the pool has no ids to know them by.
    """
    if options["skip_known"] and not pool.has_ids:
        raise InputError(f"skip_known=True should be for a pool with ids, but {pool.path} has none; leave it out")
    there = all(not isinstance(one, str | os.PathLike) or location(one).exists() for one in new)
    if pool.has_ids and options["ids"] is None and options["ids_file"] is None and there:
        remedy = "name their column with ids (--ids), or a file that has them with ids_file (--ids-file)"
        raise InputError(f"{_names(new)} should have ids, as {pool.path} has; {remedy}")


def _names(new: Sequence[Any]) -> str:
    return ", ".join(os.fspath(one) if isinstance(one, str | os.PathLike) else "what is new" for one in new)
