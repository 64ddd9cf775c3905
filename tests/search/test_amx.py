"""The matrix unit computes the same scores as vector instructions, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.compute.jit import kernel
from hkm_dask.search import amx, int16_gemm

pytestmark = pytest.mark.skipif(not amx.is_at_hand(), reason="needs a processor with AMX")


@kernel("void(i2[:,::1], i8, i8[::1], f4[:,::1], u1[::1], f4[::1], f4[::1], f4, i8, i8, f4[:,::1])")
def by_tiles(  # type: ignore[no-untyped-def]
    rows, n_columns, places, norms, tiles, constants, slopes, scale, first, n_panels, out
):
    amx.write_by_tiles(rows, n_columns, places, norms, tiles, constants, slopes, scale, first, n_panels, out)


def scored(n: int, k: int, n_columns: int, rng: np.random.Generator, *, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores by tiles, and what NumPy makes of the same in float32."""
    rows, centroids = (rng.integers(-largest, largest + 1, (m, n_columns)).astype(np.int16) for m in (2 * n, k))
    places, width = rng.integers(2 * n, size=n), -(-k // int16_gemm.PANEL) * int16_gemm.PANEL
    constants, slopes = (rng.uniform(-9, 9, width).astype(np.float32) for _ in range(2))
    norms, scale = rng.uniform(0, 9, (2 * n, n_columns // 16 + 1)).astype(np.float32), np.float32(-(2.0**-20))
    out = np.full((-(-n // amx.SIDE) * amx.SIDE, width + 16), np.nan, np.float32)
    tiles = amx.pack(centroids, n_columns, np.arange(k), width)
    by_tiles(rows, n_columns, places, norms, tiles, constants, slopes, scale, 0, width // int16_gemm.PANEL, out)
    dots = (rows[places].astype(np.int64) @ centroids.astype(np.int64).T).astype(np.int32)  # as 32 bits wrap
    # One rounding of each product and sum: float64 holds the products of float32 exactly.
    first = (dots.astype(np.float32).astype(np.float64) * scale + constants[:k]).astype(np.float32)
    second = norms[places, n_columns // 16].astype(np.float64)[:, None] * slopes[:k] + first
    return out[:n, :k], second.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 70), st.integers(1, 30), st.sampled_from([3, 500, 32767])
)
def test_scores_are_those_of_integers(seed: int, n: int, k: int, blocks: int, largest: int) -> None:
    actual, expected = scored(n, k, 16 * blocks, np.random.default_rng(seed), largest=largest)
    np.testing.assert_array_equal(actual, expected)


def test_each_thread_has_tiles_of_its_own() -> None:
    def right(seed: int) -> bool:
        some = [scored(40, 200, 320, np.random.default_rng(seed + i), largest=700) for i in range(20)]
        return all(np.array_equal(actual, expected) for actual, expected in some)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(right, range(0, 400, 100)))


def test_packed_centroids_begin_where_a_line_of_the_cache_does() -> None:
    for k in (1, 33, 700):
        tiles = amx.pack(np.ones((k, 48), np.int16), 48, np.arange(k), int16_gemm.padded(k))
        assert tiles.ctypes.data % amx.CHUNK == 0
        assert tiles.sum() == 48 * k


def test_a_processor_chosen_by_hand_has_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HKM_AMX", "0")
    assert not amx.is_at_hand()
    monkeypatch.delenv("HKM_AMX")
    monkeypatch.setattr(amx.numba_config, "CPU_NAME", "generic")
    assert not amx.is_at_hand()
