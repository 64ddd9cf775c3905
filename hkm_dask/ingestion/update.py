"""New samples join a pool and its tree, without clustering anew."""

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
from hkm_dask.ingestion.ingest import ingest

if TYPE_CHECKING:
    from distributed import Client

#: New samples that lie so many times as far from their centroids as the others are told of.
_FAR = 1.5


def update(
    tree: str | os.PathLike[str],
    pool: str | os.PathLike[str],
    *new: Any,
    ids: Any = None,
    ids_file: str | os.PathLike[str] | None = None,
    column: str | None = None,
    client: Client | None = None,
    memory_limit: int | str | None = None,
) -> xr.DataTree:
    """Let new samples join a pool and its tree, in place: nothing is clustered anew.

    The new rows lie below those of the pool, so that row numbers, and subsets drawn before, stay valid. Each goes to
    the nearest of all level-1 centroids. Centroids, and the clusters of clusters, stay what they are; labels, members,
    sizes and distances are those of all rows. Both stores are there all the time, the old ones until the new ones are
    complete; what did not change of the pool is linked, not copied. Interrupted, the same call continues.

    Parameters
    ----------
    tree, pool : path
        A tree and the pool it was made of.
    *new : path, Pool or array
        New samples, in this order: pools, or what `ingest` takes, whose columns are taken where the pool has such. None
        where the pool has grown already, by the update of another tree.
    ids, ids_file, column : optional
        Of those that are no pools, as `ingest` takes them: the name of their ids, or the ids themselves; a file of ids,
        whose further columns are taken; the name of their embeddings.
    client : distributed.Client, optional
        Where to run; by default distributed's current client, else threads of this process.
    memory_limit : int or str, optional
        Bytes this process may hold, when it runs on threads.

    Returns
    -------
    xarray.DataTree
        The tree, as `open_hierarchy` gives it.

    Raises
    ------
    InputError
        The tree is of another pool; or new samples have another width, lack ids or columns that the pool has, or have
        an id that it has already.
    ComputeError
        They are more than `memory_limit`, or a worker, has room for; it names the limit that suffices.
    StoreError
        A store is damaged, another process is writing it, or the disk is full.

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
    options = {"ids": ids, "ids_file": ids_file, "column": column}
    work = layout.work_path(target) / "update"
    with lock(target), lock(home):
        for path in (target, home):
            store.settle(path)
        opened, grown = open_hierarchy(target), open_pool(home)
        _check_unfinished(target)
        n_before = grown.n_known_as(str(opened.attrs.get("pool_fingerprint", "")))
        if n_before is None or n_before != opened.hkm.n_samples:
            made = opened.attrs.get("pool") or "an array"
            fact = f"it was made of {made}; give the pool it is of"
            if made == str(home):
                fact = "whose content is another now; put that pool back, or make the tree again"
            raise InputError(f"{target} should be a tree of {home}, {fact}")
        with _pools(new, home, grown, options, may_join=n_before == grown.n_samples) as added:
            if _has_joined(added, grown):
                added = []
                emit("resumed", what="these samples are in the pool already")
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
                    emit("warning", message="samples of the same embeddings have joined before: they are there twice")
                times_as_far = _write(opened, grown, added, n_before, work, client=client, memory_limit=memory_limit)
                if times_as_far > _FAR:
                    fact = f"the new samples lie {times_as_far:.2g} times as far from their centroids as the others"
                    changed = "the clusters may no longer be theirs; `hkm cluster` makes new ones"
                    emit("warning", message=f"{fact}: {changed}")
        remove(work.parent)
    return open_hierarchy(target)


def _write(
    tree: xr.DataTree, pool: Pool, added: Sequence[Pool], n_before: int, work: Location, *, client: Client | None,
    memory_limit: int | str | None,
) -> float:  # fmt: skip
    """Write both stores, then put first the pool in place, then the tree: a pool knows the trees of what it was.

    Gives how many times as far as the others the new samples lie from their centroids.
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
    """Tell whether these samples are what joined last: the same rows and, where the pool has ids, under the same."""
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
    """Refuse to begin where an interrupted ``hkm cluster --restart`` waits to be continued."""
    wip = layout.wip_path(target)
    if stored_format(wip) == layout.TREE_FORMAT and "updates" not in read_attributes(wip):
        raise InputError(f"{wip} should not be there, it is an unfinished tree; finish its `hkm cluster`, or remove it")


@contextmanager
def _pools(
    new: Sequence[Any], home: Location, pool: Pool, options: Mapping[str, Any], *, may_join: bool
) -> Iterator[list[Pool]]:
    """The new samples as pools: those in a row that are none become one, beside the pool, until the context closes."""
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
            if may_join:
                _check_ids(some, pool, options)
            keep = pool.columns if may_join else ()
            opened.append(_made(some, folder / f"new-{len(opened)}.zarr", home, pool, {**options, "keep": keep}))
        yield opened
    finally:
        remove(folder)


def _is_pool(new: Any) -> bool:
    if isinstance(new, str | os.PathLike):
        return stored_format(location(new)) == layout.POOL_FORMAT
    return isinstance(new, Pool)


def _made(new: list[Any], target: Location, home: Location, pool: Pool, options: Mapping[str, Any]) -> Pool:
    """Make a pool of rows that are in none; InputError where they lack columns that the pool has."""
    normalize = bool(read_attributes(home).get("normalized"))
    try:
        return ingest(new, target, dtype=pool.dtype, normalize=normalize, **options)
    except InputError as error:
        if not any(problem.startswith("keep=") for problem in error.problems):
            raise
        fact = f"{_names(new)} should have the columns {', '.join(pool.columns)}, as {pool.path} has"
        remedy = f"give them in the table of ids_file (--ids-file), or {MAKE_A_POOL}"
        raise InputError(f"{fact}; {remedy}") from error


def _check_ids(new: list[Any], pool: Pool, options: Mapping[str, Any]) -> None:
    """Refuse rows without ids where the pool has some, before they are read; what is not there is refused by then."""
    there = all(not isinstance(one, str | os.PathLike) or location(one).exists() for one in new)
    if pool.has_ids and options["ids"] is None and options["ids_file"] is None and there:
        remedy = "name their column with ids (--ids), or a file that has them with ids_file (--ids-file)"
        raise InputError(f"{_names(new)} should have ids, as {pool.path} has; {remedy}")


def _names(new: Sequence[Any]) -> str:
    return ", ".join(os.fspath(one) if isinstance(one, str | os.PathLike) else "what is new" for one in new)
