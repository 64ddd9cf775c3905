"""The arrays of a tree, read in whole or in part with every chunk checked, and cached within a limit."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.compute.runner import n_processors
from hkm_dask.data import layout
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.files import empty_to_read
from hkm_dask.data.kept_chunks import KeptChunks
from hkm_dask.data.layout import ArraySpec
from hkm_dask.data.objects import ObjectPath, location
from hkm_dask.errors import InputError, is_whole
from hkm_dask.hierarchy.sorting.members import starts

#: Bytes of a tree's chunks that are cached: the centroids of a million clusters with 64 features, and as much again.
KEPT_BYTES = 512 << 20
#: Chunks of an object store read concurrently when values of many are gathered.
_OBJECTS_AT_ONCE = 8
#: Bytes of chunks on disk that one query may add to the cache; beyond that, each chunk is read into the memory of an
#: earlier one, as allocating memory for all takes longer than reading them again. Repeated queries cache all of them.
_KEPT_AT_ONCE = 16 << 20
#: Share of an array's values beyond which it is read whole to gather them.
_WHOLE_SHARE = 1 / 8


class Scan:
    """What one query may add to the cache, and the buffers into which its threads read other chunks."""

    def __init__(self, spec: ArraySpec, n_kept: int) -> None:
        self._spec, self._to_keep, self._own = spec, iter(range(n_kept)), threading.local()

    def buffer(self) -> NDArray[Any] | None:
        """Return the buffer for this thread's next chunk, reusing that of the last; None if the chunk may be cached."""
        if next(self._to_keep, None) is not None:
            return None
        if not hasattr(self._own, "buffer"):
            self._own.buffer = empty_to_read((self._spec.chunk_rows, *self._spec.shape[1:]), self._spec.dtype)
        buffer: NDArray[Any] = self._own.buffer
        return buffer


