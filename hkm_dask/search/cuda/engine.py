"""The GPU engine, which searches tiles with the form of scores that proved fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import reserve_to_sort, worker_module
from hkm_dask.compute.block_cache import device_cache
from hkm_dask.compute.partition import Part
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.compute.staging import device_dtype, iter_device_blocks, resident_budget
from hkm_dask.data.rows import Origin
from hkm_dask.search.cuda import hopper, kernels
from hkm_dask.search.cuda.forms import begin_checks, choose_form, forms_here, sound_forms, walks_are_sound
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.cuda.kernels import RowList
from hkm_dask.search.cuda.operand import FUSED, CudaOperand, Form, kind_of, make_cuda_operand
from hkm_dask.search.cuda.walks import walk_groups
from hkm_dask.search.engine import LEAST_FEATURES, Assignment, Engine, GridWalk, RowTile, TileSearch, Walked
from hkm_dask.search.geometry import Geometry

#: Counters zeroed at once.
_COUNTERS = 96


class CudaEngine(Engine):
    """Computes on the worker's GPU, one block of rows at a time."""

    cache = device_cache
    busy_rows = 1 << 13
    label_distances = staticmethod(kernels.label_distances)
    add_rows = staticmethod(kernels.add_rows)
    move_rows = staticmethod(kernels.move_rows)
    add_limbs = staticmethod(kernels.add_limbs)
    order = staticmethod(kernels.order)

    def __init__(self) -> None:
        super().__init__()
        self.xp = worker_module()

    def furthest(self, distances: Any, n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See `Engine.furthest`."""
        if len(distances) > n:
            reserve_to_sort(distances)
        return super().furthest(distances, n)

    def room(self, part: Part) -> int:
        """See `Engine.room`."""
        return resident_budget()

    def blocks(self, part: Part) -> Iterator[tuple[int, Any]]:
        """See `Engine.blocks`; rows are float16 or float32, and blocks may be out of order."""
        return iter_device_blocks(part)

    def row_dtype(self, dtype: np.dtype) -> np.dtype:
        """See `Engine.row_dtype`."""
        return device_dtype(dtype)

    def prepare(self, n_features: int, dtype: np.dtype, precision: str) -> None:
        """See `Engine.prepare`: starts the checks of kernels."""
        begin_checks(precision, n_features, dtype)

    def operand(self, rows: Any, geometry: Geometry, origin: Origin | None = None) -> CudaOperand:
        """See `Engine.operand`."""
        forms = sound_forms(forms_here(geometry.precision), rows.shape[1], rows.dtype)
        return make_cuda_operand(rows, geometry, kind_of(next(forms)))

    def walked_rows(self, operand: Any) -> int:
        """See `Engine.walked_rows`."""
        return self.busy_rows

    def accept_in_order(
        self, rows: Any, some: Any, limits: Any, operand: Any, geometry: Geometry
    ) -> NDArray[np.bool_]:  # fmt: skip
        """See `Engine.accept_in_order`."""
        return kernels.accept_in_order(rows[some], limits[some])

    def index(self, centroids: Any, geometry: Geometry) -> CudaIndex:
        """See `Engine.index`."""
        forms = sound_forms(forms_here(geometry.precision), centroids.shape[1], centroids.dtype)
        return CudaIndex(centroids, geometry, next(forms))

    def search(self, part: Part, geometry: Geometry, phase: str, assignment: Assignment) -> CudaSearch:
        """See `Engine.search`; the needed kernels are checked while rows are being read."""
        self.prepare(part.rows.n_features, part.rows.dtype, geometry.precision)
        return CudaSearch(self, part, geometry, phase, assignment)

    def batches(self, geometry: Geometry, dtype: np.dtype) -> bool:
        """See `Engine.batches`; only the fused kernel can run many searches at once."""
        forms = forms_here(geometry.precision)
        return "fused" in forms and "fused" in sound_forms(forms, len(geometry.origin), dtype)

    def walks_groups(self, n_features: int) -> bool:
        """See `Engine.walks_groups`."""
        return n_features >= LEAST_FEATURES and walks_are_sound(n_features)

    def walk_groups(self, walks: Sequence[GridWalk]) -> list[Walked | None]:
        """See `Engine.walk_groups`."""
        if not walks or not walks_are_sound(walks[0].n_features, walks):
            return [None] * len(walks)
        return walk_groups(walks)


class CudaSearch(TileSearch):
    """Searches with the form of scores that proved fastest; see `TileSearch`."""

    make_index = CudaIndex
    _counters: Any = ()
    #: The tile's operand, that of the rows that are further, and that of the others, while a tile is split.
    _made: Any = None

    def index_of_all(self, centroids: SharedArray, form: Form) -> CudaIndex:
        """See `TileSearch.index_of_all`; centroids are copied to the device once, for searching and for measuring."""
        return CudaIndex(centroids.get(), self.geometry, form, self.engine.array(centroids))

    def split(self, tile: RowTile, centroids: SharedArray, before: SharedArray) -> tuple[Any, Any]:
        """See `TileSearch.split`; for the Hopper form, operands are gathered in the same pass."""
        engine, index, n_listed = self.engine, self.index(tile, centroids), self._counter(2)
        gathers, operand, operands = 0, None, None
        gathered: Any = None
        if index.form == "hopper" and len(index.centroids) >= hopper.LEAST_FOR_GATHERED:
            operand = self.operand(tile, index)
            operands = operand.matrix
            gathered = kernels.if_there_is_room(lambda: engine.xp.empty_like(operands))
            n_moved = np.count_nonzero(engine.moved(centroids, before))
            gathers = 0 if gathered is None else 2 if n_moved >= hopper.LEAST_FOR_GATHERED else 1
        tile.previous_labels, further, others = kernels.split_rows(
            tile.rows, engine.array(centroids), engine.stayed(centroids, before), tile.labels, tile.distances, n_listed,
            gathers, operands, gathered,
        )  # fmt: skip
        n = len(further)
        self._made = operand, gathered[:n] if gathers else None, gathered[n:] if gathers == 2 else None
        return further, others

    def nearest_of(self, tile: RowTile, index: CudaIndex, further: Any, moved: CudaIndex, others: Any) -> None:
        """See `TileSearch.nearest_of`; rows left open by both are settled together, among all centroids."""
        if index.form not in FUSED:
            super().nearest_of(tile, index, further, moved, others)
            return
        operand, of_further, of_others = self._made
        of_rows = tile.rows, tile.labels, tile.distances, operand or self.operand(tile, index)
        left = RowList(len(tile.rows), self._counter(1))
        index.propose(*of_rows, left, which=further, gathered=of_further)
        moved.propose(*of_rows, left, which=others, gathered=of_others)
        operand = of_further = of_others = self._made = None
        index.settle(*of_rows, which=left.get())

    def _counter(self, n: int) -> Any:
        """Return zero counters (uint64); those of many tiles are zeroed at once."""
        import cupy

        if len(self._counters) < n:
            self._counters = cupy.zeros(_COUNTERS, cupy.uint64)
        taken, self._counters = self._counters[:n], self._counters[n:]
        return taken

    def form(self, tile: RowTile, centroids: SharedArray) -> Form:
        """Return the fastest form of the scores; see `forms.choose_form`."""
        return choose_form(self, tile, centroids.get())

    def operand(self, tile: RowTile, index: CudaIndex) -> CudaOperand:
        """See `TileSearch.operand`; operands are cached on the device if they fit."""
        kind, cache = kind_of(index.form), self.engine.cache
        key = ("operand", self.geometry.name, tile.start, tile.stop, kind)
        operand: CudaOperand | None = cache.get(self.part.rows.key, key)
        if operand is None:
            operand = make_cuda_operand(tile.rows, self.geometry, kind)
            # A reference to rows that serve as operands themselves would keep them on the device.
            kept = replace(operand, matrix=None) if operand.as_stored else operand
            cache.put(self.part.rows.key, key, kept, operand.n_bytes, self.engine.room(self.part))
        return replace(operand, matrix=tile.rows) if operand.as_stored else operand
