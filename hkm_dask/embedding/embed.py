"""Embedding of texts, images, rasters or other items into a pool by an encoder: streamed, in batches, resumable."""

from __future__ import annotations

import itertools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hkm_dask.data import layout, pool_writer, store
from hkm_dask.data.ahead import in_order
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.files import read_attributes
from hkm_dask.data.ids import Pieces
from hkm_dask.data.objects import Location
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import emit

STAGE = "embed"
PLAN = "embedding"  # attribute of a pool that records how it was embedded
# Items that a thread reads before preparing them: photographs can take 60 MB each, prepared items much less.
ITEMS_AT_ONCE = 16
MAX_THREADS = 8


class ItemSource(Protocol):
    """Items to be embedded, of any kind, with random access; plain attributes may implement the properties."""

    @property
    def name(self) -> str:
        """Name of the source, listed in the pool's ``sources``."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the items and their metadata: a run resumes only if it is the same."""
        ...

    @property
    def ids(self) -> Pieces | None:
        """Function that yields the ids of all items in order, in pieces (arrays of int64 or of str objects).

        `hkm_dask.data.ids.id_pieces` makes it from ids in memory. None if row numbers suffice.
        """
        ...

    @property
    def columns(self) -> Mapping[str, Pieces]:
        """Metadata of the items by name: functions like `ids`, of int64, float64 or str objects."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def read(self, first: int, last: int) -> Sequence[Any]:
        """Read the items `first` to `last` (exclusive), one per row of the pool; must be thread-safe."""
        ...


class Encoder(ABC):
    """Turns items into embeddings; the same batch of items always gives the same embeddings.

    The `fingerprint` changes whenever the embeddings may: a run resumes only if it is the same. The `name` is, for
    example, the model's folder.
    """

    name: str
    fingerprint: str
    n_features: int

    def prepare(self, items: Sequence[Any]) -> Sequence[Any]:
        """Preprocess items independently of each other, e.g. resize them; must be thread-safe."""
        return items

    @abstractmethod
    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """Embed one batch of prepared items: float32 of shape (n, n_features). Called by one thread."""

    def __call__(self, items: Sequence[Any]) -> np.ndarray:
        """Embed items as float32 of shape (n, n_features)."""
        return self.encode(self.prepare(items))


def embed(
    source: ItemSource,
    path: str | os.PathLike[str],
    encoder: Encoder,
    *,
    dtype: Any = "float16",
    normalize: bool = False,
    batch_size: int = 256,
    chunk_mb: float | None = None,
    threads: int | None = None,
    restart: bool = False,
) -> Pool:
    """Embed the items of a source and store the embeddings in a pool.

    Runs in this process: threads read and prepare items ahead of the encoder. Finished chunks of the pool survive any
    crash. The same call resumes and gives bitwise the same pool, since batches do not cross chunks; it refuses to
    resume with another source, encoder or setting, and lists the differences. For a finished pool, it computes nothing.

    `source` is for example from `texts.open_texts`, `images.open_images` or `raster_patches.open_windows`, `encoder`
    from `encoders.text_encoder` or `encoders.image_encoder`; it gets `batch_size` items at once. Rows are stored as
    `dtype`, float16 or float32; `normalize` scales them to unit length, except all-zero rows. Storage chunks have
    `chunk_mb` MiB, at most 64, by default 1/64 of the pool, at least 1: a crash loses only the chunk in progress.
    `threads`, by default one per core but at most 8, read and prepare items; their number does not affect the result.
    `restart` discards existing work; a complete pool stays until the new one is complete.

    Raises InputError if the source is empty, an item cannot be read, a setting is out of range, the existing pool was
    made differently, or the encoder returns NaN, Inf or values that overflow `dtype` (naming the item); StoreError if
    another process is writing the pool, or the disk is full or fails.

    >>> import tempfile
    >>> from hkm_dask.embedding.descriptors import Hog
    >>> class Gray:
    ...     name, fingerprint, ids, columns = "grays", "grays-1", None, {}
    ...     def __len__(self):
    ...         return 5
    ...     def read(self, first, last):
    ...         return [np.full((20, 30, 3), 40 * number, np.uint8) for number in range(first, last)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pool = embed(Gray(), f"{folder}/pool.zarr", Hog())
    ...     print(pool.n_samples, pool.n_features == Hog.n_features, pool.dtype)
    5 True float16
    """
    threads = min(MAX_THREADS, os.cpu_count() or 1) if threads is None else threads
    plan = _plan(source, encoder, dtype, normalize, batch_size, chunk_mb, threads)
    obstacles = partial(_obstacles, plan=plan)
    with store.resumable(path, obstacles, restart=restart, is_empty=_is_empty) as wip:
        if wip is not None:
            job = _Job(source, encoder, _begin(wip, plan, source), normalize, batch_size, threads)
            pool_writer.finish(
                wip,
                job.run(),
                has_ids=source.ids is not None,
                normalize=normalize,
                sources=[source.name],
                columns=source.columns,
                attributes={PLAN: plan, "encoder": encoder.name},
            )
    return open_pool(path)


def _plan(
    source: ItemSource,
    encoder: Encoder,
    dtype: Any,
    normalize: bool,
    batch_size: int,
    chunk_mb: float | None,
    threads: int,
) -> dict[str, Any]:
    """Check the settings; returns everything that determines the bits of the pool."""
    n_items = len(source)
    settings = (
        ("batch_size", batch_size, "leave it out"),
        ("threads", threads, "leave it out"),
        (f"{source.name}: n_items", n_items, "give a source that is not empty"),
    )
    problems = [f"{name}={value} should be at least 1; {fix}" for name, value, fix in settings if value < 1]
    problems += [
        f"column={name} should be a name that no pool or subset uses; rename it"
        for name in source.columns
        if name in layout.OWN_COLUMNS or name.startswith("level_")
    ]
    if problems:
        raise InputError(problems)
    stored = pool_writer.pool_dtype(dtype)
    return {
        "n_items": n_items,
        "source": source.fingerprint,
        "encoder": encoder.fingerprint,
        "n_features": encoder.n_features,
        "dtype": stored.name,
        "normalize": normalize,
        "batch_size": batch_size,
        "chunk_rows": layout.chunk_rows(n_items, encoder.n_features * stored.itemsize, chunk_mb=chunk_mb),
    }


# --- resuming ---------------------------------------------------------------------------------------------------------


def _obstacles(folder: Path, plan: dict[str, Any]) -> list[str]:
    """List the reasons why an existing pool, complete or not, is not the requested one."""
    attributes = read_attributes(folder, missing_ok=True)
    if not attributes and folder.suffix == layout.wip_path("").suffix:
        return []  # a run that was stopped before it began
    kind = "is another store" if attributes else "is no pool"
    if attributes.get("format") != layout.POOL_FORMAT or PLAN not in attributes:
        return [f"{folder} should be a pool that was embedded, it {kind}; give another path, or use restart=True"]
    stored = attributes[PLAN]
    unequal = [key for key in plan if stored.get(key) != plan[key]]
    lines = [f"{key}: {_short(stored.get(key))} there, {_short(plan[key])} asked for" for key in unequal]
    if lines:
        lines.append(
            f"{folder} should have been made from the same items with the same settings; use restart=True to replace it"
        )
    return lines


def _is_empty(wip: Location) -> bool:
    """Return whether an unfinished pool made by `_begin` has no embeddings, for example after its first read failed."""
    attributes = read_attributes(wip)
    if attributes.get("format") != layout.POOL_FORMAT or PLAN not in attributes:
        return False
    try:
        array = open_array(wip / layout.EMBEDDINGS)
    except StoreError:  # not created yet
        return True
    return not any(array.chunk_path(index).exists() for index in range(array.spec.n_chunks))


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _begin(wip: Location, plan: dict[str, Any], source: ItemSource) -> StoredArray:
    """Create or open the unfinished pool; ids and columns are written first, so that errors in them show early."""
    shape, dtype = (plan["n_items"], plan["n_features"]), np.dtype(plan["dtype"])
    if not wip.exists():
        pool_writer.check_space(wip, shape[0] * shape[1] * dtype.itemsize)
    store.create_group(wip, {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION, PLAN: plan})
    store.sweep(wip)
    if source.ids is not None:
        remedy = "give every item a unique id, or omit the ids"
        pool_writer.write_ids(wip, source.ids(), shape[0], remedy)
    for name, pieces in source.columns.items():
        pool_writer.write_column(wip, name, pieces(), shape[0])
    with suppress(StoreError):  # not created yet
        array = open_array(wip / layout.EMBEDDINGS)
        if array.spec.shape == shape and array.spec.plain:
            return array
    return pool_writer.create_embeddings(wip, shape, dtype, plan["chunk_rows"])


# --- embedding --------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """One pass through a source."""

    source: ItemSource
    encoder: Encoder
    array: StoredArray
    normalize: bool
    batch_size: int
    threads: int
    _n_done: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> pool_writer.Stats:
        """Embed all missing chunks; returns the statistics of all chunks, merged in order."""
        spec = self.array.spec
        finished = self._finished()
        self._n_done = sum(stop - start for start, stop in map(spec.chunk_range, finished))
        missing = [index for index in range(spec.n_chunks) if index not in finished]
        stats = pool_writer.Stats(np.zeros(spec.shape[1]))
        with closing(self._ahead(missing)) as batches:
            for index in range(spec.n_chunks):
                stats.add(finished.pop(index) if index in finished else self._embed_chunk(index, batches))
        return stats

    def _finished(self) -> dict[int, pool_writer.Stats]:
        """Check and measure the chunks finished by an earlier run."""
        spec = self.array.spec
        finished: dict[int, pool_writer.Stats] = {}
        for index in range(spec.n_chunks):
            path = self.array.chunk_path(index)
            if not path.exists():
                continue
            try:
                rows = self.array.read_chunk(index)
            except StoreError as error:
                emit("warning", message=f"{error}; it is embedded again")
                continue
            # Measured from whole chunks as stored, so that sums do not depend on whether a run was interrupted.
            finished[index] = pool_writer.measure(rows, rows, np.arange(*spec.chunk_range(index)))
            finished[index].checksums.append(self.array.checksum(index))
        if finished:
            emit("resumed", what=f"{len(finished):,} of {spec.n_chunks:,} chunks were already finished")
        return finished

    def _batches(self, index: int) -> Iterator[tuple[int, int]]:
        start, stop = self.array.spec.chunk_range(index)
        yield from itertools.pairwise([*range(start, stop, self.batch_size), stop])

    def _ahead(self, chunks: Sequence[int]) -> Generator[Sequence[Any], None, None]:
        """Yield the prepared items of every batch of the given chunks, while threads prepare the next batches."""
        spans = (span for index in chunks for span in self._batches(index))
        executor = ThreadPoolExecutor(self.threads, thread_name_prefix="hkm-embed")
        try:
            yield from in_order(executor, lambda span: self._prepare(*span), spans, self.threads)
        finally:
            self._stopped.set()
            executor.shutdown(cancel_futures=True)

    def _prepare(self, first: int, last: int) -> Sequence[Any]:
        ready: list[Any] = []
        for start, stop in itertools.pairwise([*range(first, last, ITEMS_AT_ONCE), last]):
            if self._stopped.is_set():
                break
            prepared = self.encoder.prepare(self.source.read(start, stop))
            if len(prepared) != stop - start:
                raise InputError(
                    f"{self.source.name}: n_items={len(prepared)} should be {stop - start} for items {start}:{stop}; "
                    "fix the source or the encoder"
                )
            ready.extend(prepared)
        return ready

    def _embed_chunk(self, index: int, batches: Iterator[Sequence[Any]]) -> pool_writer.Stats:
        start, stop = self.array.spec.chunk_range(index)
        rows = np.empty((stop - start, self.array.spec.shape[1]), dtype=self.array.spec.dtype)
        for first, last in self._batches(index):
            rows[first - start : last - start] = self._embed_batch(next(batches), first, last)
            self._n_done += last - first
            emit("progress", stage=STAGE, done=self._n_done, total=self.array.spec.shape[0])
        return pool_writer.write_chunk(self.array, index, [(rows, np.arange(start, stop))], normalize=False)

    def _embed_batch(self, prepared: Sequence[Any], first: int, last: int) -> np.ndarray:
        """Embed one batch; raises InputError for embeddings that a pool cannot store."""
        embedded = np.asarray(self.encoder.encode(prepared))
        shape = (last - first, self.encoder.n_features)
        if embedded.shape != shape or embedded.dtype.kind != "f":
            got = f"{embedded.dtype}{embedded.shape}"
            raise InputError(f"{self.encoder.name}: embeddings={got} should be floats of {shape}; fix the encoder")
        rows = pool_writer.convert(embedded, self.array.spec.dtype, self.normalize)
        stats = pool_writer.measure(embedded, rows, np.arange(first, last))
        if stats.nonfinite:
            raise InputError(
                f"{self.encoder.name}: embedding={self._name(int(stats.nonfinite[0][0]))} should be finite, it has NaN "
                "or Inf; check that item, or use another model"
            )
        pool_writer.check_overflow(stats, rows.dtype)
        return rows

    def _name(self, item: int) -> str:
        """Describe an item for messages, with its id if it has one."""
        name = f"item {item} of {self.source.name}"
        if self.source.ids is None:
            return name
        ids = itertools.chain.from_iterable(piece.tolist() for piece in self.source.ids())
        return f"{name} ({next(itertools.islice(ids, item, None))})"
