"""Arrays shared by many tasks: by reference within a process, by file name between processes.

Centroids may take hundreds of megabytes. They are not copied into every task's arguments, nor scattered, because losing
the only worker that holds a scattered array fails the run; a file, renamed into place by the task that wrote it, can be
read by any worker and rewritten, with the same bytes, by a repeated task. If workers share an object store but no
folder, the files are objects.
"""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.files import careful
from hkm_dask.data.npy import npy_pieces, read_npy, read_npy_rows
from hkm_dask.data.objects import ObjectPath, each, location
from hkm_dask.errors import StoreError

#: Bytes of an array copied at once for upload to an object store.
_PIECE_BYTES = 8 << 20

_caches: weakref.WeakSet[RecentCache] = weakref.WeakSet()


class RecentCache:
    """Cache of values derived from shared arrays, each made once per process while it is in use.

    The least recently used are dropped when all together exceed `limit` bytes, or `most_bytes` if that is less; the
    `n_least` used last always stay, since a pass over many tiles requests them again and again.

    >>> cache, shared = RecentCache(), SharedArray(array=np.ones(3))
    >>> cache.get("twice", (shared,), lambda: 2 * shared.get()) is cache.get("twice", (shared,), lambda: 1 / 0)
    True
    """

    #: Size limit in bytes of each such cache; see `limit_recent`.
    limit = 256 << 20

    def __init__(self, n_least: int = 5, most_bytes: int | None = None) -> None:
        self._n_least, self._most_bytes = n_least, most_bytes
        self._entries: OrderedDict[Hashable, tuple[Any, tuple[np.ndarray | None, ...], int]] = OrderedDict()
        #: Bytes of all entries: updated incrementally, as there may be thousands.
        self.used = 0
        self._lock = threading.RLock()
        _caches.add(self)

    def get(self, key: Hashable, sources: tuple[SharedArray, ...], make: Callable[[], Any]) -> Any:
        """Return the value that `make` derives from the shared arrays `sources`, made by the first thread that asks.

        It must have the attribute ``n_bytes`` or ``nbytes``.
        """
        arrays = tuple(source.array for source in sources)
        with self._lock:
            value, origins, _ = self._entries.get(key, (None, (), 0))
            # The id of a deleted array may be reused by another one.
            if value is None or list(map(id, origins)) != list(map(id, arrays)):
                self.drop(key)
                self._forget_beyond(self._n_least - 1)  # makes space before there is one more
                value = make()
                n_bytes = getattr(value, "n_bytes", None)
                n_bytes = int(value.nbytes if n_bytes is None else n_bytes)
                self.drop(key)  # `make` may have requested it too
                self._entries[key] = value, arrays, n_bytes
                self.used += n_bytes
            self._entries.move_to_end(key)
            self._forget_beyond(self._n_least)
            return value

    def _forget_beyond(self, n_least: int) -> None:
        while len(self._entries) > n_least and self.used > min(self.limit, self._most_bytes or self.limit):
            self.drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self.used = 0

    def drop(self, key: Hashable) -> None:
        """Drop one entry."""
        with self._lock:
            self.used -= self._entries.pop(key, (None, (), 0))[2]


def limit_recent(memory_budget: int) -> None:
    """Limit each such cache of this process to an eighth of its memory budget."""
    RecentCache.limit = memory_budget // 8


def forget_recent() -> None:
    """Empty these caches of the process; all entries can be made again."""
    for cache in list(_caches):
        cache.clear()


# A pass reads the centroids, the previous ones, the weights and the basis for every tile.
_loaded = RecentCache(n_least=4)


