"""Coordinate system of a k-means: the origin, the principal directions, and the scales of fixed-point sums.

A geometry is made from the input of a k-means and affects only speed and rounding: labels are exact in any. Its origin
and scales are robust to a few rows far from all others; rows so far out that squares or sums would lose the precision
of the others are rejected.
"""

from __future__ import annotations

import itertools
import math
import uuid
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import iter_blocks
from hkm_dask.compute.matmul import matmul
from hkm_dask.compute.memory import block_bytes
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.compute.stepwise import Outcome
from hkm_dask.data.rows import Rows
from hkm_dask.errors import InputError
from hkm_dask.search.distance import nearest_others
from hkm_dask.search.far_rows import rows_beyond
from hkm_dask.search.fixed_point import FixedPointSum, RowUnits

#: Rows from which the principal directions are computed, and places of the input from which samples are read.
_BASIS_ROWS, _SAMPLE_PLACES = 8192, 16
#: Rows from which the spread is computed, and those of them whose nearest neighbors are searched.
_SPREAD_ROWS, _NEIGHBOR_ROWS = 1024, 128
#: Bytes of rows measured at once; temporary arrays take some six times as much.
_MEASURED_BYTES = 8 << 20
#: Below these sizes a pruned search cannot pay off.
MIN_FEATURES, MIN_CLUSTERS = 24, 64
#: Norm beyond which scores, at most 12 ‖x‖², overflow float32 at 2**128.
LARGEST_NORM = 2.0**62
#: The mean is not used as origin if it is more than this many spreads from the median: errors of float32 scores would
#: then reach 2^-16 of the squared spread.
_FAR_MEAN = 16.0
#: Largest unit of the sums, as a share of the spread.
_COARSEST = 2.0**-20
#: Multiple of the spread beyond which a row is far from its centroid, so that its cluster says nothing about others.
FAR = 64.0
#: The spread is at most this multiple of the distance between neighbors, the ratio allowed between the distance of
#: groups and their width.
_WIDEST = 2.0**16
#: Share of the sampled rows that may have closer neighbors than the distance between neighbors used above.
_CLOSE_SHARE = 0.1
#: Bits of the squared spread kept by sums of squared distances: 2^-20 of a distance 2^20 times smaller than the spread.
_DISTANCE_BITS = 60
#: Norms larger than the others by this factor affect neither the radius nor the principal directions.
_FAR_NORM = 16.0
#: For radii between this and its inverse, float32 can hold the grid steps of squares in 16 bits.
_LEAST_RADIUS = 2.0**-40


def has_directions(n_features: int, n_clusters: int) -> bool:
    """Tell whether principal directions pay off for this many features and centroids.

    >>> has_directions(64, 1000), has_directions(64, 10)
    (True, False)
    """
    return n_features >= MIN_FEATURES and n_clusters >= MIN_CLUSTERS


