"""The input of a hierarchy: rows of a pool or an array, all or a subset, and the fingerprint of their content."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import random_bits, stream_key
from hkm_dask.compute.runner import n_processors
from hkm_dask.config import Config
from hkm_dask.data import layout
from hkm_dask.data.files import as_buffer, read_attributes
from hkm_dask.data.objects import location
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import Rows, as_rows, max_abs
from hkm_dask.errors import InputError, first_few
from hkm_dask.hierarchy.sampling.subset_files import read_rows

#: Most rows of labels in one file.
_LABEL_CHUNK_ROWS = 1 << 20
#: Bytes of rows checked for non-finite values at once, and bytes per checksum.
_BLOCK_BYTES, _CHECKED_BYTES = 16 << 20, 4 << 20
#: Row numbers processed at once, and leading bits by which their random numbers are first counted.
_SAMPLED_ROWS, _FIRST_BITS = 1 << 18, 16


@dataclass(frozen=True)
class ClusterInput:
    """The samples of a hierarchy: their location, selection and identity."""

    #: Input of level 1: unit length for cosine, restricted to the subset and to the sample used for fitting.
    rows: Rows
    labeled: Rows  # rows labeled at level 1: the same, but not restricted to the sample used for fitting
    n_total: int  # rows before taking the subset, which is the number of labels at level 1
    chunk_rows: int  # rows per chunk of the labels
    #: Hash of the content of all rows, and of the row numbers of the subset (empty without one).
    fingerprint: str
    path: str  # of the pool; empty for an array
    subset: str
    #: (n_features,): mean and largest absolute value; None if they are not known without a pass.
    mean: NDArray[np.float32] | None
    max_abs: float | None
    pool: Pool | None = None

    def check_unchanged(self) -> None:
        """Raise StoreError if the pool was replaced since it was opened."""
        if self.pool is not None:
            self.pool.check_unchanged()


def open_source(pool: Any, config: Config) -> ClusterInput:
    """Open the rows to be clustered: a pool, or anything `as_rows` accepts, which is read once for its fingerprint.

    Raises InputError for rows with NaN or Inf, all-zero rows for cosine, or an invalid subset, and StoreError if the
    pool is missing or damaged.

    >>> source = open_source(np.float32([[0, 1], [2, 3]]), Config(levels=[{"n_clusters": 1}]))
    >>> source.n_total, source.path, source.fingerprint[:8]
    (2, '', '0599af8f')
    """
    opened = _opened_pool(pool)
    base = opened.rows() if opened is not None else as_rows(pool)
    index = None if config.subset is None else read_rows(config.subset, base.n_rows, repeats=False, pool=opened)
    fingerprint = opened.fingerprint if opened is not None else _fingerprint(base)
    rows = base if index is None else SubsetRows(base, index)
    if config.metric == "cosine":
        _refuse_zero_rows(rows, opened)
        rows = UnitRows(base) if index is None else SubsetRows(UnitRows(base), index)
    # Statistics of the whole pool are valid for a subset, but not for rows scaled to unit length.
    known = opened if config.metric == "l2" else None
    sample = rows
    if config.fit_sample is not None:
        drawn = _fit_sample(index, base.n_rows, config)
        sample = SubsetRows(base if config.metric == "l2" else UnitRows(base), drawn)
    return ClusterInput(
        rows=sample,
        labeled=rows,
        n_total=base.n_rows,
        chunk_rows=label_chunk_rows(base),
        fingerprint=fingerprint,
        path="" if opened is None else opened.path,
        subset="" if index is None else hashlib.sha256(as_buffer(index)).hexdigest(),
        mean=None if known is None else known.mean,
        max_abs=None if known is None else known.max_abs,
        pool=opened,
    )


def n_clustered(pool: Any, subset: str | None = None, fit_sample: int | None = None) -> int:
    """Return the number of rows of a pool, a subset or a sample for fitting, without reading the rows."""
    opened = _opened_pool(pool)
    n_rows = opened.n_samples if opened is not None else as_rows(pool).n_rows
    n_rows = n_rows if subset is None else len(read_rows(subset, n_rows, repeats=False, pool=opened))
    return n_rows if fit_sample is None or fit_sample < 1 else min(n_rows, fit_sample)


def label_chunk_rows(base: Rows) -> int:
    """Return the rows of labels per file: whole chunks of the embeddings, few files, but work for every core.

    >>> from hkm_dask.data.rows import ArrayRows
    >>> label_chunk_rows(ArrayRows(np.zeros((10**6, 1), np.float16)))
    12288
    """
    unit = base.chunk_rows if base.chunk_rows > 1 else max(1, min(4096, base.n_rows))
    n_units = -(-base.n_rows // unit)
    return unit * max(1, min(_LABEL_CHUNK_ROWS // unit, n_units // 64))


def _fit_sample(index: NDArray[np.int64] | None, n_rows: int, config: Config) -> NDArray[np.int64]:
    """Draw the rows for fitting uniformly, those with the smallest random numbers; returns them sorted.

    A first pass counts the random numbers by their leading bits; a second collects those up to the last needed.
    """
    n, wanted = n_rows if index is None else len(index), config.fit_sample or 0
    if wanted >= n:
        raise InputError(f"fit_sample={wanted} should be below the {n} rows there are; leave it out to fit on them all")
    key, shift = stream_key(config.seed, "fit_sample"), np.uint64(64 - _FIRST_BITS)

    def numbered() -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
        for low in range(0, n, _SAMPLED_ROWS):
            high = min(low + _SAMPLED_ROWS, n)
            rows = np.arange(low, high) if index is None else index[low:high]
            yield rows, random_bits(key, rows)

    counts = np.zeros(1 << _FIRST_BITS, np.int64)
    for _, keys in numbered():
        counts += np.bincount((keys >> shift).astype(np.int64), minlength=len(counts))
    last = np.uint64(np.searchsorted(np.cumsum(counts), wanted))
    drawn, n_drawn, at_last = np.empty(wanted, np.int64), 0, []
    for rows, keys in numbered():
        first = keys >> shift
        below = rows[first < last]
        drawn[n_drawn : n_drawn + len(below)] = below
        n_drawn += len(below)
        at_last.append(np.stack([keys[first == last], rows[first == last].view(np.uint64)]))
    keys, candidates = np.concatenate(at_last, axis=1)
    drawn[n_drawn:] = candidates[np.argsort(keys, kind="stable")[: wanted - n_drawn]].view(np.int64)
    drawn.sort()
    return drawn


def _opened_pool(pool: Any) -> Pool | None:
    if isinstance(pool, Pool):
        return pool
    if not isinstance(pool, str | os.PathLike):
        return None
    path = location(pool, "pool")
    root = read_attributes(path, missing_ok=True)
    # A missing path is reported as a missing pool, the most likely intention.
    return open_pool(path) if not path.exists() or root.get("format") == layout.POOL_FORMAT else None


def _fingerprint(rows: Rows) -> str:
    """Return the SHA-256 of the shape, the dtype and the CRC-32C of every 4 MiB of rows, however they are stored."""
    at_once = max(1, _CHECKED_BYTES // rows.row_bytes)
    step = at_once * -(-rows.chunk_rows // at_once)
    firsts = range(0, rows.n_rows, step)
    n_threads = min(n_processors(), len(firsts), max(1, _BLOCK_BYTES // (step * rows.row_bytes)))
    starts, found = iter(firsts), dict[int, tuple[list[int], NDArray[np.int64]]]()

    def look(_: int) -> None:
        buffer = np.empty((min(step, rows.n_rows), rows.n_features), rows.dtype)
        for low in starts:  # threads share the iterator
            block = rows.read(low, min(low + step, rows.n_rows), buffer[: rows.n_rows - low])
            parts = (block[first : first + at_once] for first in range(0, len(block), at_once))
            is_sound = math.isfinite(max_abs(block))
            bad = np.empty(0, np.int64) if is_sound else np.flatnonzero(~np.isfinite(block).all(axis=1)) + low
            found[low] = [crc32c(as_buffer(part)) for part in parts], bad

    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(look, range(n_threads)))
    checksums, bad = zip(*(found[low] for low in sorted(found)), strict=True)
    numbers = np.concatenate(bad)
    if len(numbers):
        named = first_few(numbers)
        raise InputError(f"n_nonfinite_rows={len(numbers)} should be 0, NaN or Inf is in rows {named}; leave them out")
    digest = hashlib.sha256(f"{rows.n_rows},{rows.n_features},{rows.dtype.name}:".encode())
    digest.update(np.concatenate(checksums).astype("<u4").tobytes())
    return digest.hexdigest()


def _refuse_zero_rows(rows: Rows, pool: Pool | None) -> None:
    if pool is not None and not pool.n_zero_rows:
        return
    blocks = itertools.pairwise(rows.bounds(_BLOCK_BYTES).tolist())
    n_zero = sum(int((~rows.read(low, high).any(axis=1)).sum()) for low, high in blocks)
    if n_zero:
        raise InputError(
            f"n_zero_rows={n_zero} should be 0 for metric='cosine', they have no direction; use metric l2, "
            "or a subset without them"
        )