@dataclass(frozen=True)
class SharedArray:
    """A handle on an array: the array itself, or the file that holds it."""

    path: str | None = None  # path or URL of a `.npy` file that every worker can access
    array: np.ndarray | None = field(default=None, repr=False)  # the array, if there is only one process

    @property
    def name(self) -> object:
        """Identity of this array among those in use."""
        return self.path or id(self.array)

    def get(self) -> np.ndarray:
        """Return the array, read-only; it is read at most once per process while it is in use.

        Raises StoreError if this process cannot read the file.
        """
        if self.array is not None:
            return self.array
        array: np.ndarray = _loaded.get(self.path, (), self._load)
        return array

    def _load(self) -> np.ndarray:
        try:
            with location(str(self.path)).open("rb") as file:
                return read_npy(file, f"work file {self.path}")
        except OSError as error:
            raise StoreError(
                f"work file {self.path} should be readable by every worker; put the output on a shared file system"
            ) from error

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows ``start:stop`` only.

        >>> SharedArray(array=np.array([7, 8, 9])).read(1, 3)
        array([8, 9])
        """
        if self.array is not None:
            return self.array[start:stop]
        return read_npy_rows(location(str(self.path)), start, stop)

    def delete(self) -> None:
        """Delete the file, if there is one."""
        if self.path is not None:
            location(self.path).unlink(missing_ok=True)
            _loaded.drop(self.path)


@dataclass(frozen=True)
class SharedArrayStore:
    """A place for shared arrays: a folder all workers can access, or the memory of a single process."""

    folder: str | None = None  # a path or URL every worker can access; None keeps arrays in memory

    def put(self, name: str, array: np.ndarray) -> SharedArray:
        """Share an array under a file name without suffix; a name always has the same contents.

        >>> SharedArrayStore().put("zeros", np.zeros(2)).get()
        array([0., 0.])
        """
        if self.folder is None:
            return SharedArray(array=array)
        path = location(self.folder) / f"{name}.npy"
        if isinstance(path, ObjectPath):
            pieces = npy_pieces(array, _PIECE_BYTES)
            if array.nbytes > _PIECE_BYTES:
                path.write_pieces(pieces)
            else:
                path.write_bytes(b"".join(pieces))
            return SharedArray(path=path.url)
        partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")

        def write() -> None:
            with partial.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            partial.replace(path)

        careful(write, f"writing {path}")
        return SharedArray(path=str(path))

    @contextmanager
    def lent(self, name: str, array: np.ndarray | None) -> Iterator[Any]:
        """Share an array under a new name with this prefix, while the context is open; None stays None.

        After a failure it is left to whatever deletes the whole store.

        >>> with SharedArrayStore().lent("zeros", np.zeros(2)) as shared:
        ...     shared.get()
        array([0., 0.])
        """
        shared = None if array is None else self.put(f"{name}-{uuid.uuid4().hex}", array)
        yield shared
        if shared is not None:
            shared.delete()

    @property
    def is_remote(self) -> bool:
        """Whether arrays are objects, which can only be written as a whole."""
        return self.folder is not None and isinstance(location(self.folder), ObjectPath)

    def series(self, name: str, arrays: Sequence[SharedArray]) -> SharedSeries:
        """Return a handle on arrays named by a prefix, a hyphen and a number from 0."""
        return SharedSeries(tuple(arrays), None if self.folder is None else f"{self.folder}/{name}", len(arrays))


@dataclass(frozen=True)
class SharedSeries:
    """Numbered shared arrays, in a few bytes however many there are; see `SharedArrayStore.series`."""

    arrays: tuple[SharedArray, ...] = field(repr=False)
    prefix: str | None
    n_arrays: int

    def __reduce__(self) -> tuple[type[SharedSeries], tuple[Any, ...]]:
        return SharedSeries, (self.arrays if self.prefix is None else (), self.prefix, self.n_arrays)

    def __getitem__(self, number: int) -> SharedArray:
        return self.arrays[number] if self.prefix is None else SharedArray(path=f"{self.prefix}-{number}.npy")

    def read(self, spans: Iterable[tuple[int, int, int]]) -> list[np.ndarray]:
        """Read rows of some of the arrays; a span is an array's number, the first row and one past the last row."""
        place = location(self.prefix or ".")
        return each(lambda span: self[span[0]].read(*span[1:]), spans, place)

    def delete(self) -> None:
        """Delete the files, if there are any."""
        each(lambda number: self[number].delete(), range(self.n_arrays), location(self.prefix or "."))


@dataclass(frozen=True)
class SharedPieces:
    """Concatenated rows of shared arrays; `offsets` are the first row of each, and the number of all rows.

    >>> store = SharedArrayStore()
    >>> arrays = [store.put(f"a-{i}", np.arange(3 * i, 3 * i + 3)) for i in range(2)]
    >>> pieces = SharedPieces(store.series("a", arrays), (0, 3, 6))
    >>> pieces.read(2, 4), pieces.position(5), pieces.n_rows
    (array([2, 3]), 5, 6)
    """

    series: SharedSeries
    offsets: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Number of rows of all arrays."""
        return self.offsets[-1]

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows ``start:stop`` only, by default all."""
        offsets, last = np.array(self.offsets), self.n_rows if stop is None else stop
        some = self.series.read(layout.spans(offsets, start, last))
        return np.concatenate(some) if some else self.series[0].read(0, 0)

    def position(self, value: int) -> int:
        """Return the position of the first value >= `value`, if values are sorted."""
        return bisect_left(range(self.n_rows), value, key=lambda place: int(self.read(place, place + 1)[0]))

    def delete(self) -> None:
        """Delete the files, if there are any."""
        self.series.delete()
