"""Ingestion of embeddings into a pool: one pass that converts, checks, sums and writes whole chunks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.compute.runner import Runner
from hkm_dask.data import layout, pool_writer, store
from hkm_dask.data.chunks import StoredArray
from hkm_dask.data.files import remove
from hkm_dask.data.grow_pool import known_rows
from hkm_dask.data.locks import lock
from hkm_dask.data.objects import Location, ObjectPath, location
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.data.pool_writer import Stats
from hkm_dask.errors import InputError, first_few
from hkm_dask.events import counted, emit
from hkm_dask.ingestion.sources import Segment, Sources, open_sources

if TYPE_CHECKING:
    from distributed import Client

STAGE = "ingest"
# Bytes that a task reads at once: small enough for the cache, large enough to amortize the cost of a call.
PIECE_BYTES = 4 * layout.MIB
# Chunks per thread and round; progress is reported and statistics are merged after each round.
CHUNKS_PER_ROUND = 8
_ID_REMEDY = "give every row a unique id, or omit the ids and store them as a column with keep (--keep)"


@dataclass(frozen=True)
class ChunkJob:
    """Picklable description of a task: write the chunks `index` to `stop` of the pool.

    Their source rows are in `segments`, numbered from `first`; rows with the numbers in `dropped` are left out.
    """

    array: StoredArray
    index: int
    stop: int
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
    keep: Sequence[str] = (),
    ids_file: str | os.PathLike[str] | None = None,
    drop_nonfinite: bool = False,
    chunk_mb: float | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> Pool:
    """Write embeddings to a pool: chunked, checksummed, with their mean, range and fingerprint.

    The data is read once and out of core: a task reads a few MiB at a time and writes whole chunks. The same sources
    and settings give bitwise the same pool with any number of workers. The pool appears under its name only when it is
    complete.

    Parameters
    ----------
    sources : path, np.ndarray, zarr.Array, or a sequence of these
        ``.npy``, ``.npz`` and ``.safetensors`` files; parquet and Arrow files with a list column; folders of such
        shards in natural order, of clip-retrieval, or of ``save_to_disk`` of Hugging Face's datasets; folders of such
        folders; Zarr arrays and groups; arrays in memory. All are (n, n_features) tables and are concatenated.
    pool : path
        Folder to create, or a URL like ``s3://bucket/pool.zarr``.
    dtype : {"float16", "float32"}, optional
        Stored type; by default float16 if all sources are float16, otherwise float32.
    normalize : bool, default False
        Scale every row to unit length; all-zero rows stay zero.
    ids : str or array-like, optional
        Name of the ids in each source (a column of parquet, Arrow or clip-retrieval metadata, a member of a ``.npz``, a
        tensor, an array of a Zarr group), or the ids of all rows: integers or strings.
    column : str, optional
        Name of the embeddings in each source (a column, member, array, tensor or subfolder), for sources with several
        candidates.
    keep : sequence of str, optional
        Other columns of parquet, Arrow or a pool, or ``.npz`` members and tensors with one value per row, to copy to
        the pool and to every subset: numbers, text or booleans; dates and times become text. Missing values stay
        missing. The columns of a pool are kept by default if every source has them.
    ids_file : path, optional
        The ids of all rows, for sources without ids: a ``.npy``, a ``.txt`` with one id per line, or a table (CSV or
        TSV with a header, parquet, Arrow) with the ids in column `ids` and other columns that `keep` may name. A CSV
        column is numeric or boolean if all its values are; ``007`` is text.
    drop_nonfinite : bool, default False
        Leave out rows with NaN, Inf or missing values. If no ids are given, the ids are then the row numbers in the
        sources.
    chunk_mb : float, optional
        Size of a storage chunk in MiB, at most 64; by default 1/64 of the pool, at least 1.
    overwrite : bool, default False
        Replace an existing pool; the old one stays until the new one is complete.
    client : distributed.Client, optional
        Where to run; by default distributed's current client if there is one, otherwise threads of this process.

    Returns
    -------
    Pool
        The complete pool.

    Raises
    ------
    InputError
        If `pool` exists, a source cannot be read, rows contain NaN or Inf, or values overflow `dtype`.
    StoreError
        If another process is writing the pool, or the disk is full or fails.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pool = ingest(np.arange(6.0).reshape(3, 2), f"{folder}/pool.zarr")
    ...     print(pool.n_samples, pool.dtype, pool.mean, pool.max_abs)
    3 float32 [2. 3.] 5.0
    """
    target = location(pool, "pool").absolute()
    with lock(target), store.staged(target, overwrite=overwrite, keep=False) as wip, _scratch(target) as scratch:
        table = open_sources(sources, ids=ids, column=column, keep=keep, ids_file=ids_file, scratch=scratch)
        _write_pool(
            wip, target, table, np.zeros(0, np.int64), dtype=dtype, normalize=normalize, drop_nonfinite=drop_nonfinite,
            chunk_mb=chunk_mb, client=client,
        )  # fmt: skip
    return open_pool(target)


def ingest_unknown(
    sources: Any, target: Location, known: Pool, *, dtype: Any, normalize: bool, **options: Any
) -> Pool | None:  # fmt: skip
    """Ingest the rows whose ids the pool `known` does not have; None if it has all of them.

    The `options` are those of `open_sources`. Raises what `ingest` does, and InputError if the ids are of another kind.
    """
    with lock(target), _scratch(target) as scratch:
        table = open_sources(sources, scratch=scratch, **options)
        assert table.ids is not None
        skipped = known_rows(table.ids, table.n_rows, known)
        if len(skipped):
            fact = f"{len(skipped):,} of {table.n_rows:,} new samples are in the pool already"
            emit("note", message=f"{fact}, by their ids, and are left out")
        if len(skipped) == table.n_rows:
            return None
        with store.staged(target, overwrite=False, keep=False) as wip:
            _write_pool(wip, target, table, skipped, dtype=dtype, normalize=normalize)
    return open_pool(target)


def _write_pool(
    wip: Location, target: Location, table: Sources, skipped: np.ndarray, *, dtype: Any, normalize: bool,
    drop_nonfinite: bool = False, chunk_mb: float | None = None, client: Client | None = None,
) -> None:  # fmt: skip
    """Write the rows of the sources, without the `skipped` ones (sorted row numbers), to a staged pool."""
    default = np.float16 if table.dtype == np.float16 else np.float32
    stored = pool_writer.pool_dtype(default if dtype is None else dtype)
    n_rows = table.n_rows - len(skipped)
    rows = layout.chunk_rows(n_rows, table.n_features * stored.itemsize, chunk_mb=chunk_mb)
    pool_writer.check_space(target, n_rows * table.n_features * stored.itemsize)
    store.create_group(wip, {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION})
    with Runner() if table.in_memory else runner_for(client) as runner:
        dropped = skipped
        if not drop_nonfinite:
            has_ids = _write_ids(wip, table, dropped)  # invalid ids are found before the long pass
        stats = _write_embeddings(runner, wip, table, stored, rows, dropped, normalize)
        if stats.nonfinite:
            dropped = np.union1d(skipped, _rows_to_drop(stats, table, drop_nonfinite))
            stats = _write_embeddings(runner, wip, table, stored, rows, dropped, normalize)
    if drop_nonfinite:
        has_ids = _write_ids(wip, table, dropped)
    for name, pieces in table.columns.items():
        kept, n_kept = _kept(pieces(), dropped), table.n_rows - len(dropped)
        pool_writer.write_column(wip, name, counted(kept, f"column {name}", n_kept), n_kept)
    pool_writer.finish(
        wip,
        stats,
        has_ids=has_ids,
        normalize=normalize,
        sources=[source.name for source in table.tables],
        columns=tuple(table.columns),
        n_dropped=len(dropped) - len(skipped),
    )


@contextmanager
def _scratch(target: Location) -> Iterator[Path]:
    """Yield a scratch folder next to the pool; it is removed before (a dead run may have left it) and after use."""
    if isinstance(target, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="hkm-") as temporary:
            yield Path(temporary)
        return
    folder = target.with_name(f".{target.name}.unpacked")
    remove(folder)
    try:
        yield folder
    finally:
        remove(folder)


# --- embeddings -------------------------------------------------------------------------------------------------------


def _write_embeddings(
    runner: Runner,
    group: Location,
    table: Sources,
    dtype: np.dtype,
    chunk_rows: int,
    dropped: np.ndarray,
    normalize: bool,
) -> Stats:
    """Write all chunks, merging their statistics in order, independent of the order in which tasks finish."""
    n_samples = table.n_rows - len(dropped)
    array = pool_writer.create_embeddings(group, (n_samples, table.n_features), dtype, chunk_rows)
    stats = Stats(np.zeros(table.n_features))
    for runs in _rounds(_runs(array, table, dropped), runner.n_threads):
        jobs = [_job(array, run, table, dropped, normalize) for run in runs]
        for part in runner.map(write_chunks, jobs, stage=STAGE):
            stats.add(part)
        emit("progress", stage=STAGE, done=jobs[-1].stop, total=array.spec.n_chunks)
    return stats


def _source_row(array: StoredArray, row: int, table: Sources, dropped: np.ndarray) -> int:
    """Return the source row of a row of the pool: its number plus the number of rows dropped before it."""
    if row >= array.spec.shape[0]:
        return table.n_rows
    return row + int(np.searchsorted(dropped - np.arange(len(dropped)), row, side="right"))


def _runs(array: StoredArray, table: Sources, dropped: np.ndarray) -> list[tuple[int, int]]:
    """Group the chunks into runs [first, last), one per task: chunks read from the same starting place go together."""
    runs: list[tuple[int, int]] = []
    place: tuple[int, int] | None = None
    for index in range(array.spec.n_chunks):
        row = array.spec.chunk_range(index)[0]
        begins, place = place, table.stream_start(_source_row(array, row, table, dropped))
        if place is not None and place == begins:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def _rounds(runs: Sequence[tuple[int, int]], n_threads: int) -> Iterator[list[tuple[int, int]]]:
    """Batch the runs: `CHUNKS_PER_ROUND` chunks per thread, and at least one run for each thread."""
    batch: list[tuple[int, int]] = []
    for run in runs:
        if len(batch) >= n_threads and run[1] - batch[0][0] > CHUNKS_PER_ROUND * n_threads:
            yield batch
            batch = []
        batch.append(run)
    yield batch


def _job(array: StoredArray, run: tuple[int, int], table: Sources, dropped: np.ndarray, normalize: bool) -> ChunkJob:
    first, last = array.spec.chunk_range(run[0])[0], array.spec.chunk_range(run[1] - 1)[1]
    start, stop = (_source_row(array, row, table, dropped) for row in (first, last))
    inside = dropped[np.searchsorted(dropped, start) : np.searchsorted(dropped, stop)]
    return ChunkJob(array, *run, table.segments(start, stop), start, inside, normalize)


def write_chunks(job: ChunkJob) -> Stats:
    """Write the chunks of a job; returns the statistics of their rows, with a checksum of each chunk."""
    total = Stats(np.zeros(job.array.spec.shape[1]))
    for index, pieces in groupby(_kept_rows(job), itemgetter(0)):
        rows = ((piece, numbers) for _, piece, numbers in pieces)
        total.add(pool_writer.write_chunk(job.array, index, rows, job.normalize))
    return total


def _kept_rows(job: ChunkJob) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Read the source rows of a job in pieces, without dropped rows; yields chunk index, rows and row numbers."""
    spec, row = job.array.spec, job.first
    written = spec.chunk_range(job.index)[0]
    for segment in job.segments:
        for piece in segment.stream(PIECE_BYTES):
            numbers = np.arange(row, row + len(piece))
            row += len(piece)
            if len(job.dropped):
                keep = ~np.isin(numbers, job.dropped, assume_unique=True)
                piece, numbers = piece[keep], numbers[keep]
            while len(piece):
                index = written // spec.chunk_rows
                n = min(len(piece), spec.chunk_range(index)[1] - written)
                yield index, piece[:n], numbers[:n]
                piece, numbers, written = piece[n:], numbers[n:], written + n