@dataclass(frozen=True)
class Geometry:
    """Origin, directions and scales used for the rows of one k-means."""

    #: (n_features,): subtracted from rows to keep norms, and so cancellation errors, small. The mean of the rows, or
    #: their median if a few rows far from all others shift the mean.
    origin: NDArray[np.float32]
    max_abs: float  # largest absolute value in the rows
    n_rows: int  # number (or total weight) of rows that may be summed
    #: float32 (n_features, n_features): orthonormal columns in order of decreasing variance.
    basis: SharedArray | None = None
    basis_error: float = 0.0  # bound, in spectral norm, on the stored basis's deviation from orthonormality
    radius: float = 0.0  # largest norm of centered rows that are quantized to 16 bits; 0 for no limit
    spherical: bool = False  # rows and centroids have unit length (cosine)
    precision: str = "float32"  # of the scores that propose labels on a GPU, as in `Config.dtype`
    #: Typical distance of a row from the center, robust to a few far rows: the median over a sample, or less if rows
    #: form groups very far from each other. 0 if unknown.
    spread: float = 0.0
    #: Identifies this geometry in the caches of a process.
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def scale(self) -> float:
        """Fixed-point units per unit of a row's value: a power of two, chosen so that sums of rows fit in int64.

        >>> Geometry(np.zeros(2, np.float32), max_abs=1.0, n_rows=1 << 20).scale == 2.0**41
        True
        """
        if self.max_abs <= 0.0:
            return 1.0
        return 2.0 ** (_value_bits(self.n_rows) - math.ceil(math.log2(self.max_abs)))

    @property
    def units(self) -> RowUnits:
        """Units in which rows are summed: those of `scale`, and finer ones too if a few values are far too large.

        >>> [Geometry(np.zeros(2, np.float32), m, n_rows=1 << 20, spread=1.0).units.is_split for m in (9.0, 1e9)]
        [False, True]
        """
        is_split = not self.spherical and 1.0 / self.scale > _COARSEST * self.spread > 0.0
        return RowUnits(self.scale, _value_bits(self.n_rows), is_split)

    @property
    def far_distance(self) -> float:
        """Squared distance beyond which a row is far from its centroid; infinity if no row can be.

        >>> [Geometry(np.zeros(2, np.float32), m, n_rows=9, spread=1.0).far_distance for m in (9.0, 1e9)]
        [inf, 4096.0]
        """
        reach = FAR * self.spread
        can_be = not self.spherical and 2.0 * self.max_abs * math.sqrt(len(self.origin)) > reach > 0.0
        return reach * reach if can_be else math.inf

    @property
    def distance_scale(self) -> float:
        """Fixed-point units per unit of squared distance: a power of two.

        Distances may be tiny compared with the squared spread, or huge for far rows; `distance_bits` bits of them are
        summed, see `distance_sum`.

        >>> Geometry(np.zeros(2, np.float32), max_abs=2.0**40, n_rows=1 << 20, spread=1.0).distance_scale == 2.0**60
        True
        """
        spread = self.spread or 2.0**-30 * self.max_abs
        return 2.0 ** (_DISTANCE_BITS - math.floor(2.0 * math.log2(spread))) if spread > 0.0 else 1.0

    @property
    def distance_bits(self) -> int:
        """Bits of the largest squared distance in those units: about 75 without far rows, always below 180.

        >>> Geometry(np.zeros(2, np.float32), max_abs=2.0**40, n_rows=1 << 20, spread=1.0).distance_bits
        144
        """
        largest = len(self.origin) * (2.0 * self.max_abs) ** 2
        return max(1, 1 + math.ceil(math.log2(largest * self.distance_scale))) if largest > 0.0 else 1

    def distance_sum(self, total_weight: int) -> FixedPointSum:
        """Return an empty exact sum of squared distances in units of `distance_scale`, for at most this total weight.

        It also has a separate sum over the rows that are not far from their centroid, see `far_distance`.

        >>> inertia = Geometry(np.zeros(2, np.float32), max_abs=9.0, n_rows=10, spread=1.0).distance_sum(10)
        >>> inertia.add(np.array([0.25, 3.0]))
        >>> inertia.total() == 3.25 * 2**60
        True
        """
        return FixedPointSum(self.distance_scale, self.distance_bits, total_weight, self.far_distance)

    @property
    def step(self) -> float:
        """Width of the 16-bit grid for principal coordinates: a power of two.

        >>> Geometry(np.zeros(2, np.float32), max_abs=1.0, n_rows=9, radius=32767.0).step
        1.0
        """
        radius = self.radius or 2.0 * self.max_abs * math.sqrt(len(self.origin)) or 1.0
        return 2.0 ** math.ceil(math.log2(radius / 32767.0))

    @property
    def resolution(self) -> float:
        """Squared distance by which rounding alone may separate a row from the mean of its own copies.

        Fixed point moves a coordinate by up to half a unit, and float32 by no more than that again; the length of unit
        rows is exact to float32 only.
        """
        units = self.units
        finest = units.scale * 2.0**units.n_bits if units.is_split else units.scale
        apart = math.sqrt(2.0 * len(self.origin)) / finest + (2.0**-22 if self.spherical else 0.0)
        return apart * apart


def _value_bits(n_rows: int) -> int:
    """Return the bits of a value in fixed-point units for which sums of `n_rows` values fit in int64."""
    # One bit less than int64's 62, so that rounding up cannot exceed it; 50 keeps a single value exact in float64.
    return min(61 - math.ceil(math.log2(max(n_rows, 2))), 50)


