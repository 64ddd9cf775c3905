"""Raw embeddings into a pool: one pass that converts, checks, sums and writes whole chunks."""

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
# What one task reads at once: small enough for the cache, large enough to forget the cost of a call.
PIECE_BYTES = 4 * layout.MIB
# Chunks handed out at once, per thread: progress is told and sums are folded after each round.
CHUNKS_PER_ROUND = 8
_ID_REMEDY = (
    "give every row an id of its own, or leave the ids out and carry what they are as a column with keep (--keep)"
)


@dataclass(frozen=True)
class ChunkJob:
    """What it takes to write the chunks `index` to `stop` of the pool, picklable.

    Their source rows come in `segments`, numbered from `first`; those numbered in `dropped` are left out.
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
    """Put raw embeddings into a pool: chunked, checksummed, with its mean, its range and a fingerprint.

    One pass, out of core: a task reads a few MiB at a time and writes one chunk. The same sources and settings give the
    same bits with any number of workers. The pool appears under its name only when it is complete.

    Parameters
    ----------
    sources : path, np.ndarray, zarr.Array, or a sequence of these
        ``.npy``, ``.npz`` and ``.safetensors`` files; parquet and Arrow files with a column of lists; folders of such
        shards, in natural order, of clip-retrieval, or of ``save_to_disk`` of Hugging Face's datasets; folders of such
        folders; Zarr arrays and groups; arrays in memory: tables (n, n_features), one below the other.
    pool : path
        Folder to make, or a URL like ``s3://bucket/pool.zarr``.
    dtype : {"float16", "float32"}, optional
        Type to store; by default float16 where all sources are, else float32.
    normalize : bool, default False
        Scale every row to length 1; rows of zeros stay zero.
    ids : str or array-like, optional
        Name of the ids in each source (a column of parquet or Arrow, also of the metadata of a clip-retrieval folder, a
        member of a ``.npz``, a tensor, an array of a Zarr group), or the ids of all rows: integers or strings.
    column : str, optional
        Name of the embeddings in each source (a column, a member, an array, a tensor, a subfolder) where it holds
        several.
    keep : sequence of str, optional
        Further columns of parquet, Arrow or a pool, or members of ``.npz`` and tensors with a value per row, to carry
        to the pool and to every subset: numbers, text, true or false; dates and times as text. Missing values stay
        missing. A pool's own columns come along unasked where every source has them.
    ids_file : path, optional
        The ids of all rows, for sources that have none: a ``.npy``, a ``.txt`` with one per line, or a table (CSV or
        TSV with a header, parquet, Arrow), whose column is `ids`, and whose further columns `keep` names. A column of a
        CSV is numbers, or true and false, where all its values are; ``007`` is text.
    drop_nonfinite : bool, default False
        Leave out rows with NaN, Inf or missing values. Where no ids are given, the ids then tell the rows' numbers in
        the sources.
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
    target = location(pool, "pool").absolute()
    with lock(target), store.staged(target, overwrite=overwrite, keep=False) as wip, _scratch(target) as scratch:
        table = open_sources(sources, ids=ids, column=column, keep=keep, ids_file=ids_file, scratch=scratch)
        default = np.float16 if table.dtype == np.float16 else np.float32
        stored = pool_writer.pool_dtype(default if dtype is None else dtype)
        rows = layout.chunk_rows(table.n_rows, table.n_features * stored.itemsize, chunk_mb=chunk_mb)
        pool_writer.check_space(target, table.n_rows * table.n_features * stored.itemsize)
        store.create_group(wip, {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION})
        with Runner() if table.in_memory else runner_for(client) as runner:
            dropped = np.zeros(0, dtype=np.int64)
            if not drop_nonfinite:
                has_ids = _write_ids(wip, table, dropped)  # what is wrong with them costs no long pass then
            stats = _write_embeddings(runner, wip, table, stored, rows, dropped, normalize)
            if stats.nonfinite:
                dropped = _rows_to_drop(stats, table, drop_nonfinite)
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
            n_dropped=len(dropped),
        )
    return open_pool(target)


@contextmanager
def _scratch(target: Location) -> Iterator[Path]:
    """A folder beside the pool to unpack into; what a run left there that died is removed too."""
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
    """Write all chunks, and fold what was learned of them in their order, whoever was done first."""
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
    """Where a row of the pool stands in the sources: as many rows further as were dropped before it."""
    if row >= array.spec.shape[0]:
        return table.n_rows
    return row + int(np.searchsorted(dropped - np.arange(len(dropped)), row, side="right"))


def _runs(array: StoredArray, table: Sources, dropped: np.ndarray) -> list[tuple[int, int]]:
    """Chunks that one task writes, first and last: one, or as many as begin where reading must begin at one place."""
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
    """Runs to hand out at once: `CHUNKS_PER_ROUND` chunks per thread, and a run for each thread."""
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
    """Write the chunks of a job, and tell what was learned of their rows, with a checksum of each."""
    total = Stats(np.zeros(job.array.spec.shape[1]))
    for index, pieces in groupby(_kept_rows(job), itemgetter(0)):
        rows = ((piece, numbers) for _, piece, numbers in pieces)
        total.add(pool_writer.write_chunk(job.array, index, rows, job.normalize))
    return total


def _kept_rows(job: ChunkJob) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Read the source rows of a job, without those to be dropped, in pieces: a chunk's number, rows, their numbers."""
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
            f"n_nonfinite_rows={len(rows)} should be 0, NaN or Inf stands in rows {first_few(rows)} "
            f"(the first: {table.locate(int(rows[0]))}); mend them, or leave them out with drop_nonfinite "
            "(--drop-nonfinite)"
        )
    return rows


# --- ids --------------------------------------------------------------------------------------------------------------


def _write_ids(group: Location, table: Sources, dropped: np.ndarray) -> bool:
    """Write the ids of the kept rows, or their numbers in the sources where some were dropped; tells if there are."""
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
