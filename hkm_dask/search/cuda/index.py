"""Centroids on a GPU, prepared for exact nearest-centroid search, with bitwise the results of `cpu`.

Tensor cores propose in float16 (or plain float32 if that leaves too many rows open); whatever their scores cannot
exclude is computed directly in float64, in the CPU kernel's order. With c' = c - m, m the mean of the rows, and any x,

   ‖x - c‖² = ‖x - m‖² + bias - 2 x·c',   bias = ‖c'‖² + 2 m·c'

so rows stored in float16 are used unchanged, and only the centroids are rounded. Rows in float32 are first centered and
converted to float16; then bias = ‖c'‖². A score is bias - 2 x̂·ĉ', with operands as written. By Cauchy-Schwarz, its
error is at most

   2 ‖x̂‖ ‖c' - ĉ'‖ + 2 ‖x - x̂‖ ‖c'‖ + γ ‖x̂‖ ‖ĉ'‖,

where γ bounds the rounding of a sum in any order, on hardware that truncates instead of rounding. The rounding errors
of operands are measured for every row and centroid; the bound uses the largest over all centroids.

There are two ways to compute scores. The *fused* kernel keeps the two best of every row in registers and leaves the few
rows whose second-best score is too close to the other way: a cuBLAS *product*, in any precision, by tiles so large that
they take longer than a launch. The fused kernel keeps scores of units of columns, each the lowest of its columns. All
columns of the best unit are measured, and no column of another unit scores below the second best, so the bound holds
for columns. Hopper has its own kernel; groups of rows, and non-contiguous rows with few centroids, use the plain one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module, device_budget, to_host
from hkm_dask.compute.staging import ran_out
from hkm_dask.search.cuda import hopper, kernels
from hkm_dask.search.cuda.kernels import STAGE_BYTES, RowList, launch, launch_by_row, unused
from hkm_dask.search.cuda.operand import (
    FUSED,
    CudaOperand,
    Form,
    device_mean,
    kind_of,
    make_cuda_operand,
    multiply,
)
from hkm_dask.search.geometry import Geometry

#: Rows of a tile in the fused kernel.
FUSED_ROWS = 128
#: Threads per block of the fused kernel, and of the kernels that settle rows.
_FUSED_THREADS, _SETTLE_THREADS = 256, 128
#: Centroids per feature from which units of four or two columns pay off: they save two or three of five instructions
#: per score, and each column more costs the row another centroid read from the L2 cache. Modeled, not measured.
_CENTROIDS_FOR_UNITS = {4: 20, 2: 5}
#: Most centroids in a tile of products; fewest products worth a call; tiles for which the device's memory has room. A
#: tile that stays in L2 (8 million scores) takes several times as long to launch as to multiply.
_MOST_COLUMNS, _LEAST_TILE, _TILE_SHARE = 1 << 15, 1 << 18, 64
#: Rounding error of one addition: tensor cores truncate; float32; float64, whose sum is then rounded to float32.
_UNITS = {"single": 2.0**-24, "double": 2.0**-53}
_UNIT_OF_TENSOR_CORES = 2.0**-22
#: TF32 keeps 10 of the 23 mantissa bits of a float32.
_LOST_TO_TF32 = 2.0**-10


@dataclass(frozen=True)
class Groups:
    """Groups of rows and centroids, for many small searches at once."""

    of_rows: Any  # int32 (n_rows,): the group of every row
    lines: NDArray[np.int64]  # (n_groups + 1,): offset of each group among the rows that are searched
    columns: NDArray[np.int64]  # (n_groups + 1,): offset of each group among the centroids
    numbers: NDArray[np.int32]  # (n_centroids,): label of each centroid, increasing within a group


def tiles_of(lines: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lines and centroids of each block of the fused kernel; see `nearest_two`."""
    n_tiles = -(-np.diff(lines) // FUSED_ROWS)
    group = np.repeat(np.arange(len(n_tiles)), n_tiles)
    within = np.arange(len(group)) - np.repeat(np.cumsum(n_tiles) - n_tiles, n_tiles)
    first, end = lines[group] + FUSED_ROWS * within, lines[group + 1]
    return np.stack([first, end, columns[group], np.diff(columns)[group]], axis=1)


def _unit(n_centroids: int, n_features: int) -> int:
    """Return the number of columns in a unit of scores: 1, 2 or 4."""
    return next((unit for unit, least in _CENTROIDS_FOR_UNITS.items() if n_centroids >= least * n_features), 1)


class CudaIndex:
    """A set of centroids on the device, prepared for searching in one form; see `cpu.CpuIndex`.

    They are float32 (n_clusters, n_features), on the host or the device; NaN rows are unused slots, never found.
    `on_device` holds the same centroids, if they are on the device already.
    """

    def __init__(self, centroids: Any, geometry: Geometry, form: Form = "fused", on_device: Any | None = None) -> None:
        import cupy

        xp, used = array_module(centroids), ~np.isnan(to_host(centroids[:, 0]))
        self.geometry, self.form = geometry, form
        self._numbers = np.flatnonzero(used).astype(np.int32)
        self._device_numbers: dict[int, Any] = {}
        if used.all():
            self.centroids = cupy.asarray(xp.ascontiguousarray(centroids) if on_device is None else on_device)
        else:
            self.centroids = cupy.asarray(centroids[xp.asarray(used)])
        if not len(self.centroids):
            return
        self._largest = float(cupy.abs(self.centroids - device_mean(geometry)).max())
        self._tile = max(_LEAST_TILE, device_budget() // _TILE_SHARE // 4)
        self._make_operand()

    def _make_operand(self) -> None:
        """Make the operand, biases and bounds of the used centroids."""
        import cupy

        n, tile = len(self.centroids), hopper.TILE_COLUMNS
        form = make_cuda_operand(self.centroids, self.geometry, kind_of(self.form), largest=self._largest)
        stored, centered = (cupy.empty(-(-n // tile) * tile, cupy.float32) for _ in range(2))
        largest = cupy.zeros(4)
        launch_by_row(
            "bound_centroids", self.centroids, 1, form.norms, form.sizes, form.errors, form.dots, np.int32(n),
            np.int32(len(stored)), stored, centered, largest, n=len(stored),
        )  # fmt: skip
        self._operand, self._biases = form, {True: stored, False: centered}
        error, norm, size, bias = largest.get().tolist()
        unit = _UNITS.get(self.form, _UNIT_OF_TENSOR_CORES)
        gamma = 2.0 * (form.matrix.shape[1] + 16) * unit + (2.0**-22 if self.form == "double" else 0.0)
        if self.form == "tf32":  # truncation of rows is charged to their size, that of centroids to their error
            gamma += 4.0 * _LOST_TO_TF32 * (1.0 + _LOST_TO_TF32)
        per_size, per_error = (2.0 * error + gamma * size) * (1.0 + 1e-6), 2.0 * np.sqrt(norm) * (1.0 + 1e-6)
        constant = 2.0**-22 * max(bias, norm) + 2.0**-100
        self._bounds = np.float64(per_size), np.float64(per_error), np.float64(constant)
        self.unit = _unit(len(self.centroids), self.centroids.shape[1])

    def only(self, chosen: NDArray[np.bool_]) -> Self:
        """See `CentroidIndex.only`."""
        import cupy

        part, keep = copy.copy(self), chosen[self._numbers]
        part._numbers, part._device_numbers = self._numbers[keep], {}
        if keep.all():
            return part
        index = cupy.asarray(np.flatnonzero(keep))
        part.centroids = self.centroids[index]
        if len(index):
            part._make_operand()
        return part

    def nearest(
        self, rows: Any, labels: Any, distances: Any, operand: CudaOperand | None = None, first: int = 0,
        which: Any | None = None,
    ) -> None:  # fmt: skip
        """Update `labels` and `distances` with these centroids; see `cpu.CpuIndex.nearest`.

        `operand` is `make_cuda_operand` of the rows. Raises MemoryError (`staging.ran_out`) if device memory runs out
        even with the smallest tiles.
        """
        if not len(self.centroids) or not len(rows):
            return
        operand = operand or make_cuda_operand(rows, self.geometry, kind_of(self.form))
        if self.form in FUSED:
            left = RowList(len(rows) if which is None else len(which))
            self.propose(rows, labels, distances, operand, left, first, which)
            which = left.get()
        self.settle(rows, labels, distances, operand, first, which)

    def settle(
        self, rows: Any, labels: Any, distances: Any, operand: CudaOperand, first: int = 0, which: Any | None = None
    ) -> None:
        """Do what `nearest` does, with cuBLAS products."""
        import cupy

        in_a_run, numbers = which is None, self._numbers_from(first)
        if which is None:
            which = cupy.arange(len(rows), dtype=cupy.int64)
        tile = self._tile
        while len(which):
            try:
                self._settled(rows, operand, numbers, labels, distances, which, in_a_run, tile)
                return
            except MemoryError as error:
                if not ran_out(error):
                    raise
                # Results so far are valid bounds, so the search continues from them.
                cupy.get_default_memory_pool().free_all_blocks()
                tile //= 2
                if tile < _LEAST_TILE // 8:  # too small to be useful: the caller may free memory and retry
                    raise

    def propose(
        self, rows: Any, labels: Any, distances: Any, operand: CudaOperand, left: RowList, first: int = 0,
        which: Any | None = None, gathered: Any | None = None,
    ) -> None:  # fmt: skip
        """Settle the rows whose nearest centroid their two best scores prove, and list the others in `left`.

        `gathered` holds the operands of the rows `which`, if they were gathered.
        """
        if len(self.centroids) and (which is None or len(which)):
            self._fused(rows, operand, self._numbers_from(first), labels, distances, left, which, gathered=gathered)

    def _numbers_from(self, first: int) -> Any:
        import cupy

        if first not in self._device_numbers:
            self._device_numbers[first] = cupy.asarray(self._numbers + np.int32(first))
        return self._device_numbers[first]

    def nearest_in_groups(
        self, rows: Any, labels: Any, distances: Any, operand: CudaOperand, groups: Groups, which: Any | None = None
    ) -> None:
        """Search groups of rows as `nearest` does, each among the centroids of its own group.

        `which` are the rows of groups with centroids, if not all rows.
        """
        import cupy

        numbers = cupy.asarray(groups.numbers[self._numbers])
        open_rows = RowList(len(rows) if which is None else len(which))
        self._fused(rows, operand, numbers, labels, distances, open_rows, which, self.tiles(groups))
        left = open_rows.get()
        if len(left):
            columns = np.searchsorted(self._numbers, groups.columns)
            launch_by_row(
                "nearest_in_group", rows, 32, rows, left, groups.of_rows, cupy.asarray(columns), self.centroids,
                numbers, np.int64(len(left)), np.int32(rows.shape[1]), labels, distances, n=len(left),
            )  # fmt: skip

    def tiles(self, groups: Groups) -> Any:
        """Return what each block of the fused kernel processes; see `nearest_two`."""
        import cupy

        # The index leaves out unused slots.
        return cupy.asarray(tiles_of(groups.lines, np.searchsorted(self._numbers, groups.columns)))

    @property
    def n_bytes(self) -> int:
        """Size of the index in bytes of device memory."""
        if not len(self.centroids):
            return 0
        return int(self.centroids.nbytes + self._operand.matrix.nbytes + 6 * self._operand.norms.nbytes)

    def _alpha(self, operand: CudaOperand) -> np.float32:
        return np.float32(-2.0 / (self._operand.scale * operand.scale))

    def _fused(
        self, rows: Any, operand: CudaOperand, numbers: Any, labels: Any, distances: Any, left: RowList,
        which: Any | None, tiles: Any | None = None, gathered: Any | None = None,
    ) -> None:  # fmt: skip
        import cupy

        n, n_features = len(rows) if which is None else len(which), rows.shape[1]
        lines = unused(np.int64) if which is None else which
        scores = cupy.empty(n, cupy.float32), cupy.empty(n, cupy.float32), cupy.empty(n, cupy.int32)
        unit = self.two_best(rows, operand, which, tiles, scores, gathered)
        launch_by_row(
            "certify", rows, 8, rows, lines, np.int32(which is not None), self.centroids, numbers, *scores[1:],
            np.int32(unit), np.int32(len(self.centroids)), operand.norms, operand.sizes, operand.errors, *self._bounds,
            np.int64(n), np.int32(n_features), labels, distances, left.rows, left.n_listed, n=n,
        )  # fmt: skip

    def two_best(
        self, rows: Any, operand: CudaOperand, which: Any | None, tiles: Any | None, out: tuple[Any, Any, Any],
        gathered: Any | None = None,
    ) -> int:  # fmt: skip
        """Write the best and second-best score of each line and the best unit; returns the columns of a unit."""
        centroids, bias, alpha = self._operand.matrix, self._biases[operand.as_stored], self._alpha(operand)
        unit = self.unit if tiles is None else 1  # a unit must not extend into the next group
        if self.form == "hopper" and tiles is None and hopper.is_available():
            if which is None:
                gathered = operand.matrix
            elif gathered is None and len(centroids) >= hopper.LEAST_FOR_GATHERED:
                gathered = kernels.if_there_is_room(lambda: operand.matrix[which])
            if gathered is not None:
                hopper.nearest_two(gathered, centroids, bias, alpha, np.int32(unit), *out)
                return unit
        nothing, has_which, has_tiles = unused(np.int64), which is not None, tiles is not None
        n = len(rows) if which is None else len(which)
        launch(
            "nearest_two", rows, -(-n // FUSED_ROWS) if tiles is None else len(tiles), _FUSED_THREADS, operand.matrix,
            nothing if which is None else which, np.int32(has_which), nothing if tiles is None else tiles,
            np.int32(has_tiles), centroids, bias, alpha, np.int64(n), np.int32(len(centroids)),
            np.int32(operand.matrix.shape[1]), np.int32(unit), *out, shared_bytes=kernels.n_stages() * STAGE_BYTES,
        )  # fmt: skip
        return unit

    def _settled(
        self, rows: Any, operand: CudaOperand, numbers: Any, labels: Any, distances: Any, which: Any, in_a_run: bool,
        tile: int,
    ) -> None:  # fmt: skip
        """Score rows tile by tile, and measure whatever the scores cannot exclude."""
        import cupy

        n_clusters = len(self.centroids)
        width = min(n_clusters, _MOST_COLUMNS, tile)
        height = max(1, min(tile // width, len(which)))
        products = cupy.empty(height * width, cupy.float32)
        for low in range(0, len(which), height):
            some = which[low : low + height]
            chosen = operand.matrix[low : low + len(some)] if in_a_run else operand.matrix[some]
            for left in range(0, n_clusters, width):
                n_columns = min(width, n_clusters - left)
                out = products[: len(some) * n_columns].reshape(len(some), n_columns)
                multiply(chosen, self._operand.matrix[left : left + n_columns], out, self.form)
                launch(
                    "settle", rows, len(some), _SETTLE_THREADS, out, self._biases[operand.as_stored],
                    self._alpha(operand), rows, some, self.centroids, numbers, operand.norms, operand.sizes,
                    operand.errors, *self._bounds, np.int32(left), np.int32(n_columns), np.int32(rows.shape[1]),
                    labels, distances,
                )  # fmt: skip
