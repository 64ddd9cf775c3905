"""Centering, against NumPy; what quantizing loses is held against its bounds by the tests of the search."""

import numpy as np

from hkm_dask.kmeans.search.cpu import operand as cpu_operand


def test_centering_writes_rows_ones_and_norms() -> None:
    rng = np.random.default_rng(0)
    rows, mean = rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    out, norms = np.empty((5, 7), np.float32), np.empty(5)
    cpu_operand._center(rows, mean, out, norms)
    np.testing.assert_array_equal(out[:, :6], rows - mean)
    np.testing.assert_array_equal(out[:, 6], 1)
    np.testing.assert_allclose(norms, ((rows - mean).astype(np.float64) ** 2).sum(1), rtol=1e-14)
