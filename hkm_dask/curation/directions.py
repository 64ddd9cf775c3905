"""Assignment of rows to the nearest of a set of directions, which speeds up the search for near-duplicates."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.keyed_random import random_bits, stream_key
from hkm_dask.compute.memory import assign_stage
from hkm_dask.compute.partition import Part, in_rounds
from hkm_dask.compute.placement import take_rows
from hkm_dask.compute.runner import Report, Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.row_views import unit_rows
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.search.cpu.engine import TILE_ROWS
from hkm_dask.search.engine import RowTile, fold
from hkm_dask.search.geometry import Geometry, make_geometry, with_basis
from hkm_dask.search.worker import worker_engine

#: Directions per square root of the number of rows, and their maximum: each costs a product with every row.
_PER_ROOT, _MOST = 2.0, 8192
#: Least number of rows per direction, sampled rows per direction, and k-means iterations.
_LEAST_ROWS, _SAMPLE_ROWS, _MAX_ITER = 64, 16, 5
#: Most pieces that a part is labeled in; progress is reported after each.
_PIECES = 100


@dataclass(frozen=True)
class Directions:
    """Unit-length rows assigned to directions, and the geometry for comparing them."""

    centroids: NDArray[np.float32]  # (n_clusters, n_features): unit length
    labels: NDArray[np.int32]  # (n_rows,): cluster of each row; -1 for rows of zeros
    cosines: NDArray[np.float32]  # (n_rows,): cosine of each row to its centroid
    geometry: Geometry  # with a basis, for int16 products


def n_directions(n_rows: int) -> int:
    """Return the number of clusters that makes the search fastest: 2 √n_rows, at most 8192.

    >>> [n_directions(n) for n in (1, 10**4, 10**6, 10**9)]
    [1, 156, 2000, 8192]
    """
    return max(1, min(_MOST, n_rows // _LEAST_ROWS, round(_PER_ROOT * math.sqrt(n_rows))))


def group_by_direction(
    rows: Rows, runner: Runner, report: Report, *, centroids: NDArray[np.float32] | None = None, seed: int = 0
) -> Directions:
    """Assign unit-length rows to the nearest of `centroids`, or to those of a k-means of a sample.

    Any centroids give a correct search; it is fast with a few thousand in dense regions. `report` gets the progress.
    """
    wanted = n_directions(rows.n_rows)
    numbers = _draw(rows.n_rows, max(wanted * _SAMPLE_ROWS, 4 * rows.n_features), stream_key(seed, "directions"))
    sample = np.ascontiguousarray(take_rows(rows, numbers, runner), np.float32)
    sample = sample[sample.any(axis=1)]
    if not len(sample):
        sample = np.eye(1, rows.n_features, dtype=np.float32)
    table = runner.place(ArrayRows(sample, f"{len(sample)} rows of {rows.label}"))
    geometry = make_geometry(table, runner, n_clusters=wanted, spherical=True)
    if centroids is None:
        settings = Settings(min(wanted, len(sample)), "random", _MAX_ITER, 1e-3, stream_key(seed, "directions", "fit"))
        centroids = fit(table, settings, geometry=geometry, runner=runner).centroids
    else:
        centroids = centroids[_draw(len(centroids), wanted, stream_key(seed, "directions", "centroids"))]
    centroids = unit_rows(np.nan_to_num(centroids))
    centroids = centroids[centroids.any(axis=1)]
    if not len(centroids):
        centroids = sample[:1]
    labels, cosines = _label(rows, centroids, replace(geometry, n_rows=rows.n_rows, max_abs=1.0), runner, report)
    forget(table.key)
    return Directions(centroids, labels, cosines, _product_geometry(sample, geometry, runner))


def _draw(n: int, wanted: int, key: int) -> NDArray[np.int64]:
    """Draw `wanted` sorted numbers below `n`, one from each of as many equal ranges; all if `wanted` >= `n`."""
    if wanted >= n:
        return np.arange(n)
    edges = n * np.arange(wanted + 1) // wanted
    return edges[:-1] + (random_bits(key, np.arange(wanted)) % np.diff(edges).astype(np.uint64)).astype(np.int64)


def _product_geometry(sample: NDArray[np.float32], geometry: Geometry, runner: Runner) -> Geometry:
    """Return the geometry for products: principal directions, on a grid that covers every row."""
    plain = replace(geometry, basis=None, name=uuid.uuid4().hex)
    with runner.on_processors() as processors:
        turned = with_basis(plain, ArrayRows(sample), processors)
    basis = np.eye(sample.shape[1], dtype=np.float32) if turned.basis is None else turned.basis.get()
    return replace(
        turned,
        basis=runner.array_store.put(f"basis-{uuid.uuid4().hex}", basis),
        radius=1.001 + float(np.linalg.norm(plain.origin.astype(np.float64))),
    )


def _label_part(
    centroids: SharedArray, geometry: Geometry, part: Part
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Task: label every row of a part with its nearest centroid and compute the cosine to it; -1 for all-zero rows."""
    engine = worker_engine()
    assignment = engine.unknown(part.stop - part.start)
    search = engine.search(part, geometry, "label", assignment)

    def leave_zeros_out(tile: RowTile) -> None:
        tile.labels[~tile.rows.any(axis=1)] = -1

    fold(part, engine, assignment, partial(search.update, centroids=centroids), leave_zeros_out, geometry=geometry)
    return engine.host(assignment.labels), (1.0 - 0.5 * engine.host(assignment.distances)).astype(np.float32)


def _label(
    rows: Rows, centroids: NDArray[np.float32], geometry: Geometry, runner: Runner, report: Report
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    cuts = rows.bounds(TILE_ROWS * rows.row_bytes)
    parts = runner.split(rows, len(centroids), cuts=cuts, stage=assign_stage(runner.n_own(rows), *centroids.shape))
    pieces = [piece for part in parts for some in in_rounds([part], cuts, _PIECES) for piece in some]
    with runner.array_store.lent("directions", centroids) as shared:
        labeled = runner.map(partial(_label_part, shared, geometry), pieces, stage="label", report=report)
    forget(rows.key)
    labels, cosines = (np.concatenate(one) for one in zip(*labeled, strict=True))
    return labels, cosines
