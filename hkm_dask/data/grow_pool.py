"""Growing a pool: the rows of other pools are appended to its own, whose chunks are linked, not copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data import layout, pool_writer
from hkm_dask.data.ahead import in_order
from hkm_dask.data.chunks import StoredArray
from hkm_dask.data.files import careful, read_attributes, write_file
from hkm_dask.data.ids import Pieces, id_keys, repeated, with_keys
from hkm_dask.data.objects import Location, ObjectPath, location
from hkm_dask.data.pool import Pool
from hkm_dask.data.pool_writer import Stats
from hkm_dask.data.row_views import unit_rows
from hkm_dask.data.rows import ZarrRows
from hkm_dask.data.store import create_group
from hkm_dask.errors import InputError
from hkm_dask.events import emit

#: Chunks keep their length until the advised length for the new size is at least this multiple of it.
_MOST_TIMES_SHORTER = 4
_PIECE_BYTES = 4 * layout.MIB
#: Remedy for rows that lack the required ids or columns.
MAKE_A_POOL = "make it a pool with `hkm ingest` first, and give that"


def check_fits(pool: Pool, new: Sequence[Pool]) -> None:
    """Refuse, with an InputError that lists all problems, pools whose rows cannot be appended to those of `pool`."""
    problems = []
    for one in new:
        if one.fingerprint == pool.fingerprint:
            problems.append(f"{one.path} should have other rows than {pool.path}, but has the same; give new ones")
        if one.n_features != pool.n_features:
            rule = f"should be {pool.n_features}, as in {pool.path}; give embeddings of the same model"
            problems.append(f"n_features={one.n_features} of {one.path} {rule}")
        if pool.has_ids and not one.has_ids:
            problems.append(f"{one.path} should have ids, as {pool.path} has; {MAKE_A_POOL}")
        missing = [name for name in pool.columns if name not in one.columns]
        if missing:
            problems.append(
                f"{one.path} should have the columns {', '.join(missing)}, as {pool.path} has; {MAKE_A_POOL}"
            )
        unknown = [*(["ids"] if one.has_ids and not pool.has_ids else []), *sorted({*one.columns} - {*pool.columns})]
        if unknown:
            emit("warning", message=f"{', '.join(unknown)} of {one.path} are left out: {pool.path} has none")
    if new and pool.has_ids and not problems:
        problems = _repeated_ids(pool, new)
    if problems:
        raise InputError(problems)


def known_rows(ids: Pieces, n_rows: int, pool: Pool) -> NDArray[np.int64]:
    """Find the rows, among `n_rows` with these ids, whose id is in the pool; takes 40 bytes per row.

    Returns their sorted numbers. InputError if the ids are of another kind than those of the pool.
    """
    keys, kinds = np.empty(n_rows, np.int64), set[str]()
    for piece in with_keys(ids(), keys):
        kinds.add(piece.dtype.kind)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first_place = np.searchsorted(keys, keys)  # of the rows with the same key
    pool_row, start = np.full(n_rows, -1), 0
    for piece in _pieces([pool], layout.IDS):
        _check_kinds(piece, kinds)
        old_keys = id_keys(piece)
        places = np.minimum(np.searchsorted(keys, old_keys), n_rows - 1)
        same = np.flatnonzero(keys[places] == old_keys)
        pool_row[places[same]] = start + same
        start += len(piece)
    pool_row[order] = pool_row[first_place]
    known, start = [np.empty(0, np.int64)], 0
    collisions = dict[int, Any]()  # rows whose key is that of another id
    for piece in ids():
        rows = pool_row[start : start + len(piece)]
        found = np.flatnonzero(rows >= 0)
        same = piece[found] == pool.ids(rows[found])
        known.append(start + found[same])
        collisions |= zip((start + found[~same]).tolist(), piece[found[~same]].tolist(), strict=True)
        start += len(piece)
    if collisions:
        values, in_pool = set(collisions.values()), set[Any]()
        for piece in _pieces([pool], layout.IDS):
            in_pool |= values.intersection(piece.tolist())
        known.append(np.array([row for row, value in collisions.items() if value in in_pool], np.int64))
    return np.sort(np.concatenate(known))


def grow(pool: Pool, new: Sequence[Pool], folder: Location) -> None:
    """Write a complete pool with the rows of `pool` followed by those of `new` to `folder`.

    The rows of `pool` are read once and verified. The attribute ``history`` describes the pool before it grew.
    """
    old = {
        name: value
        for name, value in read_attributes(pool.path).items()
        if name not in (layout.COMPLETE, layout.DIGEST)
    }
    normalize = bool(old.get("normalized"))
    n_samples, row_bytes = sum(one.n_samples for one in (pool, *new)), pool.n_features * pool.dtype.itemsize
    advised = layout.chunk_rows(n_samples, row_bytes)
    keep = advised < _MOST_TIMES_SHORTER * pool.chunk_rows
    added = sum(one.n_samples for one in new) if keep else n_samples
    pool_writer.check_space(location(pool.path), added * row_bytes)
    create_group(folder, old)
    chunk_rows = pool.chunk_rows if keep else advised
    array = pool_writer.create_embeddings(folder, (n_samples, pool.n_features), pool.dtype, chunk_rows)
    tables = [(one.rows(), normalize and not read_attributes(one.path).get("normalized")) for one in new]
    stats = _write_embeddings(array, [(pool.rows(), False), *tables], pool.n_samples if keep else 0)
    if pool.has_ids:
        pool_writer.write_column(folder, layout.IDS, _pieces((pool, *new), layout.IDS), n_samples)
    for name in pool.columns:
        pool_writer.write_column(folder, name, _pieces((pool, *new), name), n_samples)
    before = {"n_samples": pool.n_samples, "fingerprint": pool.fingerprint, "added": [one.fingerprint for one in new]}
    pool_writer.finish(
        folder, stats, has_ids=pool.has_ids, normalize=normalize, columns=pool.columns,
        sources=[source for one in (pool, *new) for source in one.sources],
        n_dropped=int(old.get("n_dropped_rows", 0)),
        attributes={"history": [*old.get("history", []), before]},
    )  # fmt: skip


# -- embeddings --------------------------------------------------------------------------------------------------------


def _write_embeddings(array: StoredArray, tables: Sequence[tuple[ZarrRows, bool]], n_linked: int) -> Stats:
    """Write all chunks in several threads, those of the first `n_linked` rows as links; return the statistics."""
    offsets = np.cumsum([0, *(rows.n_rows for rows, _ in tables)])
    n_threads, stats = len(os.sched_getaffinity(0)), Stats(np.zeros(array.spec.shape[1]))
    write = partial(_write_chunk, array, tables, offsets, n_linked)
    chunks = range(array.spec.n_chunks)
    with ThreadPoolExecutor(n_threads) as threads:
        for done, part in enumerate(in_order(threads, write, chunks, 2 * n_threads), 1):
            stats.add(part)
            emit("progress", stage="growing", done=done, total=len(chunks), then="assigning")
    return stats


def _write_chunk(
    array: StoredArray, tables: Sequence[tuple[ZarrRows, bool]], offsets: NDArray[np.int64], n_linked: int, index: int
) -> Stats:
    """Link a chunk that lies entirely within the first `n_linked` rows, or write it."""
    start, stop = array.spec.chunk_range(index)
    if stop <= n_linked:
        old = tables[0][0].array
        rows = old.read(start, stop)  # a damaged chunk must not be carried over
        stats = pool_writer.measure(rows, rows, np.arange(start, stop))
        _link(old.chunk_path(index), array.chunk_path(index))
        stats.checksums.append(array.checksum(index))
        return stats
    step = max(1, _PIECE_BYTES // array.spec.row_bytes)

    def pieces() -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        for part, first, last in layout.spans(offsets, start, stop):
            rows, normalize = tables[part]
            for low in range(first, last, step):
                piece = rows.read(low, min(low + step, last))
                yield unit_rows(piece) if normalize else piece, np.arange(low, low + len(piece)) + offsets[part]

    return pool_writer.write_chunk(array, index, pieces(), normalize=False)


def _link(old: Location, new: Location) -> None:
    """Hard-link a chunk, or copy it where links are not supported; chunks are never modified once written."""
    if isinstance(old, ObjectPath) and isinstance(new, ObjectPath) and old.bucket == new.bucket:
        return old.copy_to(new)
    if not (isinstance(old, Path) and isinstance(new, Path)):
        return write_file(new, old.read_bytes())

    def place() -> None:
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.hardlink_to(old)
        except OSError:
            shutil.copyfile(old, new)

    careful(place, f"writing {new}")


# -- ids and columns ---------------------------------------------------------------------------------------------------


def _pieces(pools: Sequence[Pool], name: str) -> Iterator[NDArray[Any]]:
    """Yield the values of a column, or the ids, of one pool after the other; floats in the widest of their dtypes."""

    def read(pool: Pool, low: int, high: int) -> NDArray[Any]:
        return pool.column_piece(name, low, min(high, pool.n_samples))

    first = [read(pool, 0, 1) for pool in pools]
    masked = any(map(np.ma.isMaskedArray, first))
    are_floats = all(piece.dtype.kind == "f" for piece in first)
    dtype = np.result_type(*(piece.dtype for piece in first)) if are_floats else None
    for pool in pools:
        for low in range(0, pool.n_samples, layout.MAX_ID_CHUNK_ROWS):
            piece = read(pool, low, low + layout.MAX_ID_CHUNK_ROWS)
            piece = piece if dtype is None else piece.astype(dtype, copy=False)
            yield np.ma.asarray(piece) if masked else piece


def _repeated_ids(pool: Pool, new: Sequence[Pool]) -> list[str]:
    """Describe ids of `new` that are in the pool already, or repeated; takes 8 bytes per new row."""
    keys, kinds = np.empty(sum(one.n_samples for one in new), np.int64), set[str]()
    for piece in with_keys(_pieces(new, layout.IDS), keys):
        kinds.add(piece.dtype.kind)
    twice = set(repeated(keys).tolist())
    for piece in _pieces([pool], layout.IDS):
        _check_kinds(piece, kinds)
        old_keys = id_keys(piece)
        places = np.minimum(np.searchsorted(keys, old_keys), len(keys) - 1)
        twice.update(old_keys[keys[places] == old_keys].tolist())
    if not twice:
        return []
    wanted, seen, again = np.fromiter(twice, np.int64, len(twice)), set[Any](), list[Any]()
    for piece in _pieces([pool, *new], layout.IDS):
        for value in piece[np.isin(id_keys(piece), wanted)].tolist():
            again += [value] if value in seen else []
            seen.add(value)
    if not again:
        return []
    more = f" and {len(again) - 1:,} more" if len(again) > 1 else ""
    remedy = "leave such rows out, with skip_known (--skip-known) if their source is not a pool"
    return [f"id={again[0]!r:.80}{more} should not be in the pool already; {remedy}"]


def _check_kinds(ids: NDArray[Any], kinds: set[str]) -> None:
    if {ids.dtype.kind} != kinds:
        rule = "should be of the same kind as in the pool, all integers or all strings; convert them"
        raise InputError(f"ids of the new samples {rule}")
