"""The geometry rows are looked at in: where the origin lies, which directions come first, how sums are scaled.

A geometry belongs to the input of a k-means and changes nothing but speed and rounding: labels are exact in any.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import Part, iter_blocks
from hkm_dask.compute.memory import block_bytes
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import Rows
from hkm_dask.errors import InputError

#: Rows the principal directions are taken from, and the places in the input they come from.
_BASIS_ROWS, _BASIS_PLACES = 8192, 16
#: Below these sizes a pruned search cannot pay.
_MIN_FEATURES, _MIN_CLUSTERS = 24, 64
#: Rows longer than this have scores that float32 does not hold: 12 ‖x‖² at most, where 2**128 is the end.
_LARGEST_NORM = 2.0**62
#: Norms between this and its inverse have squares in 16 bits whose steps float32 holds.
_LEAST_RADIUS = 2.0**-40


@dataclass(frozen=True)
class Geometry:
    """How rows are looked at.

    Attributes
    ----------
    mean : ndarray of float32, shape (n_features,)
        Origin; distances to it stay small, so little is lost to cancellation.
    max_abs : float
        Largest absolute value of the rows.
    n_rows : int
        Rows (or their total weight) that may be summed.
    basis : SharedArray or None
        float32 (n_features, n_features), orthonormal columns in order of falling variance.
    basis_error : float
        Spectral norm by which the basis, as stored, misses orthonormality.
    radius : float
        Norm up to which centered rows are brought to 16 bits; 0 for any.
    spherical : bool
        Rows and centroids have unit length (cosine).
    precision : {"float32", "float64", "float16", "bfloat16", "tf32"}
        Of the scores that propose labels on a GPU.
    name : str
        Tells this geometry from others, for what a process remembers about it.
    """

    mean: NDArray[np.float32]
    max_abs: float
    n_rows: int
    basis: SharedArray | None = None
    basis_error: float = 0.0
    radius: float = 0.0
    spherical: bool = False
    precision: str = "float32"
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def scale(self) -> float:
        """Fixed-point units per unit of a row's value: a power of two, such that no sum of rows leaves int64.

        Examples
        --------
        >>> Geometry(np.zeros(2, np.float32), max_abs=1.0, n_rows=1 << 20).scale == 2.0**41
        True
        """
        return _power_of_two(self.n_rows, self.max_abs)

    @property
    def distance_scale(self) -> float:
        """Fixed-point units per unit of squared distance, likewise."""
        width = 2.0 * self.max_abs
        return _power_of_two(self.n_rows, width * width * len(self.mean))

    @property
    def step(self) -> float:
        """Width of the grid on which principal coordinates have 16 bits: a power of two.

        Examples
        --------
        >>> Geometry(np.zeros(2, np.float32), max_abs=1.0, n_rows=9, radius=32767.0).step
        1.0
        """
        radius = self.radius or 2.0 * self.max_abs * math.sqrt(len(self.mean)) or 1.0
        return 2.0 ** math.ceil(math.log2(radius / 32767.0))

    @property
    def resolution(self) -> float:
        """Squared distance up to which rounding alone may part a row from the mean of its own copies.

        Fixed point moves a coordinate by half a unit and float32 by no more again; unit rows have unit length to
        float32.
        """
        apart = math.sqrt(2.0 * len(self.mean)) / self.scale + (2.0**-22 if self.spherical else 0.0)
        return apart * apart


def _power_of_two(n_rows: int, largest: float) -> float:
    if largest <= 0.0:
        return 1.0
    # One bit below int64's 62 so that rounding up cannot pass it; 50 keeps a single value exact in float64.
    bits = 61 - math.ceil(math.log2(max(n_rows, 2))) - math.ceil(math.log2(largest))
    return 2.0 ** min(bits, 50 - math.ceil(math.log2(largest)))


@dataclass(frozen=True)
class Statistics:
    """Sums over rows, to be combined in the order of the rows.

    Attributes
    ----------
    total : ndarray of float64, shape (n_features,)
        Sum of the rows.
    max_abs : float
        Largest absolute value.
    n_zero : int
        Rows of zeros.
    n_rows : int
    """

    total: NDArray[np.float64]
    max_abs: float
    n_zero: int
    n_rows: int

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.total + other.total,
            max(self.max_abs, other.max_abs),
            self.n_zero + other.n_zero,
            self.n_rows + other.n_rows,
        )


def _block_statistics(part: Part) -> list[Statistics]:
    found = []
    for _, block in iter_blocks(part):
        with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, and is refused as such
            values = np.asarray(block, dtype=np.float32)
        largest = float(np.abs(values).max(initial=0.0))
        zero = int((~values.any(axis=1)).sum())
        found.append(Statistics(values.sum(axis=0, dtype=np.float64), largest, zero, len(values)))
    return found


def measure_rows(rows: Rows, runner: Runner) -> Statistics:
    """Mean, largest value and zero rows, in one pass; the same for any number of workers.

    Parameters
    ----------
    rows : Rows
    runner : Runner

    Returns
    -------
    Statistics
    """
    size = block_bytes(runner.memory_budget, 1)
    n_parts = runner.n_parts(20.0 * rows.n_rows * rows.n_features)
    # Blocks must not depend on the number of parts, or the float64 sums would.
    bounds = rows.bounds(min(size, 8 << 20), 1)
    cuts = np.array_split(np.arange(len(bounds) - 1), min(n_parts, len(bounds) - 1))
    parts = [Part(rows, tuple(int(b) for b in bounds[c[0] : c[-1] + 2]), 0) for c in cuts if len(c)]
    blocks = [block for found in runner.map(_block_statistics, parts, stage="measure") for block in found]
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total


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
) -> Geometry:
    """Choose the geometry for a k-means over `rows`.

    Parameters
    ----------
    rows : Rows
    runner : Runner
    n_clusters : int
        Decides whether principal directions are worth having.
    mean, max_abs : optional
        Where they are known already, as a pool knows them, a pass is spared.
    total_weight : int, optional
        Sum of the weights, if rows are weighted.
    spherical : bool
        Rows have unit length.
    precision : str
        Of the scores that propose labels on a GPU; see `Geometry`.

    Returns
    -------
    Geometry

    Raises
    ------
    InputError
        Values are too large for float32 squares.
    """
    if mean is None or max_abs is None:
        found = measure_rows(rows, runner)
        mean = (found.total / max(found.n_rows, 1)).astype(np.float32)
        max_abs = found.max_abs
    largest = _LARGEST_NORM / math.sqrt(rows.n_features)
    if not max_abs < largest:
        raise InputError(
            f"max_abs={max_abs:g} should be < {largest:.3g} so that squared distances fit; scale the embeddings down"
        )
    geometry = Geometry(mean, max_abs, total_weight or rows.n_rows, spherical=spherical, precision=precision)
    if rows.n_features >= _MIN_FEATURES and n_clusters >= _MIN_CLUSTERS and rows.n_rows >= 4 * rows.n_features:
        return with_basis(geometry, rows, runner)
    return geometry


def with_basis(geometry: Geometry, rows: Rows, runner: Runner) -> Geometry:
    """Add the principal directions of a sample of the rows to a geometry.

    Parameters
    ----------
    geometry : Geometry
    rows : Rows
        A few thousand of them are read.
    runner : Runner

    Returns
    -------
    Geometry
        Where workers compute on GPUs, with their radius alone.
    """
    on_gpu = runner.device_budget is not None
    basis, radius = runner.call(partial(_principal_directions, geometry.mean, on_gpu), rows, stage="rotate")
    if basis is None:  # tensor cores take all coordinates
        return replace(geometry, radius=radius)
    if not _LEAST_RADIUS < radius < 1.0 / _LEAST_RADIUS:
        return geometry
    gram = basis.T.astype(np.float64) @ basis.astype(np.float64)
    error = float(np.linalg.norm(gram - np.eye(len(gram)), 2))
    return replace(
        geometry, basis=runner.array_store.put(f"basis-{uuid.uuid4().hex}", basis), basis_error=error, radius=radius
    )


def _principal_directions(
    mean: NDArray[np.float32], norm_only: bool, rows: Rows
) -> tuple[NDArray[np.float32] | None, float]:
    """Principal directions of a sample, and a norm that few rows surpass."""
    per_place = -(-_BASIS_ROWS // _BASIS_PLACES)
    starts = np.unique(np.linspace(0, max(rows.n_rows - per_place, 0), _BASIS_PLACES).astype(np.int64))
    sample = np.concatenate([rows.read(int(s), int(min(s + per_place, rows.n_rows))) for s in starts])
    centered = sample.astype(np.float32) - mean
    radius = 1.5 * float(np.quantile(np.linalg.norm(centered, axis=1), 0.999))
    if norm_only:
        return None, radius
    covariance = (centered.T @ centered).astype(np.float64)
    return np.ascontiguousarray(np.linalg.eigh(covariance)[1][:, ::-1], dtype=np.float32), radius
