"""On the emulator, the Hopper kernel finds the two best scores, and fails if it is broken on purpose."""

from __future__ import annotations

import numpy as np
import pytest

from hkm_dask.search.cuda import hopper as cuda_hopper
from tests.emulated import kernels
from tests.emulated.broken_hopper import BROKEN, switched_source, unit_of
from tests.emulated.plugin import emulated_cuda

__all__ = ["emulated_cuda"]  # the fixture
pytestmark = pytest.mark.usefixtures("emulated_cuda")


def _two_best(unit: int, n_launches: int = 1) -> tuple[np.ndarray, ...]:
    """Return the two best scores of every row, and the column of the best; for rows that do not keep their label."""
    import cupy

    rng = np.random.default_rng(0)
    rows, centroids = (rng.normal(size=(n, 392)).astype(np.float16) for n in (150, 300))
    bias = np.full(512, np.inf, np.float32)
    bias[:300] = rng.random(300)
    kernel = cupy.RawModule(code=switched_source()).get_function("nearest_two_hopper")
    kernel.max_dynamic_shared_size_bytes = cuda_hopper.SHARED_BYTES
    out = cupy.empty(150, cupy.float32), cupy.empty(150, cupy.float32), cupy.empty(150, cupy.int32)
    operands = cupy.asarray(rows), cupy.asarray(centroids)
    for _ in range(n_launches):
        maps = [cuda_hopper.tensor_map(matrix, (128, 64)) for matrix in operands]
        sizes = np.int64(150), np.int32(300), np.int32(392), np.int32(unit)
        arguments = (*maps, cupy.asarray(bias), np.float32(-2), *sizes, *out)
        kernel((2,), (384,), arguments, shared_mem=cuda_hopper.SHARED_BYTES)
    scores = -2.0 * rows.astype(np.float64) @ centroids.astype(np.float64).T + bias[:300]
    order = np.argsort(scores, axis=1)
    expected = *np.take_along_axis(scores, order[:, :2], axis=1).T, order[:, 0]
    return *(a.get() for a in out), *expected


def test_the_two_best_scores_are_found() -> None:
    best, second, index, *expected = _two_best(1)
    np.testing.assert_allclose(best, expected[0], rtol=1e-5)
    np.testing.assert_allclose(second, expected[1], rtol=1e-5)
    np.testing.assert_array_equal(index, expected[2])


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_kernel_is_found_out(how: str) -> None:
    unit, message = unit_of(how), BROKEN[how][2]
    if message:
        with pytest.raises(kernels.CUDADriverError, match=message):
            _two_best(unit, n_launches=10)
        return
    try:
        best, second, index, *expected = _two_best(unit)
    except kernels.CUDADriverError:
        return
    found = np.isclose(best, expected[0], rtol=1e-5) & np.isclose(second, expected[1], rtol=1e-5)
    assert not np.all(found & (index == expected[2]))
