"""The emulator itself: kernels behave as on a GPU, and errors and undefined behavior are detected."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from tests.emulated import kernels, memory, streams
from tests.emulated.plugin import Emulator, emulated_cuda

__all__ = ["emulated_cuda"]  # the fixture
pytestmark = [pytest.mark.usefixtures("emulated_cuda"), pytest.mark.slow]  # frozen; test_smoke.py is always run

SOURCE = r"""
#define FULL 0xffffffffu

#ifndef HKM_EMULATED
#error the instructions are given by the emulator
#endif

extern "C" __global__ void shuffles(const int* in, int* out, double* wide, unsigned* votes) {
    const int lane = threadIdx.x & 31, value = in[threadIdx.x];
    out[threadIdx.x] = __shfl_sync(FULL, value, (lane + 5) % 32);
    out[64 + threadIdx.x] = __shfl_xor_sync(FULL, value, 3);
    out[128 + threadIdx.x] = __shfl_down_sync(FULL, value, 4);
    out[192 + threadIdx.x] = __shfl_up_sync(FULL, value, 4);
    wide[threadIdx.x] = __shfl_xor_sync(FULL, (double)value, 16);
    votes[threadIdx.x] = __ballot_sync(FULL, value % 3 == 0);
    if (lane < 8) votes[64 + threadIdx.x] = __shfl_sync(0xffu, (unsigned)lane, 7 - lane);
    else votes[64 + threadIdx.x] = __any_sync(0xffffff00u, value == in[10]) + 2 * __all_sync(0xffffff00u, lane > 7);
}

extern "C" __global__ void __launch_bounds__(128) block_sums(const float* in, double* sums, int* counts, int n) {
    __shared__ double part[4];
    double sum = 0.0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += in[i];
    for (int step = 16; step; step >>= 1) sum += __shfl_down_sync(FULL, sum, step);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0] + part[1] + part[2] + part[3];
    atomicAdd(&counts[threadIdx.x % 8], 1);
}

extern "C" __global__ void scatter(const int* where, const double* values, double* sums, unsigned long long* total,
                                   int* least, int* most, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicAdd(&sums[where[i]], values[i]);
    atomicAdd(total, (unsigned long long)(long long)where[i]);
    atomicMin(least, where[i]);
    atomicMax(most, where[i]);
}

extern __shared__ unsigned char pool[];

// a (16, 16), b (8, 16), d (16, 8): d += a b^T
extern "C" __global__ void product(const unsigned short* a, const unsigned short* b, float* d) {
    unsigned short* sa = (unsigned short*)pool;
    unsigned short* sb = sa + 256;
    const int lane = threadIdx.x;
    copy_async_16(sa + lane * 8, a + lane * 8, 16);
    copy_async_16(sb + lane * 8, b + lane % 16 * 8, lane < 16 ? 16 : 0);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    unsigned fa[4], fb[4];
    load_matrix_x4(fa, sa + (lane % 16) * 16 + lane / 16 * 8);
    load_matrix_x4(fb, sb + (lane % 8) * 16 + lane / 8 % 2 * 8);
    float c[4];
    const int g = lane / 4, t = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) c[i] = d[(g + i / 2 * 8) * 8 + t + i % 2];
    const unsigned halves[2] = {fb[0], fb[1]};
    multiply_16x8x16(c, fa, halves);
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + t + i % 2] = c[i];
}

extern "C" __global__ void copies(const uint4* in, uint4* early, uint4* late, int* left) {
    uint4* slots = (uint4*)pool;
    const int i = threadIdx.x;
    copy_async_16(slots + i, in + i, 16);
    copy_async_commit();
    copy_async_16(slots + 32 + i, in + 32 + i, i % 2 ? 16 : 0);
    copy_async_commit();
    early[i] = slots[i];
    copy_async_wait<1>();
    late[i] = slots[i];
    early[32 + i] = slots[32 + i];
    copy_async_wait<0>();
    late[32 + i] = slots[32 + i];
    copy_async_16(slots + i, in, 16);
    copy_async_wait<0>();  // of a group not closed: nothing has to have come
    left[i] = slots[i].x;
}

