"""The engine of a worker: where it keeps rows, finds their nearest centroids and adds them up.

There is one engine for processors (`cpu.CpuEngine`) and one for a GPU (`cuda.CudaEngine`), with the same methods and
the same results. Lloyd's iteration, seeding and assignment differ in what they do with a tile of rows once it is
labeled, not in how they pass over the rows of a part; the pass is `fold`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import to_host, to_module
from hkm_dask.compute.block_cache import BlockCache
from hkm_dask.compute.partition import Part
from hkm_dask.compute.shared_arrays import RecentCache, SharedArray
from hkm_dask.data.rows import Origin
from hkm_dask.search.fixed_point import FixedPointSum, add_limbs
from hkm_dask.search.geometry import Geometry

#: Share of the centroids moved beyond which it does not pay to leave the others out.
_NEARLY_ALL = 0.9
#: Bytes of what was made of centroids that are no longer in use.
_MADE_BYTES = 16 << 20
_NO_WEIGHTS = np.empty(0, np.int64)
#: Features below which a walk makes a distance as fast as it is looked up in a table.
LEAST_FEATURES = 16
#: Points chosen by a greedy walk, in order, and the weighted sum of D² that each choice left.
Walked = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass
class Assignment:
    """The nearest centroids known of a part's rows, where the engine keeps them."""

    labels: Any  # int32 (n_rows,): -1 where nothing is known
    distances: Any  # float64 (n_rows,): squared L2, infinity where nothing is known

    @property
    def n_bytes(self) -> int:
        """Bytes it takes."""
        return int(self.labels.nbytes + self.distances.nbytes)


@dataclass
class RowTile:
    """A few thousand consecutive rows, or on a device a block of them, and what is known of them."""

    #: Row numbers.
    start: int
    stop: int
    rows: Any  # float32, on a device float16 too, (stop - start, n_features): valid until the next tile
    #: (stop - start,): views into the part's `Assignment`; a search brings them up to date.
    labels: Any
    distances: Any
    weights: Any  # int64 (stop - start,) or (0,): empty for weights of one
    previous_labels: Any = None  # int32: labels before `TileSearch.update`


