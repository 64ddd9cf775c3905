"""Whether a form of scores is right on this device: its scores within their bounds, its labels the bits of the CPU.

What is held against what: the scores themselves against squared distances that the host multiplies in float64, since
labels may be right by luck where a second best score was lost; then labels and distances against `cpu.CpuIndex`, which
is the rule itself. The host is asked, not a simple kernel, because it shares neither compiler nor hardware with what
is checked. Results are poison before every launch, so that lines which nobody writes show, and so are some beside them.

Rows are a sample of those to be searched, and made ones (`made_sample`) of a shape that leaves the last tile ragged in
rows, centroids and features; of these, some that fill whole tiles and some that fill none, and then so many copies that
a device works on them in several turns. See `forms` for what is made of it.
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

#: Made rows: two tiles of 128, and a ragged third. Centroids come in tiles of 256, features in steps of 64: two tiles
#: and a ragged one at least, and so many steps that each of four stages of shared memory is filled several times.
_N_ROWS, _TILE, _DEPTH, _N_STEPS, _RAGGED = 300, 256, 64, 12, 44
#: Lines beside the results that have to stay as they are.
_BESIDE = 128
#: Made rows and centroids that are looked at by themselves: less than a tile; whole tiles, as one centroid is unused.
_CUTS = ((5, 3), (256, 2 * _TILE + 1))
#: Copies of made rows: four tiles and more for each of 132 multiprocessors, or of so many bytes.
_N_COPIES, _COPIES_BYTES = 70_000, 1 << 28


@dataclass(frozen=True)
class Sample:
    """Rows and centroids that a form is checked on, in host memory."""

    rows: NDArray[np.floating]  # (n_rows, n_features)
    centroids: NDArray[np.float32]  # (n_clusters, n_features): rows of NaN are slots without a centroid
    geometry: Geometry

    @cached_property
    def cuts(self) -> list[Sample]:
        """Samples of its first rows and centroids."""
        return [Sample(self.rows[:n], self.centroids[:k], self.geometry) for n, k in _CUTS]

    @cached_property
    def some(self) -> NDArray[np.int64]:
        """Two thirds of the rows, in any order."""
        n = len(self.rows)
        return np.random.default_rng(1).permutation(n)[: n - n // 3]

    @cached_property
    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the rows of three groups begin, one of them empty, and where the centroids of each do.

        Rows may be in groups with centroids only: of one centroid there is one group, and two empty ones.
        """
        n, k = len(self.rows), len(self.centroids)
        used = np.flatnonzero(~np.isnan(self.centroids[:, 0]))
        columns = np.clip([0, k // 3, k // 2, k], [0, used[0] + 1, used[0] + 1, k], k)
        if columns[2] > used[-1]:
            return np.array([0, n, n, n]), np.array([0, k, k, k])
        return np.array([0, 3 * n // 7, 3 * n // 7, n]), columns

    @cached_property
    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Squared distances less the norm of the row, by the host in float64, and what cancels in them for each row."""
        origin = self.geometry.origin
        kept = self.centroids[~np.isnan(self.centroids[:, 0])].astype(np.float64) - origin
        centered = self.rows.astype(np.float64) - origin
        norms, squares = (centered**2).sum(axis=1), (kept**2).sum(axis=1)
        return squares - 2.0 * matmul(centered, kept.T), 2.0**-40 * (norms + squares.max())

    @cached_property
    def expected(self) -> dict[str, _Answer]:
        """What the CPU says: among all; among every other one; the latter, but for `some` among all; in groups."""
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
        """Labels and distances before a search."""
        return np.full(len(self.rows), -1, np.int32), np.full(len(self.rows), np.inf)


#: Labels and distances.
_Answer = tuple[NDArray[np.int32], NDArray[np.float64]]


@lru_cache(maxsize=2)
def made_sample(n_features: int, dtype: np.dtype) -> Sample:
    """Rows around centroids, of which some lie closer to each other than 16 bits can tell, and one row far out."""
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
    """What a form gets wrong on this device, or how it fails, in words; None where it is right.

    Samples that are made are searched in other shapes as well. A MemoryError says nothing about a form, and is raised.
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
    """The comparisons of a sample, of cuts of it, and of copies of its rows with each other."""
    yield from _comparisons(form, sample)
    for cut in sample.cuts:
        yield from _comparisons(form, cut)
    yield from _comparisons_of_copies(form, sample)


def _comparisons_of_copies(form: Form, sample: Sample) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Rows many times over have the scores and labels that each has once; the last of them leave a tile ragged."""
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
    """What is compared, and where it is wrong, from operands to labels."""
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
    """Which rows have another label, or another distance."""
    return np.asarray((actual[0].get() != expected[0]) | (actual[1].get() != expected[1]))


def _wrong_norms(operand: CudaOperand, rows: NDArray[np.floating], geometry: Geometry) -> NDArray[np.bool_]:
    """Which rows have a norm, a size or an error, on which bounds rest, that is not that of the operand."""
    wide = rows.astype(np.float64)
    centered = wide - geometry.origin
    matrix = operand.matrix.get()
    if matrix.dtype == np.uint16:  # the upper half of a float
        matrix = (matrix.astype(np.uint32) << 16).view(np.float32)
    written = matrix[:, : rows.shape[1]].astype(np.float64) / operand.scale
    norm, size = (centered**2).sum(axis=1), np.sqrt((written**2).sum(axis=1))
    lost = np.sqrt((((wide if operand.as_stored else centered) - written) ** 2).sum(axis=1))
    right = _within(operand.norms.get(), norm, 1e-9 * norm) & _within(operand.sizes.get(), size, 1e-9 * size)
    return ~(right & (operand.errors.get() >= (1.0 - 1e-12) * lost))


def _within(actual: NDArray, expected: NDArray, allowed: NDArray) -> NDArray[np.bool_]:
    """Where two values agree within what is allowed; infinity agrees with itself, NaN with nothing."""
    return np.asarray((actual == expected) | (np.abs(actual - expected) <= allowed))


class _Truth:
    """The scores in float64, and what those of a form may miss them by."""

    def __init__(self, sample: Sample, index: Any, operand: CudaOperand) -> None:
        self.scores, cancelled = sample.scores
        per_size, per_error, constant = index._bounds
        self.allowed = operand.sizes.get() * per_size + operand.errors.get() * per_error + constant + cancelled

    def wrong_products(self, index: Any, operand: CudaOperand) -> NDArray[np.bool_]:
        """Which rows have a score beyond its bound, of all their scores."""
        import cupy

        products = cupy.full(self.scores.shape, cupy.nan, cupy.float32)
        multiply(operand.matrix, index._operand.matrix, products, index.form)
        scores = index._alpha(operand) * products.get() + index._biases[operand.as_stored].get()[: products.shape[1]]
        return np.asarray((~_within(scores, self.scores, self.allowed[:, None])).any(axis=1))

    def wrong_two_best(
        self, index: Any, rows: Any, operand: CudaOperand, which: NDArray[np.int64] | None = None,
        groups: Any | None = None,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Which lines do not hold the best scores of their row, of one unit and of all others; lines beside follow."""
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
        """Which rows, copies of those at `places`, do not have their scores, which were held against the truth."""
        operand = make_cuda_operand(rows, index.geometry)
        _, (_, second_once, _) = _two_best(index, *once, len(once[0]))
        unit, (best, second, number) = _two_best(index, rows, operand, len(rows))
        best, second, number = (values[: len(rows)] for values in (best, second, number))
        columns = np.clip(number[:, None] + _columns_of_unit(unit), 0, self.scores.shape[1] - 1)
        first, allowed = self.scores[places[:, None], columns].min(axis=1), self.allowed[places]
        right = (number >= 0) & _within(best, first, allowed)
        return ~(right & _within(second, second_once[places], 2.0 * allowed))


def _columns_of_unit(unit: int) -> list[int]:
    """Where the columns of a unit are, from the first: as `column_of_unit` of the source has them."""
    return [(i & 1) + (i >> 1) * 8 for i in range(unit)]


def _two_best(
    index: Any, rows: Any, operand: CudaOperand, n: int, which: Any | None = None, tiles: Any | None = None
) -> tuple[int, list[NDArray[Any]]]:
    """Columns of a unit; best and second best score and best unit of n lines, and of lines beside, poison before."""
    import cupy

    found = *(cupy.full(n + _BESIDE, cupy.nan, cupy.float32) for _ in range(2)), cupy.full(n + _BESIDE, -1, cupy.int32)
    unit = index.two_best(rows, operand, which, tiles, tuple(values[:n] for values in found))
    return unit, [values.get() for values in found]
