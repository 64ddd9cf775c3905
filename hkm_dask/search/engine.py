"""The engine of a worker: it holds rows, finds their nearest centroids and sums them by cluster.

There is one engine for CPUs (`cpu.CpuEngine`) and one for a GPU (`cuda.CudaEngine`), with the same methods and the same
results. Lloyd's iteration, seeding and assignment share the pass over the rows of a part, which is `fold`; they differ
only in what they do with a tile of rows once it is labeled.
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

#: If more than this share of the centroids moved, leaving the others out does not pay off.
_NEARLY_ALL = 0.9
#: Bytes of data derived from centroids that are kept although the centroids are no longer in use.
_MADE_BYTES = 16 << 20
_NO_WEIGHTS = np.empty(0, np.int64)
#: Below this number of features, a greedy walk computes a distance as fast as it looks it up in a table.
LEAST_FEATURES = 16
#: Points chosen by a greedy walk, in order, and the weighted sum of D² after each choice.
Walked = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass
class Assignment:
    """The nearest centroids found so far for the rows of a part, in the engine's memory."""

    labels: Any  # int32 (n_rows,): -1 if unknown
    distances: Any  # float64 (n_rows,): squared L2, infinity if unknown

    @property
    def n_bytes(self) -> int:
        """Size of the arrays in bytes."""
        return int(self.labels.nbytes + self.distances.nbytes)


@dataclass
class RowTile:
    """A few thousand consecutive rows (on a device, a block of them) with their labels, distances and weights."""

    #: Row numbers.
    start: int
    stop: int
    rows: Any  # float32, on a device float16 too, (stop - start, n_features): valid until the next tile
    #: (stop - start,): views into the part's `Assignment`, which a search updates.
    labels: Any
    distances: Any
    weights: Any  # int64 (stop - start,), or (0,) if all weights are 1
    previous_labels: Any = None  # int32: the labels before `TileSearch.update`


