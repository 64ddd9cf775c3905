"""Rows and geometries for the tests of the search."""

import numpy as np

from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.search.geometry import Geometry


def spectrum(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows whose variance falls from principal direction to principal direction."""
    rng = np.random.default_rng(seed)
    return ((rng.normal(size=(n, d)) * 0.9 ** np.arange(d)) @ rotation(rng, d) + 1.0).astype(np.float32)


def rotation(rng: np.random.Generator, d: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def geometry_of(rows: np.ndarray, basis: np.ndarray | None = None) -> Geometry:
    """A geometry as `make_geometry` would make it, with the principal directions or a basis of one's own."""
    wide = rows.astype(np.float64)
    mean = wide.mean(0).astype(np.float32)
    if basis is None:
        basis = np.linalg.eigh((wide - mean).T @ (wide - mean))[1][:, ::-1]
    basis = np.ascontiguousarray(basis, np.float32)
    gram = basis.T.astype(np.float64) @ basis
    error = float(np.linalg.norm(gram - np.eye(len(gram)), 2))
    return Geometry(mean, float(np.abs(wide).max()), len(rows), SharedArray(array=basis), error)