def _rows_to_drop(stats: Stats, table: Sources, drop_nonfinite: bool) -> np.ndarray:
    rows = np.concatenate(stats.nonfinite)
    if len(rows) == table.n_rows:
        raise InputError(f"n_nonfinite_rows={len(rows)} should be fewer than all rows; every row holds NaN or Inf")
    if not drop_nonfinite:
        raise InputError(
            f"n_nonfinite_rows={len(rows)} should be 0, NaN or Inf is in rows {first_few(rows)} "
            f"(the first: {table.locate(int(rows[0]))}); fix them, or leave them out with drop_nonfinite "
            "(--drop-nonfinite)"
        )
    return rows


# --- ids --------------------------------------------------------------------------------------------------------------


def _write_ids(group: Location, table: Sources, dropped: np.ndarray) -> bool:
    """Write the ids of the kept rows, or their source row numbers if rows were dropped; returns whether it did."""
    if table.ids is None and len(dropped) == 0:
        return False
    n_rows, step, n_kept = table.n_rows, layout.MAX_ID_CHUNK_ROWS, table.n_rows - len(dropped)
    numbers = (np.arange(row, min(row + step, n_rows), dtype=np.int64) for row in range(0, n_rows, step))
    ids = _kept(numbers if table.ids is None else table.ids(), dropped)
    pool_writer.write_ids(group, counted(ids, "ids", n_kept), n_kept, _ID_REMEDY)
    return True


def _kept(pieces: Iterator[np.ndarray], dropped: np.ndarray) -> Iterator[np.ndarray]:
    row = 0
    for piece in pieces:
        inside = dropped[np.searchsorted(dropped, row) : np.searchsorted(dropped, row + len(piece))] - row
        row += len(piece)
        kept = piece[np.isin(np.arange(len(piece)), inside, invert=True)] if len(inside) else piece
        if len(kept):
            yield kept
