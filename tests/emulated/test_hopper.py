"""A kernel for Hopper that is broken on purpose fails on the emulator; unbroken, it finds the two best scores."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from hkm_dask.kmeans.search import cuda_hopper, tensor_map
from tests.emulated import kernels
from tests.emulated.plugin import emulated_cuda

__all__ = ["emulated_cuda"]  # the fixture
pytestmark = pytest.mark.usefixtures("emulated_cuda")

_MULTIPLY = "multiply_64x256x16(products[0], matrix_at(a + 32 * k), matrix_at(b + 32 * k), step + k > 0);"
_EXPECT = "barrier_expect(full(at.number), takes_rows ? COLUMNS_BYTES + ROWS_BYTES : COLUMNS_BYTES);"
_ARRIVE = "if (lane < 2) barrier_arrive(empty(stage), lane);"
_LAST = "  // a block must not go while the other may arrive at its barriers"
_COPY = "load_tile_for_both(columns_of"
_BASE = "(shared_address(pool) + 1023) & ~1023u"
#: A piece of the source, what takes its place, and what the emulator says: nothing where only scores are wrong.
BROKEN = {
    "wrong parity": ("barrier_wait(full(at.number), at.parity);", "barrier_wait(full(at.number), at.parity ^ 1);", ""),
    "stage not awaited": ("barrier_wait(full(at.number), at.parity);", ";", ""),
    "stage filled before it is empty": ("barrier_wait(empty(at.number), at.parity ^ 1);", ";", ""),
    "stage released before it is read": ("if (step > 0) release(last);", "release(at.number);", ""),
    "products not awaited": ("products_wait<1>();", ";", ""),
    "bytes of the other block not expected": (_EXPECT, _EXPECT.replace("COLUMNS_BYTES", "COLUMNS_BYTES / 2"), ""),
    "registers not fenced": ("products_begin();", ";", "wgmma.fence"),
    "products not committed": ("products_commit();", ";", "before it waited"),
    "registers read too early": ("products_finish(products[0]);", ";", ""),
    "another swizzle": (_MULTIPLY, _MULTIPLY.replace("b + 32 * k)", "b + 32 * k) ^ 3ull << 62"), "128-byte swizzle"),
    "another stride": (_MULTIPLY, _MULTIPLY.replace("b + 32 * k)", "b + 32 * k) - (1ull << 32)"), ""),
    "another chunk": (_MULTIPLY, _MULTIPLY.replace("a + 32 * k", "a + 16 * k"), ""),
    "products of the tile before added": (_MULTIPLY, _MULTIPLY.replace("step + k > 0", "1"), ""),
    "barriers not fenced": ("barrier_init_fence();", ";", "should be fenced"),
    "blocks not synchronized": ("cluster_sync();\n\n", ";", "no barrier|be synchronized"),
    "gone before the other block": (f"cluster_sync();{_LAST}", ";", "returned"),
    "too few arrivals": ("barrier_init(empty(stage), 2 * 8);", "barrier_init(empty(stage), 8);", ""),
    "no arrival at the other block": (_ARRIVE, _ARRIVE.replace("< 2", "== block"), "deadlock"),
    "no registers given up": ("decrease_registers<40>();", ";", "deadlock.*setmaxnreg"),
    "lines not aligned": (_BASE, f"BROKEN ? shared_address(pool) : {_BASE}", "multiple of 1024"),
    "a copy for one block": (_COPY, f"(BROKEN ? load_tile : {_COPY[:18]}){_COPY[18:]}", "deadlock"),
}


@cache
def _source() -> str:
    """The kernel, with all that may be broken in one source: the number of what is comes with `unit`."""
    source = cuda_hopper.source().replace(
        "extern __shared__", "const int broken = unit >> 8;\nunit &= 255;\nextern __shared__"
    )
    for number, (old, new, _) in enumerate(BROKEN.values(), 1):
        assert source.count(old) == 1, old
        either = new if "BROKEN" in new else f"if (BROKEN) {{ {new}\n}} else {{ {old}\n}}\n"
        source = source.replace(old, either.replace("BROKEN", f"broken == {number}"))
    return source


def _two_best(broken: int, n_launches: int = 1) -> tuple[np.ndarray, ...]:
    """The best and second best score of every row, and the column of the best; of rows that do not stay."""
    import cupy

    rng = np.random.default_rng(0)
    rows, centroids = (rng.normal(size=(n, 392)).astype(np.float16) for n in (150, 300))
    bias = np.full(512, np.inf, np.float32)
    bias[:300] = rng.random(300)
    kernel = cupy.RawModule(code=_source()).get_function("nearest_two_hopper")
    kernel.max_dynamic_shared_size_bytes = cuda_hopper._SHARED_BYTES
    out = cupy.empty(150, cupy.float32), cupy.empty(150, cupy.float32), cupy.empty(150, cupy.int32)
    operands = cupy.asarray(rows), cupy.asarray(centroids)
    for _ in range(n_launches):
        maps = [tensor_map.tensor_map(matrix, (128, 64)) for matrix in operands]
        sizes = np.int64(150), np.int32(300), np.int32(392), np.int32(1 + (broken << 8))
        arguments = (*maps, cupy.asarray(bias), np.float32(-2), *sizes, *out)
        kernel((2,), (384,), arguments, shared_mem=cuda_hopper._SHARED_BYTES)
    scores = -2.0 * rows.astype(np.float64) @ centroids.astype(np.float64).T + bias[:300]
    order = np.argsort(scores, axis=1)
    expected = *np.take_along_axis(scores, order[:, :2], axis=1).T, order[:, 0]
    return *(a.get() for a in out), *expected


def test_the_two_best_scores_are_found() -> None:
    best, second, index, *expected = _two_best(0)
    np.testing.assert_allclose(best, expected[0], rtol=1e-5)
    np.testing.assert_allclose(second, expected[1], rtol=1e-5)
    np.testing.assert_array_equal(index, expected[2])


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_kernel_is_found_out(how: str) -> None:
    broken, message = 1 + list(BROKEN).index(how), BROKEN[how][2]
    if message:
        with pytest.raises(kernels.CUDADriverError, match=message):
            _two_best(broken, n_launches=10)
        return
    try:
        best, second, index, *expected = _two_best(broken)
    except kernels.CUDADriverError:
        return
    found = np.isclose(best, expected[0], rtol=1e-5) & np.isclose(second, expected[1], rtol=1e-5)
    assert not np.all(found & (index == expected[2]))