@dataclass(frozen=True)
class GridWalk:
    """Input of a greedy walk over a group of points, quantized to a 16-bit grid, as devices take it."""

    grid: NDArray[np.int16]  # (n_points, width): centered points in grid steps, padded with zeros
    norms: NDArray[np.float32]  # (n_points,): squared norms in grid steps
    square: np.float32  # square of a grid step
    weights: NDArray[np.float64]  # (n_points,)
    draws: NDArray[np.float64]  # (n_steps, n_trials): uniform random numbers
    n_features: int

    @property
    def n_points(self) -> int:
        """Number of points in the group."""
        return len(self.grid)

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory needed: the table of squared distances, the points, the input and output of steps."""
        n = self.n_points
        return 4 * n * n + 2 * self.grid.size + 12 * n + 8 * self.draws.size + 12 * len(self.draws)

    def first(self, n_points: int, n_steps: int) -> GridWalk:
        """Return the walk over the first `n_points` points only, with `n_steps` steps."""
        some = slice(n_points)
        return replace(
            self, grid=self.grid[some], norms=self.norms[some], weights=self.weights[some], draws=self.draws[:n_steps]
        )


class CentroidIndex(Protocol):
    """A set of centroids prepared for searching."""

    @property
    def n_bytes(self) -> int:
        """Size of the index in bytes."""

    def only(self, chosen: NDArray[np.bool_]) -> Self:
        """Return an index of the centroids `chosen` (n_clusters,), with the numbers they have in this one."""

    def nearest(
        self, rows: Any, labels: Any, distances: Any, operand: Any = None, first: int = 0, which: Any = None
    ) -> int | None:
        """Update `labels` and `distances` with these centroids, numbered from `first`.

        If `which` is given, only those rows are searched. `operand` is the engine's form of the rows, if it is cached.
        Returns the number of distances that were computed directly, or None if that is not known.
        """


class Engine(ABC):
    """What a worker computes with, a CPU or a GPU, and the memory that belongs to it."""

    xp: ModuleType  # NumPy or CuPy
    cache: BlockCache  # cached data of blocks and parts, in the memory where the engine computes
    busy_rows: int  # rows to give one search to keep a thread, or a device, busy
    #: The function of that name in `cpu.kernels`, for arrays of the engine.
    label_distances: Callable[..., None]
    add_rows: Callable[..., None]
    move_rows: Callable[..., int | None]
    #: Adds distances to their exact sum; see `FixedPointSum.add`.
    add_limbs: Callable[..., None] = staticmethod(add_limbs)
    #: Sorts rows by label (int32), then key (uint64), then position, and returns their positions, all on the host; None
    #: if sorting on the CPU is as fast.
    order: Callable[[NDArray[np.int32], NDArray[np.uint64]], NDArray[np.int64] | None] = staticmethod(lambda *_: None)

    def __init__(self) -> None:
        # Data derived from centroids, made once per process. Keeping that of the last few passes is enough to reuse its
        # memory, as allocating fresh pages takes time.
        self.made = RecentCache(most_bytes=_MADE_BYTES)

    # -- arrays --------------------------------------------------------------------------------------------------------

    def put(self, array: Any) -> Any:
        """Copy an array to the engine's memory, unless it is there already."""
        return to_module(array, self.xp)

    def host(self, array: Any) -> NDArray[Any]:
        """Copy an array to host memory, unless it is there already."""
        return to_host(array)

    def zeros(self, *shape: int) -> Any:
        """Return an array of int64 zeros."""
        return self.xp.zeros(shape, self.xp.int64)

    def unknown(self, n_rows: int) -> Assignment:
        """Return an assignment with all labels and distances unknown."""
        return Assignment(self.xp.full(n_rows, -1, self.xp.int32), self.xp.full(n_rows, self.xp.inf))

    def furthest(self, distances: Any, n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return distances and positions of the `n` rows furthest from their centroids, on the host; lowest on ties."""
        if len(distances) > n:
            least = self.xp.partition(distances, len(distances) - n)[len(distances) - n]
            places = self.xp.flatnonzero(distances >= least)
        else:
            places = self.xp.arange(len(distances))
        values, rows = self.host(distances[places]), self.host(places).astype(np.int64)
        order = np.lexsort((rows, -values))[:n]
        return values[order], rows[order]

    # -- state cached from pass to pass --------------------------------------------------------------------------------

    @abstractmethod
    def room(self, part: Part) -> int:
        """Return the bytes that the cache may take while this part is processed."""

    def pop(self, part: Part, kind: str, run: str) -> Any | None:
        """Remove from the cache and return what a run kept of some kind for a part; None if there is nothing.

        It is removed because a task that repeats this one after a failure must not find half-updated state.
        """
        key = (kind, part.start, part.stop)
        entry = self.cache.get(part.rows.key, key)
        if entry is None or entry[0] != run:
            return None
        self.cache.put(part.rows.key, key, ("", None), 0, self.room(part))
        return entry[1]

    def keep(self, part: Part, kind: str, run: str, value: Any, n_bytes: int) -> None:
        """Cache a value of `n_bytes` for a part, for the next pass of the same run, if there is room; see `pop`."""
        self.cache.put(part.rows.key, (kind, part.start, part.stop), (run, value), n_bytes, self.room(part))

    # -- data derived from centroids, made once per process ------------------------------------------------------------

    def array(self, shared: SharedArray) -> Any:
        """Return a shared array in the engine's memory, C-contiguous."""
        if self.xp is np:
            return np.ascontiguousarray(shared.get())
        return self.made.get(("array", shared.name), (shared,), lambda: self.put(np.ascontiguousarray(shared.get())))

    def moved(self, centroids: SharedArray, before: SharedArray) -> NDArray[np.bool_]:
        """Return which centroids differ from those before, shape (n_clusters,), on the host."""
        return self.made.get(
            ("moved", centroids.name, before.name),
            (centroids, before),
            lambda: (centroids.get() != before.get()).any(axis=1),
        )

    def stayed(self, centroids: SharedArray, before: SharedArray | None) -> Any:
        """Return which centroids equal those before, shape (n_clusters,), or (0,) if `before` is None."""
        if before is None:
            return self.put(np.empty(0, np.bool_))
        return self.made.get(
            ("stayed", centroids.name, before.name),
            (centroids, before),
            lambda: self.put(~self.moved(centroids, before)),
        )

    # -- rows ----------------------------------------------------------------------------------------------------------

    def prepare(self, n_features: int, dtype: np.dtype, precision: str) -> None:  # noqa: B027
        """Start slow preparations for searching rows of such a width and dtype; does nothing on a CPU."""

    @abstractmethod
    def blocks(self, part: Part) -> Iterator[tuple[int, Any]]:
        """Yield ``(first row, rows)`` of a part, in blocks of the size that the engine processes at once."""

    @abstractmethod
    def row_dtype(self, dtype: np.dtype) -> np.dtype:
        """Return the dtype in which the engine computes with rows of a dtype."""

    @abstractmethod
    def operand(self, rows: Any, geometry: Geometry, origin: Origin | None = None) -> Any:
        """Return rows of the engine in the form that indexes of this geometry search; None if the index converts them.

        If `origin` says which rows these are copies of, and all of those are cached, the cached form is used.
        """

    @abstractmethod
    def walked_rows(self, operand: Any) -> int:
        """Return how many rows with such an operand are faster compared one by one than halved and searched."""

    @abstractmethod
    def accept_in_order(
        self, rows: Any, some: Any, limits: Any, operand: Any, geometry: Geometry
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Tell, on the host, which of `some` rows lie beyond their limits from all accepted rows before them.

        `some` are row numbers, in order; `limits`, squared distances, and `operand` belong to all rows.
        """

    @abstractmethod
    def index(self, centroids: Any, geometry: Geometry) -> CentroidIndex:
        """Make an index of centroids, on the host or the engine, for searches too small to time several forms."""

    def index_of_some(self, rows: Any, some: Any, operand: Any, geometry: Geometry) -> CentroidIndex:
        """Make an index of some of the rows, given by number; `operand` is that of all rows."""
        return self.index(rows[some], geometry)

    @abstractmethod
    def search(self, part: Part, geometry: Geometry, phase: str, assignment: Assignment) -> TileSearch:
        """Return a search for the tiles of a part; see `TileSearch`."""

    def walks_groups(self, n_features: int) -> bool:
        """Tell whether the engine runs greedy walks over many groups of points of such a width in parallel."""
        return False

    def walk_groups(self, walks: Sequence[GridWalk]) -> list[Walked | None]:
        """Run walks over groups of points in parallel; None for each that is left to CPU threads."""
        return [None] * len(walks)

    def batches(self, geometry: Geometry, dtype: np.dtype) -> bool:
        """Tell whether passes of many small k-means over rows of this dtype can be batched, see `fit_groups`.

        On a CPU that would not pay off.
        """
        return False


class TileSearch(ABC):
    """Searches the nearest centroids for the tiles of a part, in the form that is fastest for these rows.

    Which form is fastest depends on how much is known in advance: on the phase of the pass, and on the part's
    assignment at its start.
    """

    #: Makes a `CentroidIndex` from centroids, a geometry and a form.
    make_index: Callable[[NDArray[np.float32], Geometry, Any], CentroidIndex]

    def __init__(self, engine: Engine, part: Part, geometry: Geometry, phase: str, assignment: Assignment) -> None:
        self.engine, self.part, self.geometry, self.phase = engine, part, geometry, phase
        n_labeled = int(engine.xp.count_nonzero(assignment.labels >= 0))
        self.any_labeled, self.all_labeled = n_labeled > 0, n_labeled == len(assignment.labels)

    @abstractmethod
    def form(self, tile: RowTile, centroids: SharedArray) -> Any:
        """Return the fastest form for such a tile, which is measured only once."""

    @abstractmethod
    def operand(self, tile: RowTile, index: Any) -> Any:
        """Return the rows in the form that the index takes, or None to have the index convert them."""

    def index_of_all(self, centroids: SharedArray, form: Any) -> Any:
        """Make an index of all centroids in a form."""
        return self.make_index(centroids.get(), self.geometry, form)

    def index(self, tile: RowTile, centroids: SharedArray, before: SharedArray | None = None) -> Any:
        """Return the index of all centroids for a tile; if `before` is given, of those that have moved since."""
        form, made, geometry = self.form(tile, centroids), self.engine.made, self.geometry
        key = (centroids.name, geometry.name, form)
        whole = partial(made.get, key, (centroids,), lambda: self.index_of_all(centroids, form))
        if before is None:
            return whole()
        moved = self.engine.moved(centroids, before)
        return made.get((*key, before.name), (centroids, before), lambda: whole().only(moved))

    def measure(self, tile: RowTile, centroids: SharedArray, before: SharedArray | None = None) -> None:
        """Update a tile's distances to the centroids of its labels; centroids unchanged since `before` are skipped."""
        if not self.any_labeled:
            tile.distances[:] = np.inf
            return
        engine = self.engine
        stayed = engine.stayed(centroids, before)
        engine.label_distances(tile.rows, engine.array(centroids), stayed, tile.labels, tile.distances)

    def nearest(self, tile: RowTile, centroids: SharedArray, first: int = 0) -> None:
        """Update a tile's labels and distances with `centroids`, numbered from `first`."""
        index = self.index(tile, centroids)
        index.nearest(tile.rows, tile.labels, tile.distances, self.operand(tile, index), first)

    def update(self, tile: RowTile, centroids: SharedArray, before: SharedArray | None = None) -> None:
        """Label a tile with its nearest centroids, trying those of its current labels first.

        If a row is no further from its own centroid than it was, no centroid that stayed can now be nearer, as none was
        nearer before; the row is compared only with centroids that moved. `before` holds the centroids to which the
        labels and distances belong; without it, labels are only hints.
        """
        if before is None or self.engine.moved(centroids, before).mean() > _NEARLY_ALL:
            tile.previous_labels = tile.labels.copy()
            self.measure(tile, centroids, before)
            self.nearest(tile, centroids)
            return
        further, others = self.split(tile, centroids, before)
        self.nearest_of(tile, self.index(tile, centroids), further, self.index(tile, centroids, before), others)

    def split(self, tile: RowTile, centroids: SharedArray, before: SharedArray) -> tuple[Any, Any]:
        """Do what `measure` does; returns the rows now further from their centroid than before, and the other rows."""
        tile.previous_labels, old = tile.labels.copy(), tile.distances.copy()
        self.measure(tile, centroids, before)
        further, xp = tile.distances > old, self.engine.xp
        return xp.flatnonzero(further), xp.flatnonzero(~further)

    def nearest_of(self, tile: RowTile, index: Any, further: Any, moved: Any, others: Any) -> None:
        """Search all centroids (`index`) for the rows `further`, and those that moved (`moved`) for the `others`."""
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
    """Pass over the rows of a part: label every tile, sum its distances, and hand it to `consume`.

    `search` labels a tile and updates the part's `assignment`, as `TileSearch.update` does; `consume` uses the labeled
    tile. `weights` are int64 (n_rows,), for all rows.

    Returns the weighted sum of the squared distances in units of the geometry's `distance_scale`, which does not depend
    on the order or partition of the rows; see `Geometry.distance_sum`.
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
    """Yield the rows of a part tile by tile, as views into its assignment; `weights` are those of the part's rows."""
    no_weights = engine.put(_NO_WEIGHTS)
    for first, rows in engine.blocks(part):
        local = slice(first - part.start, first - part.start + len(rows))
        of_tile = no_weights if weights is None else engine.put(weights[local])
        yield RowTile(first, first + len(rows), rows, assignment.labels[local], assignment.distances[local], of_tile)