@dataclass(frozen=True)
class GridWalk:
    """What a greedy walk over a group of points needs, brought to a grid of 16 bits, as a device takes it."""

    grid: NDArray[np.int16]  # (n_points, width): points in steps from their middle, and zeros
    norms: NDArray[np.float32]  # (n_points,): their squared norms
    square: np.float32  # of a step
    weights: NDArray[np.float64]  # (n_points,)
    draws: NDArray[np.float64]  # (n_steps, n_trials): uniform numbers
    n_features: int

    @property
    def n_points(self) -> int:
        """Points of the group."""
        return len(self.grid)

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory it takes: squared distances between points, the points, what steps need and give."""
        n = self.n_points
        return 4 * n * n + 2 * self.grid.size + 12 * n + 8 * self.draws.size + 12 * len(self.draws)

    def first(self, n_points: int, n_steps: int) -> GridWalk:
        """The walk over the first points alone, so many steps."""
        some = slice(n_points)
        return replace(
            self, grid=self.grid[some], norms=self.norms[some], weights=self.weights[some], draws=self.draws[:n_steps]
        )


class CentroidIndex(Protocol):
    """A set of centroids made ready to be searched."""

    @property
    def n_bytes(self) -> int:
        """Bytes it takes."""

    def only(self, chosen: NDArray[np.bool_]) -> Self:
        """An index of the centroids `chosen` (n_clusters,), under the numbers they have in this one."""

    def nearest(
        self, rows: Any, labels: Any, distances: Any, operand: Any = None, first: int = 0, which: Any = None
    ) -> int | None:
        """Bring `labels` and `distances` up to date with these centroids, numbered from `first`.

        Only the rows `which` are looked at, if given; `operand` is the engine's form of the rows, if it was kept.
        Returns the number of distances measured directly, where that is known.
        """


class Engine(ABC):
    """Where a worker computes."""

    xp: ModuleType  # NumPy or CuPy
    cache: BlockCache  # what the worker remembers of blocks and parts, in the memory it computes in
    busy_rows: int  # that a search should be given to keep a thread, or a device, busy
    #: Those of `cpu.kernels`, for arrays of the engine.
    label_distances: Callable[..., None]
    add_rows: Callable[..., None]
    move_rows: Callable[..., int | None]
    #: Adds distances to their exact sum; see `FixedPointSum.add`.
    add_limbs: Callable[..., None] = staticmethod(add_limbs)
    #: Places of rows, on the host, in the order of label (int32), then of key (uint64), then of place; None where
    #: processors sort them as soon.
    order: Callable[[NDArray[np.int32], NDArray[np.uint64]], NDArray[np.int64] | None] = staticmethod(lambda *_: None)

    def __init__(self) -> None:
        # Things made of centroids, once per process. What the last few passes used is enough: memory given back is used
        # again, fresh pages cost time.
        self.made = RecentCache(most_bytes=_MADE_BYTES)

    # -- arrays --------------------------------------------------------------------------------------------------------

    def put(self, array: Any) -> Any:
        """Bring an array where the engine keeps its own; nothing is copied that is there already."""
        return to_module(array, self.xp)

    def host(self, array: Any) -> NDArray[Any]:
        """Copy an array to host memory, unless it is there already."""
        return to_host(array)

    def zeros(self, *shape: int) -> Any:
        """An array of int64 zeros."""
        return self.xp.zeros(shape, self.xp.int64)

    def unknown(self, n_rows: int) -> Assignment:
        """An assignment of which nothing is known yet."""
        return Assignment(self.xp.full(n_rows, -1, self.xp.int32), self.xp.full(n_rows, self.xp.inf))

    def furthest(self, distances: Any, n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distances and places of the `n` rows furthest from their centroids, ties to the lowest; on the host."""
        if len(distances) > n:
            least = self.xp.partition(distances, len(distances) - n)[len(distances) - n]
            places = self.xp.flatnonzero(distances >= least)
        else:
            places = self.xp.arange(len(distances))
        values, rows = self.host(distances[places]), self.host(places).astype(np.int64)
        order = np.lexsort((rows, -values))[:n]
        return values[order], rows[order]

    # -- what is remembered from pass to pass --------------------------------------------------------------------------

    @abstractmethod
    def room(self, part: Part) -> int:
        """Bytes the cache may take while this part is worked on."""

    def pop(self, part: Part, kind: str, run: str) -> Any | None:
        """Take back what a run remembered about a part, of some kind, or None; it is forgotten until it is kept again.

        What is being changed must not be found by a task that repeats this one after a failure.
        """
        key = (kind, part.start, part.stop)
        entry = self.cache.get(part.rows.key, key)
        if entry is None or entry[0] != run:
            return None
        self.cache.put(part.rows.key, key, ("", None), 0, self.room(part))
        return entry[1]

    def keep(self, part: Part, kind: str, run: str, value: Any, n_bytes: int) -> None:
        """Remember a value of `n_bytes` about a part for the next pass of the same run, if there is room; see `pop`."""
        self.cache.put(part.rows.key, (kind, part.start, part.stop), (run, value), n_bytes, self.room(part))

    # -- what is made of centroids, once per process -------------------------------------------------------------------

    def array(self, shared: SharedArray) -> Any:
        """A shared array, C-contiguous, where the engine keeps its own."""
        if self.xp is np:
            return np.ascontiguousarray(shared.get())
        return self.made.get(("array", shared.name), (shared,), lambda: self.put(np.ascontiguousarray(shared.get())))

    def moved(self, centroids: SharedArray, before: SharedArray) -> NDArray[np.bool_]:
        """Which centroids are no longer where they were before, shape (n_clusters,); on the host."""
        return self.made.get(
            ("moved", centroids.name, before.name),
            (centroids, before),
            lambda: (centroids.get() != before.get()).any(axis=1),
        )

    def stayed(self, centroids: SharedArray, before: SharedArray | None) -> Any:
        """Which centroids are where they were before, shape (n_clusters,), or (0,) where none is known to be."""
        if before is None:
            return self.put(np.empty(0, np.bool_))
        return self.made.get(
            ("stayed", centroids.name, before.name),
            (centroids, before),
            lambda: self.put(~self.moved(centroids, before)),
        )

    # -- rows ----------------------------------------------------------------------------------------------------------

    def prepare(self, n_features: int, dtype: np.dtype, precision: str) -> None:  # noqa: B027
        """Begin what takes its time before rows of such a width and type are searched; nothing on processors."""

    @abstractmethod
    def blocks(self, part: Part) -> Iterator[tuple[int, Any]]:
        """Yield ``(first row, rows)`` of a part, as many rows at a time as the engine takes at once."""

    @abstractmethod
    def row_dtype(self, dtype: np.dtype) -> np.dtype:
        """Type in which the engine computes with rows of a type."""

    @abstractmethod
    def operand(self, rows: Any, geometry: Geometry, origin: Origin | None = None) -> Any:
        """The form of rows, an array of the engine, that indexes of this geometry search; None if they make it.

        It is taken from what is kept of the rows that these are copies of, where `origin` tells which, and all is kept.
        """

    @abstractmethod
    def walked_rows(self, operand: Any) -> int:
        """How many rows, of such an operand, are each compared with all before it sooner than halved and searched."""

    @abstractmethod
    def accept_in_order(
        self, rows: Any, some: Any, limits: Any, operand: Any, geometry: Geometry
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Tell which of some rows lie beyond their limits from all before them that it accepts; on the host.

        `some` are their numbers, in order, and `limits` squared distances, of all rows, as the `operand` is.
        """

    @abstractmethod
    def index(self, centroids: Any, geometry: Geometry) -> CentroidIndex:
        """An index of centroids, on the host or of the engine, for searches too few to have their form tried."""

    def index_of_some(self, rows: Any, some: Any, operand: Any, geometry: Geometry) -> CentroidIndex:
        """Do as `index` for some of the rows, by their numbers; `operand` is that of all."""
        return self.index(rows[some], geometry)

    @abstractmethod
    def search(self, part: Part, geometry: Geometry, phase: str, assignment: Assignment) -> TileSearch:
        """A search for the tiles of a part; see `TileSearch`."""

    def walks_groups(self, n_features: int) -> bool:
        """Whether greedy walks over many groups of points of such a width are made side by side, see `walk_groups`."""
        return False

    def walk_groups(self, walks: Sequence[GridWalk]) -> list[Walked | None]:
        """Walk through groups of points side by side; None for each that processors have to walk through."""
        return [None] * len(walks)

    def batches(self, geometry: Geometry, dtype: np.dtype) -> bool:
        """Whether the passes of many small k-means over rows of a type can be made together, see `fit_groups`.

        On a CPU it would not pay.
        """
        return False


class TileSearch(ABC):
    """Finds the nearest centroids of a part's tiles, in the form that is fastest for these rows.

    That depends on how much is known beforehand: on the phase that the pass belongs to, and on the assignment of the
    part when it begins.
    """

    #: Makes a `CentroidIndex` of centroids, a geometry and a form.
    make_index: Callable[[NDArray[np.float32], Geometry, Any], CentroidIndex]

    def __init__(self, engine: Engine, part: Part, geometry: Geometry, phase: str, assignment: Assignment) -> None:
        self.engine, self.part, self.geometry, self.phase = engine, part, geometry, phase
        n_labeled = int(engine.xp.count_nonzero(assignment.labels >= 0))
        self.any_labeled, self.all_labeled = n_labeled > 0, n_labeled == len(assignment.labels)

    @abstractmethod
    def form(self, tile: RowTile, centroids: SharedArray) -> Any:
        """The form that finds the nearest centroids of such rows soonest: a choice measured once."""

    @abstractmethod
    def operand(self, tile: RowTile, index: Any) -> Any:
        """The rows as the index takes them, or None to have it make them."""

    def index_of_all(self, centroids: SharedArray, form: Any) -> Any:
        """An index of centroids in a form."""
        return self.make_index(centroids.get(), self.geometry, form)

    def index(self, tile: RowTile, centroids: SharedArray, before: SharedArray | None = None) -> Any:
        """The index of centroids for these rows; of those alone that have moved since `before`, if given."""
        form, made, geometry = self.form(tile, centroids), self.engine.made, self.geometry
        key = (centroids.name, geometry.name, form)
        whole = partial(made.get, key, (centroids,), lambda: self.index_of_all(centroids, form))
        if before is None:
            return whole()
        moved = self.engine.moved(centroids, before)
        return made.get((*key, before.name), (centroids, before), lambda: whole().only(moved))

    def measure(self, tile: RowTile, centroids: SharedArray, before: SharedArray | None = None) -> None:
        """Measure a tile's distances to the centroids of its labels; those to centroids as in `before` are kept."""
        if not self.any_labeled:
            tile.distances[:] = np.inf
            return
        engine = self.engine
        stayed = engine.stayed(centroids, before)
        engine.label_distances(tile.rows, engine.array(centroids), stayed, tile.labels, tile.distances)

    def nearest(self, tile: RowTile, centroids: SharedArray, first: int = 0) -> None:
        """Bring a tile's labels and distances up to date with `centroids`, numbered from `first`."""
        index = self.index(tile, centroids)
        index.nearest(tile.rows, tile.labels, tile.distances, self.operand(tile, index), first)

    def update(self, tile: RowTile, centroids: SharedArray, before: SharedArray | None = None) -> None:
        """Label a tile by its nearest centroids, beginning with those that its labels name.

        A row that is no further from its own centroid than it was cannot have come closer to one that stayed: among
        those that stayed its own was the nearest. It needs to be measured against the ones that moved only. Without
        `before`, the centroids that labels and distances belong to, labels are good for a hint and no more.
        """
        if before is None or self.engine.moved(centroids, before).mean() > _NEARLY_ALL:
            tile.previous_labels = tile.labels.copy()
            self.measure(tile, centroids, before)
            self.nearest(tile, centroids)
            return
        further, others = self.split(tile, centroids, before)
        self.nearest_of(tile, self.index(tile, centroids), further, self.index(tile, centroids, before), others)

    def split(self, tile: RowTile, centroids: SharedArray, before: SharedArray) -> tuple[Any, Any]:
        """Do as `measure`, and give the rows that are further from their centroid than they were, and the others."""
        tile.previous_labels, old = tile.labels.copy(), tile.distances.copy()
        self.measure(tile, centroids, before)
        further, xp = tile.distances > old, self.engine.xp
        return xp.flatnonzero(further), xp.flatnonzero(~further)

    def nearest_of(self, tile: RowTile, index: Any, further: Any, moved: Any, others: Any) -> None:
        """Bring the rows `further` up to date with an index of all centroids, the `others` with one of the moved."""
        operand = self.operand(tile, index)
        index.nearest(tile.rows, tile.labels, tile.distances, operand, which=further)
        moved.nearest(tile.rows, tile.labels, tile.distances, operand, which=others)


def fold(
    part: Part,
    engine: Engine,
    assignment: Assignment,
    search: Callable[[RowTile], None],
    consume: Callable[[RowTile], None] | None = None,
    *,
    geometry: Geometry,
    weights: SharedArray | None = None,
) -> FixedPointSum:
    """Pass over the rows of a part: label every tile, add up its distances, and have it consumed.

    `search` labels a tile, as `TileSearch.update` does, and brings the part's `assignment` up to date; `consume` uses
    the labeled tile. `weights` are int64 (n_rows,), of all rows.

    Gives the weighted sum of the squared distances, in units of the geometry's `distance_scale`: the same for any order
    and any cut of the rows; see `Geometry.distance_sum`.
    """
    part_weights = None if weights is None else weights.get()[part.start : part.stop]
    total = geometry.distance_sum(part.stop - part.start if part_weights is None else int(part_weights.sum()))
    for tile in tiles(part, engine, assignment, part_weights):
        search(tile)
        total.add(tile.distances, tile.weights, engine.add_limbs)
        if consume is not None:
            consume(tile)
    return total


def tiles(
    part: Part, engine: Engine, assignment: Assignment, weights: NDArray[np.int64] | None = None
) -> Iterator[RowTile]:
    """The rows of a part, tile by tile, with views into its assignment; `weights` are those of its rows, if any."""
    no_weights = engine.put(_NO_WEIGHTS)
    for first, rows in engine.blocks(part):
        local = slice(first - part.start, first - part.start + len(rows))
        of_tile = no_weights if weights is None else engine.put(weights[local])
        yield RowTile(first, first + len(rows), rows, assignment.labels[local], assignment.distances[local], of_tile)