@dataclass(frozen=True)
class Statistics(Outcome):
    """Sum of rows (n_features,), largest absolute value, numbers of zero rows and rows; to be added in row order."""

    total: NDArray[np.float64]
    max_abs: float
    n_zero: int
    n_rows: int

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean of the rows, or zeros if there are none."""
        return (self.total / max(self.n_rows, 1)).astype(np.float32)

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.total + other.total,
            max(self.max_abs, other.max_abs),
            self.n_zero + other.n_zero,
            self.n_rows + other.n_rows,
        )


def _block_statistics(part: Part) -> list[Statistics]:
    statistics = []
    for _, block in iter_blocks(part):
        with np.errstate(over="ignore"):  # values that overflow float32 become infinite, and are rejected as such
            values = np.asarray(block, dtype=np.float32)
        largest = float(np.abs(values).max(initial=0.0))
        zero = int((~values.any(axis=1)).sum())
        statistics.append(Statistics(values.sum(axis=0, dtype=np.float64), largest, zero, len(values)))
    return statistics


def measure_rows(rows: Rows, runner: Runner) -> Statistics:
    """Compute the mean, the largest value and the number of zero rows in one pass; independent of the workers."""
    size = block_bytes(runner.memory_budget, 1)
    n_at_once = max(1, runner.memory_budget // (6 * _MEASURED_BYTES))
    n_parts = runner.n_parts(20.0 * rows.n_rows * rows.n_features, n_at_once)
    # Blocks must not depend on the number of parts, or the float64 sums would depend on it.
    bounds = rows.bounds(min(size, _MEASURED_BYTES), 1)
    cuts = np.array_split(np.arange(len(bounds) - 1), min(n_parts, len(bounds) - 1))
    parts = [Part(rows, tuple(int(b) for b in bounds[c[0] : c[-1] + 2]), 0) for c in cuts if len(c)]
    return reduce(Statistics.__add__, itertools.chain(*runner.map(_block_statistics, parts, stage="measure")))


def make_geometry(
    rows: Rows,
    runner: Runner,
    *,
    n_clusters: int,
    mean: NDArray[np.float32] | None = None,
    max_abs: float | None = None,
    total_weight: int | None = None,
    spherical: bool = False,
    precision: str = "float32",
    start: NDArray[np.float32] | None = None,
    sums: bool = True,
) -> Geometry:
    """Choose the geometry for a k-means over `rows`; with few clusters, it has no principal directions.

    If `mean` and `max_abs` are already known, as in a pool, a pass over the rows is saved. `total_weight` is the sum of
    the weights, for weighted rows; `spherical` means rows of unit length; `precision` is that of the scores on a GPU,
    see `Geometry`. `start`, float32 (n_clusters, n_features), are initial centroids, which the scales must cover too.
    `sums` tells whether rows are summed, not only searched.

    Raises InputError for values too large to be squared in float32, or so far from all others that sums of rows would
    lose the precision of the others.
    """
    if mean is None or max_abs is None:
        statistics = measure_rows(rows, runner)
        mean, max_abs = statistics.mean, statistics.max_abs
    start_max = 0.0 if start is None else float(np.abs(start).max(initial=0.0))
    median, spread, between = _middle(rows)
    if not spherical and np.linalg.norm(mean.astype(np.float64) - median) > _FAR_MEAN * spread > 0.0:
        mean = median
    if not spherical:
        spread = min(spread, _WIDEST * between)
    geometry = Geometry(
        mean, max(max_abs, start_max), total_weight or rows.n_rows, spherical=spherical, precision=precision,
        spread=spread,
    )  # fmt: skip
    limit = _largest_value(geometry, sums=sums and not spherical)
    if not geometry.max_abs < limit:
        # `max_abs` may come from a row of the pool that is not in this subset.
        geometry = replace(geometry, max_abs=max(_check_values(rows, runner, limit), start_max))
        if start_max >= limit:
            raise InputError(f"max_abs={start_max:g} in init should be < {limit:.3g}; start from other centroids")
    if has_directions(rows.n_features, n_clusters) and rows.n_rows >= 4 * rows.n_features:
        return with_basis(geometry, rows, runner)
    return geometry


def _largest_value(geometry: Geometry, *, sums: bool) -> float:
    """Return the limit of values whose squares fit in float32 and, if rows are summed, whose sums stay precise."""
    limit = LARGEST_NORM / math.sqrt(len(geometry.origin))
    coarsest = _COARSEST * geometry.spread
    if not sums or coarsest <= 0.0:
        return limit
    return min(limit, 2.0 ** (math.floor(math.log2(coarsest)) + 2 * _value_bits(geometry.n_rows)))


def _check_values(rows: Rows, runner: Runner, limit: float) -> float:
    """Reject rows with values of `limit` or more, by number; returns the largest value if there are none."""
    beyond = rows_beyond(rows, runner, limit)
    if beyond.n_rows:
        which = "that row" if beyond.n_rows == 1 else "those rows"
        raise InputError(
            f"max_abs={beyond.largest:g} in {beyond.names(rows)} should be < {limit:.3g}; leave {which} out or clip "
            "what is larger, or, where all rows are as large, scale the embeddings down"
        )
    return beyond.largest


def with_basis(geometry: Geometry, rows: Rows, runner: Runner) -> Geometry:
    """Add the principal directions of a sample of the rows to a geometry; on GPUs, only the radius."""
    on_gpu = runner.device_budget is not None
    basis, radius = runner.call(partial(_principal_directions, geometry.origin, on_gpu), rows, stage="rotate")
    if basis is None:  # tensor cores use all coordinates
        return replace(geometry, radius=radius)
    if not _LEAST_RADIUS < radius < 1.0 / _LEAST_RADIUS:
        return geometry
    gram = matmul(basis.T.astype(np.float64), basis.astype(np.float64))
    # The Frobenius norm bounds the spectral norm and needs no decomposition.
    error = float(np.linalg.norm(gram - np.eye(len(gram))))
    return replace(
        geometry, basis=runner.array_store.put(f"basis-{uuid.uuid4().hex}", basis), basis_error=error, radius=radius
    )


def _sample(rows: Rows, n: int) -> NDArray[np.float32]:
    """Read about `n` rows from a few places of the input; all rows if there are fewer."""
    per_place = -(-n // _SAMPLE_PLACES)
    starts = np.unique(np.linspace(0, max(rows.n_rows - per_place, 0), _SAMPLE_PLACES).astype(np.int64))
    sample = np.concatenate([rows.read(int(s), int(min(s + per_place, rows.n_rows))) for s in starts])
    with np.errstate(over="ignore"):
        return sample.astype(np.float32)


def _middle(rows: Rows) -> tuple[NDArray[np.float32], float, float]:
    """Return the coordinatewise median of a sample, the median distance to it of the rows that differ from it, and a
    distance between neighbors, in which copies do not count.
    """
    sample = _sample(rows, _SPREAD_ROWS)
    with np.errstate(over="ignore", invalid="ignore"):  # values that overflow float32 are rejected later
        median = np.median(sample, axis=0)
        norms = np.linalg.norm(sample.astype(np.float64) - median, axis=1)
    norms = np.sort(norms[(norms > 0.0) & (norms < np.inf)])
    if not len(norms):
        return median, 0.0, 0.0
    return median, float(norms[(len(norms) - 1) // 2]), _distance_between(sample)


def _distance_between(sample: NDArray[np.float32]) -> float:
    """Return the distance to the nearest other row that only few rows fall short of; infinity if all are copies."""
    some = np.ascontiguousarray(sample[:: -(-len(sample) // _NEIGHBOR_ROWS)])
    squared = np.empty(len(some))
    nearest_others(some, squared)
    squared = np.sort(squared[squared < np.inf])
    return math.sqrt(squared[int(_CLOSE_SHARE * len(squared))]) if len(squared) else math.inf


def _principal_directions(
    origin: NDArray[np.float32], norm_only: bool, rows: Rows
) -> tuple[NDArray[np.float32] | None, float]:
    """Return the principal directions of a sample, and a norm that few rows exceed."""
    centered = _sample(rows, _BASIS_ROWS) - origin
    norms = np.linalg.norm(centered, axis=1)
    shares = np.quantile(norms, [0.9, 0.99, 0.999]).tolist()
    radius = 1.5 * next((low for low, high in itertools.pairwise(shares) if high > _FAR_NORM * low > 0.0), shares[-1])
    if norm_only:
        return None, radius
    centered = centered[norms <= _FAR_NORM * radius]
    covariance = matmul(centered.T, centered).astype(np.float64)
    return np.ascontiguousarray(np.linalg.eigh(covariance)[1][:, ::-1], dtype=np.float32), radius
