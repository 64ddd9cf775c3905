"""The emulator runs a kernel, and detects errors that would crash a GPU; `pytest --slow` tests all of it."""

import numpy as np
import pytest

from tests.emulated import kernels, streams

pytestmark = pytest.mark.usefixtures("emulated_cuda")

SOURCE = r"""
extern "C" __global__ void sums(const float* x, double* plain, double* exact, int n) {
    double a = 0.0, b = 0.0;
    for (int i = threadIdx.x; i < n; i += 32) {
        a += x[i];
        b += float_to_double(x[i]);
    }
    for (int step = 16; step; step >>= 1) {
        a += __shfl_xor_sync(0xffffffffu, a, step);
        b += __shfl_xor_sync(0xffffffffu, b, step);
    }
    if (threadIdx.x == 0) {
        *plain = a;
        *exact = b;
    }
}
"""


def test_a_kernel_computes_and_flushes_as_on_a_device() -> None:
    import cupy

    x = np.full(100, 1e-40, np.float32)
    plain, exact = cupy.empty(1), cupy.empty(1)
    kernel = cupy.RawModule(code=SOURCE).get_function("sums")
    kernel((1,), (32,), (cupy.asarray(x), plain, exact, np.int32(100)))
    assert plain.get()[0] == 0  # CuPy compiles with -ftz=true
    np.testing.assert_allclose(exact.get()[0], x.astype(np.float64).sum(), rtol=1e-12)
    with pytest.raises(kernels.CUDADriverError, match="access outside the memory"):
        kernel((1,), (32,), (cupy.asarray(x), plain, exact, np.int32(10**6)))
    with pytest.raises(TypeError, match="should be exactly"):
        kernel((1,), (32,), (cupy.asarray(x), plain, exact, 100))


def test_host_and_device_do_not_mix() -> None:
    import cupy

    x = cupy.arange(4.0)
    with pytest.raises(TypeError, match="Unsupported type"):
        x + np.arange(4.0)
    with pytest.raises(TypeError, match="keyword argument 'where'"):
        cupy.add(x, x, where=True)  # NumPy's alone
    with cupy.cuda.Stream(non_blocking=True), pytest.raises(streams.StreamRaceError):
        x + 1
