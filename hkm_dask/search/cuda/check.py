"""Correctness checks of a form of scores on this device: scores within their bounds, labels bitwise as on the CPU.

The scores themselves are compared with squared distances computed by the host in float64, as labels can be right by
chance although a second-best score was lost; then labels and distances are compared with `cpu.CpuIndex`, which defines
the result. The reference is the host rather than a simple kernel, as it shares neither compiler nor hardware with what
is checked. Outputs, and some elements past their ends, are filled with a poison value before every launch, so that
missing and out-of-bounds writes show.

The rows are a sample of those to be searched, and synthetic ones (`made_sample`) whose shape leaves the last tile
partly filled in rows, centroids and features. The synthetic rows are also cut to fill whole tiles only and less than
one tile, and copied so often that a device needs several waves of blocks. `forms` uses the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.matmul import matmul
from hkm_dask.search.cpu.engine import CpuIndex
from hkm_dask.search.cuda.index import CudaIndex, Groups
from hkm_dask.search.cuda.operand import FUSED, CudaOperand, Form, kind_of, make_cuda_operand, multiply
from hkm_dask.search.geometry import Geometry
from hkm_dask.untrusted import reason

#: Synthetic rows: two tiles of 128 and a partial third. Centroids come in tiles of 256, features in steps of 64: at
#: least two tiles and a partial one, with enough steps to fill each of four stages of shared memory several times.
_N_ROWS, _TILE, _DEPTH, _N_STEPS, _RAGGED = 300, 256, 64, 12, 44
#: Elements past the end of the results that must stay unchanged.
_BESIDE = 128
#: Cuts of the synthetic sample, as rows and centroids: less than a tile; whole tiles, as one centroid is unused.
_CUTS = ((5, 3), (256, 2 * _TILE + 1))
#: Copies of synthetic rows: more than four tiles for each of 132 multiprocessors, or this many bytes.
_N_COPIES, _COPIES_BYTES = 70_000, 1 << 28


@dataclass(frozen=True)
class Sample:
    """Rows and centroids that a form is checked on, in host memory."""

    rows: NDArray[np.floating]  # (n_rows, n_features)
    centroids: NDArray[np.float32]  # (n_clusters, n_features): NaN in unused slots
    geometry: Geometry

    @cached_property
    def cuts(self) -> list[Sample]:
        """Samples with only its first rows and centroids."""
        return [Sample(self.rows[:n], self.centroids[:k], self.geometry) for n, k in _CUTS]

    @cached_property
    def some(self) -> NDArray[np.int64]:
        """Two thirds of the rows, shuffled."""
        n = len(self.rows)
        return np.random.default_rng(1).permutation(n)[: n - n // 3]

    @cached_property
    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets of three groups of rows, one of them empty, and of the groups of centroids.

        Rows need a group that has centroids: with a single centroid there is one group, and two empty ones.
        """
        n, k = len(self.rows), len(self.centroids)
        used = np.flatnonzero(~np.isnan(self.centroids[:, 0]))
        columns = np.clip([0, k // 3, k // 2, k], [0, used[0] + 1, used[0] + 1, k], k)
        if columns[2] > used[-1]:
            return np.array([0, n, n, n]), np.array([0, k, k, k])
        return np.array([0, 3 * n // 7, 3 * n // 7, n]), columns

    @cached_property
    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the scores, computed by the host in float64, and for each row the magnitude that cancels in them."""
        origin = self.geometry.origin
        kept = self.centroids[~np.isnan(self.centroids[:, 0])].astype(np.float64) - origin
        centered = self.rows.astype(np.float64) - origin
        norms, squares = (centered**2).sum(axis=1), (kept**2).sum(axis=1)
        return squares - 2.0 * matmul(centered, kept.T), 2.0**-40 * (norms + squares.max())

    @cached_property
    def expected(self) -> dict[str, _Answer]:
        """Return the CPU's answers: among all centroids; every other one; the latter, `some` among all; in groups."""
        index, wide, k = CpuIndex(self.centroids, self.geometry), self.rows.astype(np.float32), len(self.centroids)
        every, odd, groups = self.unknown(), self.unknown(), self.unknown()
        index.nearest(wide, *every)
        index.only(np.arange(k) % 2 > 0).nearest(wide, *odd)
        some = odd[0].copy(), odd[1].copy()
        index.nearest(wide, *some, which=self.some)
        lines, columns = self.edges
        for own, low, high in zip(map(slice, lines[:-1], lines[1:]), columns[:-1], columns[1:], strict=True):
            part = CpuIndex(self.centroids[low:high], self.geometry)
            part.nearest(wide[own], groups[0][own], groups[1][own], first=int(low))
        return {"all": every, "odd": odd, "some": some, "groups": groups}

    def unknown(self) -> _Answer:
        """Return labels and distances as before a search."""
        return np.full(len(self.rows), -1, np.int32), np.full(len(self.rows), np.inf)


#: Labels and distances.
_Answer = tuple[NDArray[np.int32], NDArray[np.float64]]


@lru_cache(maxsize=2)
def made_sample(n_features: int, dtype: np.dtype) -> Sample:
    """Make rows around centroids, some of which are too close for 16 bits to separate, and one row far out."""
    rng, k = np.random.default_rng(0), _TILE * max(2, -(-_N_STEPS // -(-n_features // _DEPTH))) + _RAGGED
    centroids = rng.normal(0.2, 1.0, (k, n_features))
    near = rng.choice(k, (2, _N_ROWS // 4), replace=False)
    centroids[near[0]] = centroids[near[1]] + rng.normal(0.0, 1e-5, (near.shape[1], n_features))
    rows = centroids[rng.integers(k, size=_N_ROWS)] + rng.normal(0.0, 0.5, (_N_ROWS, n_features))
    rows[: near.shape[1]] = centroids[near[0]] + rng.normal(0.0, 1e-3, (near.shape[1], n_features))
    rows[-1] *= 30.0
    centroids[k // 3] = np.nan
    rows = rows.astype(dtype)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Sample(rows, centroids.astype(np.float32), Geometry(mean, float(np.abs(rows).max()), _N_ROWS))


def find_fault(form: Form, sample: Sample, *, is_made: bool = False) -> str | None:
    """Describe what a form gets wrong on this device, or how it fails; None if it is correct.

    Synthetic samples are also searched in other shapes. A MemoryError says nothing about the form, and propagates.
    """
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            for what, wrong in (_comparisons_of_shapes if is_made else _comparisons)(form, sample):
                if wrong.any():
                    return f"gave wrong {what} for {np.count_nonzero(wrong)} of {len(wrong)} rows"
    except MemoryError:
        raise
    except Exception as error:
        return f"failed ({reason(error)})"
    return None


def _comparisons_of_shapes(form: Form, sample: Sample) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the comparisons for a sample, for cuts of it, and for copies of its rows."""
    yield from _comparisons(form, sample)
    for cut in sample.cuts:
        yield from _comparisons(form, cut)
    yield from _comparisons_of_copies(form, sample)


def _comparisons_of_copies(form: Form, sample: Sample) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield whether copies of rows get the same scores and labels as the rows; the last copies fill a tile partly."""
    import cupy

    n, index = (
        min(_N_COPIES, _COPIES_BYTES // sample.rows[0].nbytes) | 1,
        CudaIndex(sample.centroids, sample.geometry, form),
    )
    places = np.arange(n) % len(sample.rows)
    once = cupy.asarray(sample.rows)
    rows = once[cupy.asarray(places)]
    if form in FUSED:
        operand = make_cuda_operand(once, sample.geometry)
        yield "scores", _Truth(sample, index, operand).wrong_copies(index, (once, operand), rows, places)
    labels, distances = cupy.full(n, -1, cupy.int32), cupy.full(n, cupy.inf)
    index.nearest(rows, labels, distances)
    expected = sample.expected["all"]
    yield "labels", _differ((labels, distances), (expected[0][places], expected[1][places]))


def _comparisons(form: Form, sample: Sample) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the name of each comparison and where it fails, in order from operands to labels."""
    import cupy

    rows, centroids, geometry = sample.rows, sample.centroids, sample.geometry
    if np.isnan(centroids[:, 0]).all():
        return
    index, on_device = CudaIndex(centroids, geometry, form), cupy.asarray(rows)
    operand = make_cuda_operand(on_device, geometry, kind_of(form))
    yield "norms", _wrong_norms(operand, rows, geometry)

    truth, expected = _Truth(sample, index, operand), sample.expected
    lines, columns = sample.edges
    of_rows = np.repeat(np.arange(3, dtype=np.int32), np.diff(lines))
    groups = Groups(cupy.asarray(of_rows), lines, columns, np.arange(len(centroids), dtype=np.int32))

    def on_device_as(answer: _Answer) -> tuple[Any, Any]:
        return cupy.asarray(answer[0]), cupy.asarray(answer[1])

    for unit in (1, 2, 4) if form in FUSED else (1,):
        index.unit = unit
        if form in FUSED:
            yield "scores", truth.wrong_two_best(index, on_device, operand)
        else:
            yield "scores", truth.wrong_products(index, operand)
        actual = on_device_as(sample.unknown())
        index.nearest(on_device, *actual, operand)
        yield "labels", _differ(actual, expected["all"])
    if form in FUSED:
        yield "scores", truth.wrong_two_best(index, on_device, operand, sample.some)
        yield "scores", truth.wrong_two_best(index, on_device, operand, groups=groups)
    actual = on_device_as(expected["odd"])
    index.nearest(on_device, *actual, operand, which=cupy.asarray(sample.some))
    yield "labels", _differ(actual, expected["some"])
    if form in FUSED:
        actual = on_device_as(sample.unknown())
        index.nearest_in_groups(on_device, *actual, operand, groups)
        yield "labels", _differ(actual, expected["groups"])


def _differ(actual: tuple[Any, Any], expected: _Answer) -> NDArray[np.bool_]:
    """Return which rows differ in label or distance."""
    return np.asarray((actual[0].get() != expected[0]) | (actual[1].get() != expected[1]))


def _wrong_norms(operand: CudaOperand, rows: NDArray[np.floating], geometry: Geometry) -> NDArray[np.bool_]:
    """Return which rows have a norm, size or error, on which bounds depend, that does not match the operand."""
    wide = rows.astype(np.float64)
    centered = wide - geometry.origin
    matrix = operand.matrix.get()
    if matrix.dtype == np.uint16:  # bfloat16: the upper half of a float32
        matrix = (matrix.astype(np.uint32) << 16).view(np.float32)
    written = matrix[:, : rows.shape[1]].astype(np.float64) / operand.scale
    norm, size = (centered**2).sum(axis=1), np.sqrt((written**2).sum(axis=1))
    lost = np.sqrt((((wide if operand.as_stored else centered) - written) ** 2).sum(axis=1))
    right = _within(operand.norms.get(), norm, 1e-9 * norm) & _within(operand.sizes.get(), size, 1e-9 * size)
    return ~(right & (operand.errors.get() >= (1.0 - 1e-12) * lost))


def _within(actual: NDArray, expected: NDArray, allowed: NDArray) -> NDArray[np.bool_]:
    """Return where two values agree within a tolerance; infinity equals itself, NaN equals nothing."""
    return np.asarray((actual == expected) | (np.abs(actual - expected) <= allowed))


class _Truth:
    """Scores in float64, and the error that those of a form may have."""

    def __init__(self, sample: Sample, index: Any, operand: CudaOperand) -> None:
        self.scores, cancelled = sample.scores
        per_size, per_error, constant = index._bounds
        self.allowed = operand.sizes.get() * per_size + operand.errors.get() * per_error + constant + cancelled

    def wrong_products(self, index: Any, operand: CudaOperand) -> NDArray[np.bool_]:
        """Return which rows have a score outside its bound, comparing all scores."""
        import cupy

        products = cupy.full(self.scores.shape, cupy.nan, cupy.float32)
        multiply(operand.matrix, index._operand.matrix, products, index.form)
        scores = index._alpha(operand) * products.get() + index._biases[operand.as_stored].get()[: products.shape[1]]
        return np.asarray((~_within(scores, self.scores, self.allowed[:, None])).any(axis=1))

    def wrong_two_best(
        self, index: Any, rows: Any, operand: CudaOperand, which: NDArray[np.int64] | None = None,
        groups: Any | None = None,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Return which lines lack the best scores of their row, in a unit and outside; then elements past the end."""
        import cupy

        lines = np.arange(len(rows)) if which is None else which
        n = len(lines)
        tiles = None if groups is None else index.tiles(groups)
        chosen = None if which is None else cupy.asarray(which)
        unit, (best, second, number) = _two_best(index, rows, operand, n, chosen, tiles)
        untouched = np.isnan(best[n:]) & np.isnan(second[n:]) & (number[n:] == -1)
        scores, columns = self.scores[lines], np.arange(self.scores.shape[1])
        if groups is not None:
            edges = np.searchsorted(index._numbers, groups.columns)
            group = groups.of_rows.get()[:, None]
            scores[(columns < edges[group]) | (columns >= edges[group + 1])] = np.inf
        of_unit = np.isin(columns - number[:n, None], _columns_of_unit(unit))
        first, others = (np.where(some, scores, np.inf).min(axis=1) for some in (of_unit, ~of_unit))
        right = (number[:n] >= 0) & (best[:n] <= second[:n]) & _within(best[:n], first, self.allowed[lines])
        right &= np.isfinite(first) & _within(second[:n], others, self.allowed[lines])
        return ~np.concatenate([right, untouched])

    def wrong_copies(
        self, index: Any, once: tuple[Any, CudaOperand], rows: Any, places: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return which rows, copies of those at `places`, have other scores than these, which were checked before."""
        operand = make_cuda_operand(rows, index.geometry)
        _, (_, second_once, _) = _two_best(index, *once, len(once[0]))
        unit, (best, second, number) = _two_best(index, rows, operand, len(rows))
        best, second, number = (values[: len(rows)] for values in (best, second, number))
        columns = np.clip(number[:, None] + _columns_of_unit(unit), 0, self.scores.shape[1] - 1)
        first, allowed = self.scores[places[:, None], columns].min(axis=1), self.allowed[places]
        right = (number >= 0) & _within(best, first, allowed)
        return ~(right & _within(second, second_once[places], 2.0 * allowed))


def _columns_of_unit(unit: int) -> list[int]:
    """Return the offsets of a unit's columns from its first, as `column_of_unit` in the CUDA source."""
    return [(i & 1) + (i >> 1) * 8 for i in range(unit)]


def _two_best(
    index: Any, rows: Any, operand: CudaOperand, n: int, which: Any | None = None, tiles: Any | None = None
) -> tuple[int, list[NDArray[Any]]]:
    """Return the columns of a unit; best and second score and best unit of n lines and poisoned extra lines."""
    import cupy

    found = *(cupy.full(n + _BESIDE, cupy.nan, cupy.float32) for _ in range(2)), cupy.full(n + _BESIDE, -1, cupy.int32)
    unit = index.two_best(rows, operand, which, tiles, tuple(values[:n] for values in found))
    return unit, [values.get() for values in found]
