"""Writing of pools: conversion and statistics of the rows, ids and columns, and the attributes."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hkm_dask.data import layout, store
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.files import remove
from hkm_dask.data.ids import name_repeated, repeated, with_keys
from hkm_dask.data.objects import Location, ObjectPath
from hkm_dask.data.rounding import Rounding
from hkm_dask.data.row_views import unit_rows
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import emit

#: Names of the kinds of values that a column may have.
_KINDS = {"i": "integers", "f": "decimals", "b": "truth values", "O": "strings"}
#: Number of repeated ids named in a message.
_NAMED_IDS = 3


@dataclass
class Stats:
    """Statistics of rows, gathered while they are written."""

    total: np.ndarray  # float64 (n_features,): sum of the rows
    max_abs: float = 0.0  # largest absolute value
    n_zero_rows: int = 0  # rows that are all zero
    n_vanished_rows: int = 0  # of these, rows that were not all zero before they were converted
    nonfinite: list[np.ndarray] = field(default_factory=list)  # int64: numbers of the source rows with NaN or Inf
    n_overflows: int = 0  # finite values that the stored dtype cannot represent
    n_overflow_rows: int = 0  # rows with such values
    checksums: list[int] = field(default_factory=list)  # CRC-32C of every chunk
    rounding: Rounding | None = None  # if the stored dtype is narrower than that of the source

    def add(self, other: Stats) -> None:
        """Add the statistics of the rows that follow."""
        with np.errstate(invalid="ignore"):
            # Inf − Inf, if values overflowed; an error is raised for these at the end.
            self.total += other.total
        self.max_abs = max(self.max_abs, other.max_abs)
        self.n_zero_rows += other.n_zero_rows
        self.n_vanished_rows += other.n_vanished_rows
        self.nonfinite += other.nonfinite
        self.n_overflows += other.n_overflows
        self.n_overflow_rows += other.n_overflow_rows
        self.checksums += other.checksums
        if self.rounding is not None and other.rounding is not None:
            self.rounding.add(other.rounding)
        else:
            self.rounding = self.rounding or other.rounding


def pool_dtype(dtype: Any) -> np.dtype:
    """Return the dtype in which a pool stores embeddings; InputError if it is neither float16 nor float32."""
    with suppress(TypeError):
        stored = np.dtype(dtype)
        if stored in (np.float16, np.float32):
            return stored
    raise InputError(f"dtype={dtype} should be float16 or float32; leave it out to keep that of the sources")


def check_space(target: Location, n_bytes: int) -> None:
    """Refuse, with a StoreError, to start a pool of `n_bytes` at `target` if its disk lacks the space."""
    if isinstance(target, ObjectPath):
        return
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise StoreError(
            f"{target} needs {n_bytes / 1e9:.2f} GB, its disk is full but for {free / 1e9:.2f} GB; "
            "free space, give another path, or store float16"
        )


def create_embeddings(group: Location, shape: tuple[int, int], dtype: np.dtype, chunk_rows: int) -> StoredArray:
    """Create the embeddings array of a pool, in chunks of `chunk_rows` rows, or of all rows if there are fewer."""
    chunks, dims = (min(chunk_rows, shape[0]), shape[1]), (layout.SAMPLE, layout.FEATURE)
    store.create_array(group, layout.EMBEDDINGS, shape=shape, dtype=dtype, chunks=chunks, dims=dims)
    return open_array(group / layout.EMBEDDINGS)


def convert(piece: np.ndarray, dtype: np.dtype, normalize: bool) -> np.ndarray:
    """Convert rows to the form that a pool stores; NaN, Inf and overflows pass, and are counted by `measure`.

    >>> convert(np.array([[3.0, 4.0]]), np.dtype("f4"), True)
    array([[0.6, 0.8]], dtype=float32)
    """
    with np.errstate(all="ignore"):
        return (unit_rows(piece) if normalize else piece).astype(dtype, copy=False)


def measure(piece: np.ndarray, stored: np.ndarray, numbers: np.ndarray) -> Stats:
    """Gather the statistics, except checksums, of rows: `piece` as read, `stored` as converted, and their `numbers`.

    >>> rows = np.array([[0, 0], [1, -3], [np.nan, 0]], np.float32)
    >>> stats = measure(rows, rows, np.arange(10, 13))
    >>> stats.n_zero_rows, stats.nonfinite
    (1, [array([12])])
    """
    wide = stored.astype(np.float32, copy=False)
    with np.errstate(all="ignore"):
        stats = Stats(np.add.reduce(wide, axis=0, dtype=np.float64))
        low, high = float(wide.min()), float(wide.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        sound = np.isfinite(piece).all(axis=1)
        lost = ~np.isfinite(wide[sound])
        stats.n_overflows, stats.n_overflow_rows = int(lost.sum()), int(lost.any(axis=1).sum())
        if not sound.all():
            stats.nonfinite.append(numbers[~sound])
    stats.max_abs = max(-low, high)
    # A zero row begins with a zero, which few others do, so only these candidates are searched.
    candidates = np.flatnonzero(wide[:, 0] == 0)
    zero = candidates[~wide[candidates].any(axis=1)]
    stats.n_zero_rows, stats.n_vanished_rows = len(zero), int(piece[zero].any(axis=1).sum())
    return stats


def write_chunk(
    array: StoredArray, index: int, pieces: Iterable[tuple[np.ndarray, np.ndarray]], normalize: bool
) -> Stats:
    """Write one chunk of a pool's embeddings from pairs of rows and row numbers; returns the rows' statistics."""
    stats = Stats(np.zeros(array.spec.shape[1]))
    with array.writer(index) as chunk:
        for piece, numbers in pieces:
            stored = convert(piece, array.spec.dtype, normalize)
            measured = measure(piece, stored, numbers)
            if piece.dtype.itemsize > stored.dtype.itemsize and not normalize:
                measured.rounding = Rounding.of(piece, stored)
            stats.add(measured)
            chunk.append(stored)
    stats.checksums.append(chunk.crc)
    return stats


def check_overflow(stats: Stats, dtype: np.dtype) -> None:
    """Refuse, with an InputError, rows with finite values that the stored dtype cannot represent."""
    if stats.n_overflows:
        remedy = "store float32" if dtype == np.float16 else "scale the embeddings down"
        raise InputError(
            f"n_overflows={stats.n_overflows} should be 0: that many values, in {stats.n_overflow_rows} rows, exceed "
            f"{float(np.finfo(dtype).max):.6g}, the largest {dtype}; {remedy}"
        )


def write_column(group: Location, name: str, pieces: Iterable[np.ndarray], n_samples: int) -> None:
    """Write one value per row of a pool: the ids, or a further column.

    The values come in pieces of int64, float32, float64, bool or objects (str). Masked pieces may have missing values;
    if any is missing, a mask ``NAME.missing`` is written beside the array. InputError if there are more or fewer values
    than `n_samples`, or of several kinds.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_column(pathlib.Path(folder), "ids", [np.array([7, 8]), np.array([9])], 3)
    ...     open_array(pathlib.Path(folder, "ids")).read(0, 3)
    array([7, 8, 9])
    """
    step = min(n_samples, layout.MAX_ID_CHUNK_ROWS)
    kind: str | None = None
    waiting: list[np.ndarray] = []
    start, mask, n_missing = 0, f"{name}{layout.MISSING_SUFFIX}", 0
    for piece in pieces:
        if kind is None:
            kind = piece.dtype.kind
            dtype = str if kind == "O" else piece.dtype
            create = partial(store.create_array, group, shape=(n_samples,), chunks=(step,), dims=(layout.SAMPLE,))
            create(name, dtype=dtype)
            if np.ma.isMaskedArray(piece):
                create(mask, dtype=bool, compressed=True)
        if piece.dtype.kind != kind:
            kinds = f"some sources have {_KINDS[kind]}, others {_KINDS[piece.dtype.kind]}"
            raise InputError(f"{name}: {kinds}; give strings for all of them")
        n_missing += int(np.ma.getmaskarray(piece).sum())
        waiting.append(piece)
        if start + sum(map(len, waiting)) >= min(start + step, n_samples):
            start, waiting = _flush(group / name, start, step, n_samples, waiting)
    n_values = start + sum(map(len, waiting))
    if n_values != n_samples:
        raise InputError(f"n_{name}={n_values} should be {n_samples}, one per row; give {name} for exactly these rows")
    if n_missing == 0:
        remove(group / mask)


def write_ids(group: Location, pieces: Iterable[np.ndarray], n_samples: int, remedy: str) -> None:
    """Write the ids of all rows of a pool as `write_column` does, using 8 bytes of memory per row.

    If an id occurs twice, and would thus stand for two rows, InputError with `remedy`.
    """
    keys = np.empty(n_samples, np.int64)
    write_column(group, layout.IDS, with_keys(pieces, keys), n_samples)
    twice = repeated(keys)
    if len(twice):
        stored = open_array(group / layout.IDS)
        named = name_repeated(map(stored.read_chunk, range(stored.spec.n_chunks)), twice, _NAMED_IDS)
        if named:
            more = f" and {len(twice) - len(named):,} more" if len(twice) > len(named) else ""
            raise InputError(f"ids: {', '.join(named)}{more} should come once each; {remedy}")


def _flush(
    array: Location, start: int, step: int, n_samples: int, waiting: Sequence[np.ndarray]
) -> tuple[int, list[np.ndarray]]:
    """Write the whole chunks among the waiting values; return the row of the next chunk and the remaining values."""
    values = np.ma.concatenate(waiting) if np.ma.isMaskedArray(waiting[0]) else np.concatenate(waiting)
    whole = len(values) if start + len(values) == n_samples else len(values) // step * step
    open_array(array).write(start, np.ma.getdata(values)[:whole])
    if np.ma.isMaskedArray(values):
        mask = array.with_name(f"{array.name}{layout.MISSING_SUFFIX}")
        open_array(mask).write(start, np.ma.getmaskarray(values)[:whole])
    return start + whole, [values[whole:]] if whole < len(values) else []


def finish(
    group: Location,
    stats: Stats,
    *,
    has_ids: bool,
    normalize: bool,
    sources: Sequence[str],
    columns: Collection[str] = (),
    n_dropped: int = 0,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write the mean and the attributes of a pool, and mark it complete; InputError if values overflowed.

    The embeddings, ids and further columns are already written. `sources` names what the pool was made from, and
    `n_dropped` counts the source rows that were left out.
    """
    embeddings = open_array(group / layout.EMBEDDINGS)
    spec = embeddings.spec
    n_samples = spec.shape[0]
    check_overflow(stats, spec.dtype)
    if stats.n_vanished_rows:
        fact = f"{stats.n_vanished_rows:,} of {n_samples:,} rows are all zero now, as their values are closer to 0 than"
        remedy = "store float32, or scale the embeddings up" if spec.dtype == np.float16 else "scale the embeddings up"
        least = float(np.finfo(spec.dtype).smallest_subnormal)
        emit("warning", message=f"{fact} {least:.3g}, the smallest {spec.dtype}; {remedy}")
    if stats.rounding is not None and (lost := stats.rounding.warning(spec.dtype)):
        emit("warning", message=lost)
    mean = (stats.total / n_samples).astype(np.float32)
    store.create_array(
        group, layout.MEAN, shape=mean.shape, dtype=np.float32, chunks=mean.shape, dims=(layout.FEATURE,)
    )
    open_array(group / layout.MEAN).write(0, mean)
    if n_dropped:
        emit("warning", message=f"{n_dropped} rows with NaN or Inf were dropped")
    if stats.n_zero_rows and normalize:
        emit("warning", message=f"{stats.n_zero_rows} rows are all zero: they have no direction and stay zero")
    fingerprint = layout.array_fingerprint(spec, np.array(stats.checksums))
    if embeddings.seal().fingerprint != fingerprint:
        raise StoreError(f"{group}: chunks changed while others were written; run the same command again")
    facts = {
        "fingerprint": fingerprint,
        "max_abs": stats.max_abs,
        "n_zero_rows": stats.n_zero_rows,
        "n_dropped_rows": n_dropped,
        "normalized": normalize,
        "has_ids": has_ids,
        **({"columns": list(columns)} if columns else {}),
        "sources": list(sources),
    }
    store.mark_complete(group, {**facts, **(attributes or {})})