extern "C" __global__ void halves(const float* in, unsigned short* narrow, const unsigned short* bits, float* wide,
                                  int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    narrow[i] = float_to_half(in[i]);
    wide[i] = half_to_float(bits[i]);
}

extern "C" __global__ void rounded_up(const double* in, float* up, long long* whole, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    up[i] = __double2float_ru(in[i]);
    whole[i] = __double2ll_rn(in[i]);
}

extern "C" __global__ void poison(int* out, int fill) {
    __shared__ int once;
    __shared__ __align__(16) int several[4];
    if (threadIdx.x == 0) out[blockIdx.x] = once;
    __syncthreads();
    once = several[threadIdx.x % 4] = fill;
}

extern "C" __global__ void misses_shuffle(int* out) {
    if (threadIdx.x != 3) out[0] = __shfl_xor_sync(FULL, 1, 1); else __syncthreads();
}
extern "C" __global__ void loses_lane(int* out) {
    if (threadIdx.x == 3) return;
    __syncthreads();
    out[0] = 1;
}
extern "C" __global__ void loses_lane_of_mask(int* out) {
    if (threadIdx.x == 3) return;
    out[0] = __any_sync(FULL, 1);
}
extern "C" __global__ void warps_leave(int* out) {
    if (threadIdx.x >= 32) return;
    __syncthreads();
    out[threadIdx.x] = __popc(__ballot_sync(FULL, 1));
}
extern "C" __global__ void beyond(int* out, int at, int write) { if (write) out[at] = 1; else out[0] = out[at]; }
extern "C" __global__ void beyond_shared(int at) { pool[at] = 1; }
extern "C" __global__ void beyond_static(int at, int* out) { __shared__ int few[4]; few[at] = 1; out[0] = few[0]; }
extern "C" __global__ void misaligned(const float* in, float4* out) { out[0] = *(const float4*)(in + 1); }
extern "C" __global__ void deep(int* out) {
    char much[300000];
    much[out[0]] = 1;
    __syncwarp();
    out[1] = much[out[0] + 1];
}
extern "C" __global__ void copies_halves(char* in) { copy_async_16(pool, in, 8); }
extern "C" __global__ void scale(float* x, float by) { x[threadIdx.x] *= by * FACTOR; }
extern "C" __global__ void race(int* out) {
    __shared__ int values[64];
    values[threadIdx.x] = threadIdx.x;  // no barrier
    out[threadIdx.x] = values[63 - threadIdx.x];
}
"""


@pytest.fixture
def module() -> Any:
    import cupy

    return cupy.RawModule(code=SOURCE, options=("--std=c++17", "-DFACTOR=2.0f"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_shuffles_and_votes(module: Any, rng: np.random.Generator) -> None:
    import cupy

    values = rng.integers(0, 1000, 64).astype(np.int32)
    out, wide = cupy.empty(256, cupy.int32), cupy.empty(64)
    votes = cupy.empty(128, cupy.uint32)
    module.get_function("shuffles")((1,), (64,), (cupy.asarray(values), out, wide, votes))
    lanes, base = np.arange(64) % 32, np.arange(64) // 32 * 32
    found = out.get().reshape(4, 64)
    np.testing.assert_array_equal(found[0], values[base + (lanes + 5) % 32])
    np.testing.assert_array_equal(found[1], values[base + (lanes ^ 3)])
    np.testing.assert_array_equal(found[2], values[base + np.where(lanes < 28, lanes + 4, lanes)])
    np.testing.assert_array_equal(found[3], values[base + np.where(lanes >= 4, lanes - 4, lanes)])
    np.testing.assert_array_equal(wide.get(), values[base + (lanes ^ 16)])
    ballots = [sum(1 << i for i in range(32) if values[w + i] % 3 == 0) for w in (0, 32)]
    np.testing.assert_array_equal(votes.get()[:64], np.repeat(np.array(ballots, np.uint32), 32))
    part = votes.get()[64:].reshape(2, 32)
    np.testing.assert_array_equal(part[:, :8], [range(7, -1, -1)] * 2)
    expected = [2 + np.any(values[w + 8 : w + 32] == values[10]) for w in (0, 32)]
    np.testing.assert_array_equal(part[:, 8:], np.repeat(expected, 24).reshape(2, 24))


def test_blocks_reduce_across_barriers(module: Any, rng: np.random.Generator) -> None:
    import cupy

    x = rng.normal(size=1000).astype(np.float32)
    sums, counts = cupy.empty(3), cupy.zeros(8, cupy.int32)
    module.get_function("block_sums")((3,), (128,), (cupy.asarray(x), sums, counts, np.int32(1000)))
    expected = [sum(x[i : i + 128].sum(dtype=np.float64) for i in range(b * 128, 1000, 384)) for b in range(3)]
    np.testing.assert_allclose(sums.get(), expected, rtol=1e-14)
    np.testing.assert_array_equal(counts.get(), 3 * 128 // 8)


def test_atomics(module: Any, rng: np.random.Generator) -> None:
    import cupy

    where, values = rng.integers(-3, 7, 500).astype(np.int32), rng.integers(0, 100, 500).astype(np.float64)
    positive = where - where.min()
    sums, total = cupy.zeros(10), cupy.zeros(1, cupy.uint64)
    least, most = cupy.full(1, 2**31 - 1, cupy.int32), cupy.full(1, -(2**31), cupy.int32)
    arguments = (cupy.asarray(positive), cupy.asarray(values), sums, total, least, most, np.int64(500))
    module.get_function("scatter")((2,), (256,), arguments)
    np.testing.assert_array_equal(sums.get(), np.bincount(positive, values, 10))
    assert (int(total[0]), int(least[0]), int(most[0])) == (positive.sum(), positive.min(), positive.max())


def test_tensor_cores_multiply(module: Any, rng: np.random.Generator) -> None:
    import cupy

    a, b = rng.normal(size=(16, 16)).astype(np.float16), rng.normal(size=(8, 16)).astype(np.float16)
    d = rng.normal(size=(16, 8)).astype(np.float32)
    out = cupy.asarray(d)
    module.get_function("product")((1,), (32,), (cupy.asarray(a), cupy.asarray(b), out), shared_mem=1024)
    expected = d + a.astype(np.float64) @ b.astype(np.float64).T
    np.testing.assert_allclose(out.get(), expected, rtol=1e-6, atol=1e-6)
    assert np.all(np.abs(out.get()) <= np.abs(expected))  # cut off towards zero


def test_asynchronous_copies_come_no_sooner_than_waited_for(module: Any, rng: np.random.Generator) -> None:
    import cupy

    values = rng.integers(0, 2**31, (64, 4)).astype(np.uint32)
    early, late = cupy.empty((64, 4), cupy.uint32), cupy.empty((64, 4), cupy.uint32)
    left = cupy.empty(32, cupy.int32)
    module.get_function("copies")((1,), (32,), (cupy.asarray(values), early, late, left), shared_mem=1024)
    assert np.all(early.get() == 0xCDCDCDCD)
    assert np.all(left.get().view(np.uint32) == 0xCDCDCDCD)
    odd = np.arange(32)[:, None] % 2 == 1
    np.testing.assert_array_equal(late.get()[:32], values[:32])
    np.testing.assert_array_equal(late.get()[32:], np.where(odd, values[32:], 0))


def test_halves_are_those_of_numpy(module: Any, rng: np.random.Generator) -> None:
    import cupy

    n = 65536
    floats = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    floats[:4] = [65519.996, 65520, 2**-24 / 2, -(2**-14)]
    scale = np.float32(2.0) ** rng.integers(-28, 18, n // 2)  # where halves are, subnormal or not
    floats[n // 2 :] = rng.normal(size=n // 2).astype(np.float32) * scale
    bits = np.arange(n, dtype=np.uint16)
    narrow, wide = cupy.empty(n, cupy.float16), cupy.empty(n, cupy.float32)
    arguments = (cupy.asarray(floats), narrow, cupy.asarray(bits), wide, np.int32(n))
    module.get_function("halves")((n // 256,), (256,), arguments)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(narrow.get(), floats.astype(np.float16))
    np.testing.assert_array_equal(wide.get(), bits.view(np.float16).astype(np.float32))
    assert not np.any(np.signbit(wide.get()) != np.signbit(bits.view(np.float16)))


def test_directed_rounding(module: Any, rng: np.random.Generator) -> None:
    import cupy

    x = np.concatenate(
        [rng.normal(size=500) * 10.0 ** rng.integers(-40, 15, 500), [0.5, 1.5, 2.5, -0.5, 1e300, -1e300]]
    )
    up, whole = cupy.empty(len(x), cupy.float32), cupy.empty(len(x), cupy.int64)
    module.get_function("rounded_up")((4,), (128,), (cupy.asarray(x), up, whole, np.int32(len(x))))
    found, normal = up.get(), np.abs(x) >= np.finfo(np.float32).tiny
    assert np.all(found[~normal] == 0)  # with -ftz=true, whatever the direction
    assert np.all(found.astype(np.float64)[normal] >= x[normal])
    with np.errstate(all="ignore"):
        assert np.all(np.nextafter(found, np.float32(-np.inf)).astype(np.float64)[normal] < x[normal])
    inside = np.abs(x) < 2.0**62
    np.testing.assert_array_equal(whole.get()[inside], np.rint(x[inside]).astype(np.int64))
    np.testing.assert_array_equal(whole.get()[-2:], [2**63 - 1, -(2**63)])


def test_shared_memory_is_poisoned_between_blocks(module: Any) -> None:
    import cupy

    out = cupy.zeros(3, cupy.int32)
    module.get_function("poison")((3,), (32,), (out, np.int32(5)))
    assert np.all(out.get().view(np.uint32) == 0xCDCDCDCD)


def test_options_define_macros(module: Any) -> None:
    import cupy

    x = cupy.ones(4, cupy.float32)
    module.get_function("scale")((1,), (4,), (x, np.float32(3)))
    np.testing.assert_array_equal(x.get(), 6)
    with pytest.raises(kernels.CompileException, match="FACTOR"):
        cupy.RawModule(code=SOURCE).get_function("scale")
    with pytest.raises(kernels.CUDADriverError, match="not found"):
        module.get_function("none")
    with pytest.raises(kernels.CompileException, match="include"):
        cupy.RawModule(code="#include <vector>\n").get_function("none")


def test_a_missing_barrier_shows_in_some_order_of_the_threads(module: Any) -> None:
    import cupy

    kernel, right = module.get_function("race"), np.arange(63, -1, -1)
    out = cupy.empty(64, cupy.int32)
    wrong = 0
    for _ in range(10):
        kernel((1,), (64,), (out,))
        wrong += not np.array_equal(out.get(), right)
    assert wrong


@pytest.mark.parametrize(
    ("name", "block", "message"),
    [
        ("misses_shuffle", 32, "deadlock"),
        ("loses_lane", 64, "returned"),
        ("loses_lane_of_mask", 32, "returned"),
        ("deep", 32, "outside the memory"),
        ("copies_halves", 1, "n_bytes=8"),
    ],
)
def test_lanes_that_go_astray_are_reported(module: Any, name: str, block: int, message: str) -> None:
    import cupy

    x = cupy.zeros(16, cupy.int8 if name == "copies_halves" else cupy.int32)
    with pytest.raises(kernels.CUDADriverError, match=message):
        module.get_function(name)((1,), (block,), (x,), shared_mem=16)


def test_whole_warps_may_return(module: Any) -> None:
    import cupy

    for _ in range(20):  # in whatever order warps run
        out = cupy.zeros(32, cupy.int32)
        module.get_function("warps_leave")((1,), (96,), (out,))
        np.testing.assert_array_equal(out.get(), 32)


@pytest.mark.parametrize(
    ("at", "write"), [(1000, 1), (1000, 0), (1 << 17, 0), (-2000, 1), (-2000, 0), (1001, 1), (-1, 1)]
)
def test_access_outside_an_array_is_reported(module: Any, at: int, write: int) -> None:
    import cupy

    n = 1000 if at != 1001 else 1001  # 12 bytes are left before the fence page
    with pytest.raises(kernels.CUDADriverError, match=r"memory|beside"):
        module.get_function("beyond")((1,), (1,), (cupy.zeros(n, cupy.int32), np.int32(at), np.int32(write)))


def test_access_beyond_shared_memory_is_reported(module: Any) -> None:
    import cupy

    for name, at, arguments in [("beyond_shared", 100, ()), ("beyond_shared", 4096, ()), ("beyond_static", 4, (1,))]:
        arrays = tuple(cupy.zeros(1, cupy.int32) for _ in arguments)
        with pytest.raises(kernels.CUDADriverError, match=r"memory|array"):
            module.get_function(name)((1,), (1,), (np.int32(at), *arrays), shared_mem=100)
    with pytest.raises(kernels.CUDADriverError, match=r"misaligned.*kernels\.cu:"):
        module.get_function("misaligned")((1,), (1,), (cupy.zeros(8, cupy.float32), cupy.zeros(4, cupy.float32)))


def test_arguments_should_be_of_exactly_the_type(module: Any) -> None:
    import cupy

    x, kernel = cupy.zeros(32, cupy.float32), module.get_function("scale")
    for wrong in [
        (x, 2.0), (x, np.float64(2)), (x, np.int32(2)), (x, x), (x,), (x, np.float32(2), np.float32(2)),
        (x.astype(cupy.float64), np.float32(2)), (x.view(cupy.int32), np.float32(2)),
        (np.zeros(32, np.float32), np.float32(2)),
    ]:  # fmt: skip
        with pytest.raises(TypeError):
            kernel((1,), (32,), wrong)
    with pytest.raises(ValueError, match="contiguous"):
        kernel((1,), (16,), (x[::2], np.float32(2)))


def test_launches_are_within_the_limits_of_the_device(module: Any) -> None:
    import cupy

    x, kernel = cupy.zeros(2048, cupy.float32), module.get_function("scale")
    for grid, block in [((0,), (32,)), ((1,), (1025,)), ((1, 70000), (32,))]:
        with pytest.raises(kernels.CUDADriverError, match="INVALID_VALUE"):
            kernel(grid, block, (x, np.float32(1)))
    with pytest.raises(kernels.CUDADriverError, match="at most 128"):
        module.get_function("block_sums")((1,), (256,), (x, cupy.zeros(1), cupy.zeros(8, cupy.int32), np.int32(0)))
    with pytest.raises(kernels.CUDADriverError, match="max_dynamic_shared_size_bytes"):
        kernel((1,), (32,), (x, np.float32(1)), shared_mem=100 << 10)
    kernel.max_dynamic_shared_size_bytes = 100 << 10
    kernel((1,), (32,), (x, np.float32(1)), shared_mem=100 << 10)
    with pytest.raises(kernels.CUDADriverError, match="<= 232448"):
        kernel.max_dynamic_shared_size_bytes = 228 << 10
    assert module.get_function("block_sums").shared_size_bytes == 32
    again = module.get_function("scale")  # the same function of the driver's
    again.max_dynamic_shared_size_bytes = 60 << 10
    with pytest.raises(kernels.CUDADriverError, match="max_dynamic_shared_size_bytes"):
        kernel((1,), (32,), (x, np.float32(2)), shared_mem=100 << 10)


# -- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_that_does_not_wait_is_reported() -> None:
    import cupy

    x, other = cupy.zeros(8), cupy.cuda.Stream(non_blocking=True)
    with other, pytest.raises(streams.StreamRaceError):
        x + 1
    ready = cupy.cuda.get_current_stream().record()
    with other:
        other.wait_event(ready)
        y = x + 1
    with pytest.raises(streams.StreamRaceError):
        y.sum()
    with pytest.raises(streams.StreamRaceError):
        x.fill(1)
    x.sum()  # both may read
    other.synchronize()
    x.fill(1)
    assert float(y.sum()) == 8


def test_the_null_stream_waits_for_blocking_streams() -> None:
    import cupy

    x, blocking = cupy.zeros(8), cupy.cuda.Stream()
    with blocking:
        x += 1
    assert float(x.sum()) == 8


def test_pinned_memory_is_read_no_sooner_than_waited_for() -> None:
    import cupy
    import cupyx

    stream, pinned = cupy.cuda.Stream(non_blocking=True), cupyx.zeros_pinned(4)
    with stream:
        x, y = cupy.empty(4), cupy.empty(4)
        x.set(pinned[:], stream=stream)
        pinned[...] = 1  # too early
        y.set(pinned, stream=stream)
        copied = stream.record()
    assert not copied.done
    copied.synchronize()
    assert copied.done
    pinned[...] = 2
    np.testing.assert_array_equal(x.get(), 1)
    np.testing.assert_array_equal(y.get(), 1)


def test_pinned_memory_is_written_no_sooner_than_waited_for() -> None:
    import cupy
    import cupyx

    x, pinned = cupy.ones(4), cupyx.empty_pinned(4)
    x.get(out=pinned, blocking=False)
    assert np.isnan(pinned).all()
    cupy.cuda.Device().synchronize()
    np.testing.assert_array_equal(pinned, 1)
    np.testing.assert_array_equal(x.get(out=cupyx.empty_pinned(4)), 1)


# -- the arrays ------------------------------------------------------------------------------------------------------


def test_host_and_device_do_not_mix() -> None:
    import cupy

    x, host = cupy.arange(4.0), np.arange(4.0)
    assert type(x).__module__ == "cupy"
    for mix in [
        lambda: x + host, lambda: host + x, lambda: np.asarray(x), lambda: np.array([x[0]]),
        lambda: cupy.maximum(x, host),
        lambda: cupy.sqrt(host), lambda: x[np.array([1])], lambda: x.__setitem__(slice(None), host),
        lambda: cupy.concatenate([x, host]), lambda: x @ host, lambda: x.__iadd__(host), lambda: host.__setitem__(0, x),
        lambda: x == host, lambda: cupy.where(x > 1, x, host), lambda: x.set(x), lambda: x.get(out=cupy.empty(4)),
        lambda: cupy.take(x, np.array([1])), lambda: x[[1, 2]], lambda: host[x.astype(np.int64)],
    ]:  # fmt: skip
        with pytest.raises((TypeError, IndexError, ValueError)):
            mix()
    with pytest.raises(TypeError, match=r"Implicit conversion.*\.get\(\)"):
        np.testing.assert_array_equal(x, host)


def test_scalars_mix_and_results_stay_on_the_device() -> None:
    import cupy

    x = cupy.arange(6, dtype=cupy.float32).reshape(2, 3)
    for y in (x * 2, 2 * x, np.float32(2) * x, x * np.float32(2), x + x, cupy.add(x, x), np.add(x, x)):
        assert isinstance(y, cupy.ndarray)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y.get(), [[0, 2, 4], [6, 8, 10]])
    for zero_d in (x.sum(), x[0, 1], x.argmax(), cupy.any(x > 2), x.min(), cupy.asarray(3)):
        assert isinstance(zero_d, cupy.ndarray)
        assert zero_d.shape == ()
    assert (int(x.argmax()), float(x.sum()), x.max().item(), bool((x < 9).all())) == (5, 15.0, 5.0, True)
    assert x.sum(axis=1, dtype=cupy.float64).dtype == np.float64
    assert cupy.asarray(x) is x


def test_views_share_memory_as_in_cupy() -> None:
    import cupy

    x = cupy.zeros((4, 3), cupy.float32)
    x[1:3][0, 1] = 5
    x.T[0, 3] = 7
    x.reshape(-1)[0] = 1
    x[2, 2].fill(9)
    x[x == 9] = 4
    np.testing.assert_array_equal(x.get(), [[1, 0, 0], [0, 5, 0], [0, 0, 4], [7, 0, 0]])
    assert x[1:].data.ptr == x.data.ptr + 12
    assert x.view(cupy.int32)[0, 0].item() == 0x3F800000
    chosen = x[cupy.asarray([3, 0])]
    chosen[...] = 0
    assert x[3, 0].item() == 7


def test_functions_agree_with_numpy(rng: np.random.Generator) -> None:
    import cupy

    host = rng.integers(0, 9, 50)
    x = cupy.asarray(host)
    for ours, theirs in [
        (cupy.flatnonzero(x > 4), np.flatnonzero(host > 4)), (cupy.nonzero(x)[0], np.nonzero(host)[0]),
        (cupy.where(x > 4, x, -1), np.where(host > 4, host, -1)), (cupy.sort(x), np.sort(host)),
        (x[cupy.argsort(x)], np.sort(host)), (cupy.partition(x, 7)[7], np.sort(host)[7]),
        (cupy.unique(x), np.unique(host)), (cupy.take(x, cupy.asarray([3, 1])), host[[3, 1]]),
        (cupy.bincount(x, minlength=20), np.bincount(host, minlength=20)), (x.take(cupy.asarray([0])), host[:1]),
        (cupy.searchsorted(cupy.arange(9), x), host), (cupy.cumsum(x), np.cumsum(host)),
        (cupy.rint(x / 2), np.rint(host / 2)), (cupy.maximum(x, 3), np.maximum(host, 3)), (abs(-x), host),
        (cupy.concatenate([x, x]), np.concatenate([host, host])), (cupy.isfinite(cupy.log(x)), host > 0),
        (cupy.ascontiguousarray(x[::2]), host[::2]), (cupy.full((2, 2), 3), np.full((2, 2), 3)),
        (x.reshape(5, 10) @ x.reshape(10, 5), host.reshape(5, 10) @ host.reshape(10, 5)),
        (x.reshape(5, 10).sum(axis=0), host.reshape(5, 10).sum(axis=0)), (cupy.zeros_like(x), np.zeros_like(host)),
    ]:  # fmt: skip
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours.get(), theirs)


def test_new_memory_is_poisoned() -> None:
    import cupy

    assert bool(cupy.isnan(cupy.empty(10)).all())
    assert bool((cupy.empty(10, cupy.int32) == 0x7F7F7F7F).all())


def test_memory_is_limited_and_given_back(emulated_cuda: Emulator) -> None:
    import cupy

    gc.collect()
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.used_bytes()
    emulated_cuda.limit_memory(before + (1 << 20))
    x = cupy.zeros(1 << 19, cupy.uint8)
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="allocating"):
        cupy.empty(1 << 20, cupy.uint8)
    assert cupy.cuda.runtime.memGetInfo() == (1 << 19, before + (1 << 20))
    y = x[10:]
    del x
    assert pool.used_bytes() == before + (1 << 19)  # y holds it
    del y
    assert pool.used_bytes() == before
    assert cupy.cuda.Device().mem_info[0] == 1 << 19  # the pool keeps it ...
    pool.free_all_blocks()
    assert cupy.cuda.Device().mem_info[0] == 1 << 20  # ... until told
    cupy.empty(1 << 20, cupy.uint8)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("transa", "transb"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm_is_column_major(rng: np.random.Generator, half: bool, transa: int, transb: int) -> None:
    import cupy
    from cupy.cuda import cublas

    m, n, k, pad = 5, 7, 11, 2
    dtype, kind = (np.float16, 2) if half else (np.float32, 0)
    a = rng.normal(size=(m, k) if transa == 0 else (k, m)).astype(dtype)
    b = rng.normal(size=(k, n) if transb == 0 else (n, k)).astype(dtype)
    c = rng.normal(size=(m, n)).astype(np.float32)

    def columns(matrix: np.ndarray) -> Any:  # each column one row of memory, with some to spare
        stored = np.full((matrix.shape[1], matrix.shape[0] + pad), np.nan, matrix.dtype)
        stored[:, : matrix.shape[0]] = matrix.T
        return cupy.asarray(stored)

    da, db, dc = columns(a), columns(b), columns(c)
    alpha, beta = np.array(2, np.float32), np.array(0.5, np.float32)
    cublas.gemmEx(
        cupy.cuda.device.get_cublas_handle(), transa, transb, m, n, k, alpha.ctypes.data,
        da.data.ptr, kind, da.shape[1], db.data.ptr, kind, db.shape[1], beta.ctypes.data,
        dc.data.ptr, 0, dc.shape[1], cublas.CUBLAS_COMPUTE_32F, -1,
    )  # fmt: skip
    left, right = a.T if transa else a, b.T if transb else b
    expected = 2 * left.astype(np.float64) @ right.astype(np.float64) + 0.5 * c
    np.testing.assert_allclose(dc.get().T[:m], expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(dc.get().T[m:]).all()


def test_nothing_was_written_beside_any_array() -> None:
    assert memory.check_canaries() == []
