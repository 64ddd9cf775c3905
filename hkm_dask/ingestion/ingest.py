"""Raw embeddings into a pool: one pass that converts, checks, sums and writes whole chunks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hkm_dask.compute.cluster import runner_for
from hkm_dask.compute.runner import Runner
from hkm_dask.data import layout, pool_writer, store
from hkm_dask.data.chunks import StoredArray
from hkm_dask.data.files import remove
from hkm_dask.data.locks import lock
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.data.pool_writer import Stats
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.ingestion.formats import Segment, Sources, open_sources

if TYPE_CHECKING:
    from distributed import Client

STAGE = "ingest"
# What one task reads at once: small enough for the cache, large enough to forget the cost of a call.
PIECE_BYTES = 4 * layout.MIB
# Chunks handed out at once, per thread: progress is told and sums are folded after each round.
CHUNKS_PER_ROUND = 8
_NAMED_ROWS = 5


@dataclass(frozen=True)
class ChunkJob:
    """What it takes to write chunk `index` of the pool, picklable.

    Its source rows come in `segments`, numbered from `first`; those numbered in `dropped` are left out.
    """

    array: StoredArray
    index: int
    segments: tuple[Segment, ...]
    first: int
    dropped: np.ndarray
    normalize: bool


def ingest(
    sources: Any,
    pool: str | os.PathLike[str],
    *,
    dtype: Any = None,
    normalize: bool = False,
    ids: Any = None,
    column: str | None = None,
    drop_nonfinite: bool = False,
    chunk_mb: float | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> Pool:
    """Put raw embeddings into a pool: chunked, checksummed, with its mean, its range and a fingerprint.

    One pass, out of core: a task reads a few MiB at a time and writes one chunk. The same sources and settings give the
    same bits with any number of workers. The pool appears under its name only when it is complete.

    Parameters
    ----------
    sources : path-like, np.ndarray, zarr.Array, or a sequence of these
        ``.npy`` and ``.npz`` files, folders of ``.npy`` shards (in natural order; clip-retrieval's layout too), Zarr
        arrays and groups, arrays in memory: tables (n, n_features), one below the other.
    pool : path-like
        Folder to make.
    dtype : {"float16", "float32"}, optional
        Type to store; by default float16 where all sources are, else float32.
    normalize : bool, default False
        Scale every row to length 1; rows of zeros stay zero.
    ids : str or array-like, optional
        Name of the ids in each source (a member of a ``.npz``, an array of a Zarr group, a column of the metadata of a
        clip-retrieval folder), or the ids of all rows: integers or strings.
    column : str, optional
        Name of the embeddings in each source (a member, an array, a subfolder) where it holds several.
    drop_nonfinite : bool, default False
        Leave out rows with NaN or Inf. Where no ids are given, the ids then tell the rows' numbers in the sources.
    chunk_mb : float, optional
        Size of a storage chunk in MiB, at most 64; by default a 64th of the pool, at least 1.
    overwrite : bool, default False
        Replace a pool that is there; the old one stays until the new one is complete.
    client : distributed.Client, optional
        Where to run; by default on distributed's current client, else on threads of this process.

    Returns
    -------
    Pool
        The complete pool.

    Raises
    ------
    InputError
        When `pool` exists, a source cannot be read, rows hold NaN or Inf, or values overflow `dtype`.
    StoreError
        When another process is writing it, or the disk is full or fails.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pool = ingest(np.arange(6.0).reshape(3, 2), f"{folder}/pool.zarr")
    ...     print(pool.n_samples, pool.dtype, pool.mean, pool.max_abs)
    3 float32 [2. 3.] 5.0
    """
    target = Path(pool).absolute()
    with lock(target), store.staged(target, overwrite=overwrite, keep=False) as wip, _scratch(target) as scratch:
        table = open_sources(sources, ids=ids, column=column, scratch=scratch)
        default = np.float16 if table.dtype == np.float16 else np.float32
        stored = pool_writer.pool_dtype(default if dtype is None else dtype)
        rows = layout.chunk_rows(table.n_rows, table.n_features * stored.itemsize, chunk_mb=chunk_mb)
        pool_writer.check_space(target, table.n_rows * table.n_features * stored.itemsize)
        store.create_group(wip, {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION})
        with Runner() if table.in_memory else runner_for(client) as runner:
            dropped = np.zeros(0, dtype=np.int64)
            stats = _write_embeddings(runner, wip, table, stored, rows, dropped, normalize)
            if stats.nonfinite:
                dropped = _rows_to_drop(stats, table, drop_nonfinite)
                stats = _write_embeddings(runner, wip, table, stored, rows, dropped, normalize)
        ids = _ids(table, dropped)
        if ids is not None:
            pool_writer.write_column(wip, layout.IDS, ids, table.n_rows - len(dropped))
        pool_writer.finish(
            wip,
            stats,
            has_ids=ids is not None,
            normalize=normalize,
            sources=[source.name for source in table.tables],
            n_dropped=len(dropped),
        )
    return open_pool(target)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside the pool to unpack into; what a run left there that died is removed too."""
    folder = target.with_name(f".{target.name}.unpacked")
    remove(folder)
    try:
        yield folder
    finally:
        remove(folder)


# --- embeddings -------------------------------------------------------------------------------------------------------


def _write_embeddings(
    runner: Runner,
    group: Path,
    table: Sources,
    dtype: np.dtype,
    chunk_rows: int,
    dropped: np.ndarray,
    normalize: bool,
) -> Stats:
    """Write all chunks, and fold what was learned of them in their order, whoever was done first."""
    n_samples = table.n_rows - len(dropped)
    array = pool_writer.create_embeddings(group, (n_samples, table.n_features), dtype, chunk_rows)
    stats = Stats(np.zeros(table.n_features))
    n_chunks, per_round = array.spec.n_chunks, CHUNKS_PER_ROUND * runner.n_threads
    for start in range(0, n_chunks, per_round):
        stop = min(start + per_round, n_chunks)
        jobs = [_job(array, index, table, dropped, normalize) for index in range(start, stop)]
        for part in runner.map(write_chunk, jobs, stage=STAGE):
            stats.add(part)
        emit("progress", stage=STAGE, done=stop, total=n_chunks)
    return stats


def _job(array: StoredArray, index: int, table: Sources, dropped: np.ndarray, normalize: bool) -> ChunkJob:
    # The row kept as number i had i plus as many rows before it in the sources as were dropped before it.
    kept_before = dropped - np.arange(len(dropped))
    start, stop = (
        row + int(np.searchsorted(kept_before, row, side="right")) if row < array.spec.shape[0] else table.n_rows
        for row in array.spec.chunk_range(index)
    )
    inside = dropped[np.searchsorted(dropped, start) : np.searchsorted(dropped, stop)]
    return ChunkJob(array, index, table.segments(start, stop), start, inside, normalize)


def write_chunk(job: ChunkJob) -> Stats:
    """Write one chunk, and tell what was learned of its rows, with one checksum."""
    stats = Stats(np.zeros(job.array.spec.shape[1]))
    row = job.first
    with job.array.writer(job.index) as chunk:
        for segment in job.segments:
            for start, stop in segment.pieces(PIECE_BYTES):
                piece = segment.rows.read(start, stop)
                numbers = np.arange(row, row + len(piece))
                row += len(piece)
                if len(job.dropped):
                    keep = ~np.isin(numbers, job.dropped, assume_unique=True)
                    piece, numbers = piece[keep], numbers[keep]
                if len(piece):
                    stored = pool_writer.convert(piece, job.array.spec.dtype, job.normalize)
                    stats.add(pool_writer.measure(piece, stored, numbers))
                    chunk.append(stored)
    stats.checksums.append(chunk.crc)
    return stats


def _rows_to_drop(stats: Stats, table: Sources, drop_nonfinite: bool) -> np.ndarray:
    rows = np.concatenate(stats.nonfinite)
    if len(rows) == table.n_rows:
        raise InputError(f"n_nonfinite_rows={len(rows)} should be fewer than all rows; every row holds NaN or Inf")
    if not drop_nonfinite:
        named = ", ".join(map(str, rows[:_NAMED_ROWS].tolist())) + (", …" if len(rows) > _NAMED_ROWS else "")
        raise InputError(
            f"n_nonfinite_rows={len(rows)} should be 0, NaN or Inf stands in rows {named} "
            f"(the first: {table.locate(int(rows[0]))}); mend them, or leave them out with drop_nonfinite "
            "(--drop-nonfinite)"
        )
    return rows


# --- ids --------------------------------------------------------------------------------------------------------------


def _ids(table: Sources, dropped: np.ndarray) -> Iterator[np.ndarray] | None:
    """Give the ids of the kept rows; where none were given but rows were dropped, their numbers in the sources."""
    if table.ids is None and len(dropped) == 0:
        return None
    n_rows, step = table.n_rows, layout.MAX_ID_CHUNK_ROWS
    numbers = (np.arange(row, min(row + step, n_rows), dtype=np.int64) for row in range(0, n_rows, step))
    return _kept(numbers if table.ids is None else table.ids(), dropped)


def _kept(pieces: Iterator[np.ndarray], dropped: np.ndarray) -> Iterator[np.ndarray]:
    row = 0
    for piece in pieces:
        inside = dropped[np.searchsorted(dropped, row) : np.searchsorted(dropped, row + len(piece))] - row
        row += len(piece)
        kept = np.delete(piece, inside)
        if len(kept):
            yield kept