class TreeArrays:
    """The arrays of a tree: a query reads the chunks it needs, `read` the whole of an array, once.

    Names are those of the stored arrays, except "members" and "indptr", in which the level is omitted. Up to
    `kept_bytes` of chunks are cached for the next query.
    """

    def __init__(self, tree: xr.DataTree, kept_bytes: int = KEPT_BYTES) -> None:
        self._tree = tree
        self._read: dict[tuple[int, str], NDArray[Any]] = {}
        self._stored: dict[tuple[int, str], StoredArray | None] = {}
        self._kept = KeptChunks(kept_bytes)
        self.n_levels = sum(name.startswith("level_") for name in tree.children)

    # -- names and shapes ----------------------------------------------------------------------------------------------

    def check_level(self, level: int) -> None:
        """Raise InputError if there is no such level."""
        if not self.n_levels:
            raise InputError("n_levels=0 should be at least 1; ask the whole tree, not a level of it")
        if not is_whole(level) or not 1 <= level <= self.n_levels:
            rule = f"should be between 1 and {self.n_levels}; choose one of the tree's levels"
            raise InputError(f"level={np.asarray(level).tolist()!r} {rule}")

    def n_rows(self, level: int) -> int:
        """Return the number of rows of a level, including those left out: samples, or clusters of the level below."""
        return self._size(level, layout.SAMPLE if level == 1 else f"cluster_{level - 1}")

    def n_clusters(self, level: int) -> int:
        """Return the number of clusters of a level."""
        return self._size(level, f"cluster_{level}")

    def n_features(self, level: int) -> int:
        """Return the number of coordinates of a centroid of a level."""
        return self._size(level, layout.FEATURE)

    def _size(self, level: int, dimension: str) -> int:
        self.check_level(level)
        return int(self._tree.children[f"level_{level}"].sizes[dimension])

    def _variable(self, level: int, name: str) -> xr.DataArray:
        self.check_level(level)
        suffix = f"_{level}" if name in ("members", "indptr") else ""
        return self._tree.children[f"level_{level}"].data_vars[name + suffix]

    def stored(self, level: int, name: str) -> StoredArray | None:
        """Return the array on disk or at a URL, bound to its state when the tree was opened; None if in memory."""
        if (level, name) not in self._stored:
            self._stored[level, name] = self._find(self._variable(level, name), level)
        return self._stored[level, name]

    def _find(self, array: xr.DataArray, level: int) -> StoredArray | None:
        source = self._tree.encoding.get("source")
        if source is None or array.chunks is None:
            return None
        stored = open_array(location(source) / f"level_{level}/{array.name}")
        fingerprint = array.attrs.get(layout.FINGERPRINT, "")
        if stored.shape != array.shape and stored.fingerprint == fingerprint:
            where = f"level_{level}/{array.name}"
            rule = f"{stored.shape}, as it is stored; ask the whole tree, and select from its answer"
            raise InputError(f"shape={array.shape} of {where} should be {rule}")
        return replace(stored, fingerprint=fingerprint)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, level: int, name: str) -> NDArray[Any]:
        """Read an array of a level (from 1), such as "labels" or "members"; it must not be written to.

        Raises
        ------
        InputError
            If there is no such level.
        StoreError
            If a chunk is missing, truncated or altered.
        """
        if (level, name) not in self._read:
            stored = self.stored(level, name)
            # Reading from disk directly is faster than through Dask.
            whole = self._variable(level, name).to_numpy() if stored is None else stored.read(0, stored.shape[0])
            self._read[level, name] = whole
        return self._read[level, name]

    def _partly(self, level: int, name: str) -> StoredArray | None:
        """Return the array if its chunks should be read one by one, otherwise None."""
        return None if (level, name) in self._read else self.stored(level, name)

    def _chunk(self, stored: StoredArray, level: int, name: str, index: int, scan: Scan | None = None) -> NDArray[Any]:
        """Return a chunk from the cache or read it; it is then cached, unless it exceeds the limit of a `scan`."""
        chunk = self._kept.get((level, name, index))
        if chunk is None and scan is not None and (buffer := scan.buffer()) is not None:
            low, high = stored.spec.chunk_range(index)
            return stored.read(low, high, buffer[: high - low])
        if chunk is None:
            chunk = stored.read_chunk(index)
            self._kept.put((level, name, index), chunk)
        return chunk

    def part(self, level: int, name: str, start: int, stop: int) -> NDArray[Any]:
        """Copy the values ``start:stop`` of an array; raises as `read` does."""
        stored = self._partly(level, name)
        if stored is None:
            return self.read(level, name)[start:stop].copy()
        out = np.empty((stop - start, *stored.shape[1:]), stored.dtype)
        for index in stored.spec.chunks(start, stop):
            low, high = stored.spec.chunk_range(index)
            first, last = max(low, start), min(high, stop)
            out[first - start : last - start] = self._chunk(stored, level, name, index)[first - low : last - low]
        return out

    def take(self, level: int, name: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Gather values of an array by index, in any order; raises as `read` does."""
        stored = self._partly(level, name)
        if stored is None:
            return self.read(level, name)[rows]
        unique, places = rows, None
        if not (rows.ndim == 1 and (rows[1:] > rows[:-1]).all()):
            unique, places = np.unique(rows, return_inverse=True)
        values = np.empty((len(unique), *stored.shape[1:]), stored.dtype)
        chunks = unique // stored.spec.chunk_rows
        spans = list(itertools.pairwise(np.flatnonzero(np.diff(chunks, prepend=-1, append=-1)).tolist()))
        todo, scan = iter(spans), self.scan(level, name)

        def take_of_chunks(_: int = 0) -> None:
            for first, last in todo:
                index = int(chunks[first])
                offsets = unique[first:last] - stored.spec.chunk_range(index)[0]
                values[first:last] = self._chunk(stored, level, name, index, scan)[offsets]

        at_once = _OBJECTS_AT_ONCE if isinstance(stored.place, ObjectPath) else n_processors()
        n_threads = min(sum(self._kept.get((level, name, int(chunks[first]))) is None for first, _ in spans), at_once)
        if n_threads < 2:
            take_of_chunks()
        else:
            with ThreadPoolExecutor(n_threads, "hkm-read") as threads:
                list(threads.map(take_of_chunks, range(n_threads)))
        return values if places is None else values[places.reshape(np.shape(rows))]

    def sums(self, counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return sums of level-1 `counts` over the clusters below each cluster, for every level."""
        levels = [counts]
        for t in range(2, self.n_levels + 1):
            parents = self.read(t, "labels")
            used = parents >= 0
            # Sums below 2**53 are exact in float64.
            sums = np.bincount(parents[used], levels[-1][used], minlength=self.n_clusters(t))
            levels.append(sums.astype(np.int64))
        return levels

    def blocks(self, level: int, name: str) -> list[tuple[int, int]]:
        """Return the ranges of an array that `block` reads one at a time."""
        stored = self._partly(level, name)
        if stored is None:
            return [(0, len(self.read(level, name)))]
        return [stored.spec.chunk_range(index) for index in range(stored.spec.n_chunks)]

    def scan(self, level: int, name: str) -> Scan | None:
        """Return a `Scan` for a query that may read much of an array; None if it is in memory."""
        stored = self._partly(level, name)
        if stored is None:
            return None
        at_once = self._kept.most_bytes if isinstance(stored.place, ObjectPath) else _KEPT_AT_ONCE
        return Scan(stored.spec, max(1, at_once // stored.spec.chunk_file_bytes))

    def block(self, level: int, name: str, bounds: tuple[int, int], scan: Scan | None = None) -> NDArray[Any]:
        """Read one of `blocks`; read-only, and valid until the same thread reads another with the same `scan`.

        Without a scan, it is cached if the whole array can be.
        """
        stored = self._partly(level, name)
        if stored is None:
            return self.read(level, name)
        index = bounds[0] // stored.spec.chunk_rows
        # If the array exceeds the cache, the chunks used last are never the next ones needed.
        if scan is None and stored.shape[0] * stored.spec.row_bytes > self._kept.most_bytes // 2:
            return stored.read_chunk(index)
        return self._chunk(stored, level, name, index, scan)

    # -- the hierarchy -------------------------------------------------------------------------------------------------

    def ancestors(
        self, labels: NDArray[np.int32], level: int | None = None, *, first: int = 1
    ) -> list[NDArray[np.int32]]:
        """Return clusters of level `first`, then those above them, up to `level` or the top; -1 stays -1."""
        path = [labels]
        for t in range(first + 1, (level or self.n_levels) + 1):
            used = path[-1] >= 0
            above = np.full(used.shape, -1, np.int32)
            if np.count_nonzero(used) > _WHOLE_SHARE * self.n_rows(t):
                self.read(t, "labels")
            above[used] = self.take(t, "labels", path[-1][used])
            path.append(above)
        return path

    def children(self, level: int, clusters: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the concatenated children of clusters of a level, closest first within each, and their offsets."""
        bounds = self.take(level, "indptr", np.stack([clusters, clusters + 1]))
        return self.take(level, "members", ranges(bounds[0], np.diff(bounds, axis=0)[0])), starts(bounds[1] - bounds[0])

    def children_of(self, level: int, cluster: int) -> NDArray[np.int64]:
        """Return the children of one cluster, closest first."""
        start, stop = self.part(level, "indptr", cluster, cluster + 2).tolist()
        return self.part(level, "members", start, stop)


def ranges(first: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate ``range(f, f + s)`` for each of `first` and `sizes`.

    >>> ranges(np.array([7, 0, 3]), np.array([2, 0, 3]))
    array([7, 8, 3, 4, 5])
    """
    bounds = starts(sizes)
    return np.arange(bounds[-1]) + np.repeat(first - bounds[:-1], sizes)
