"""Bounds by the matrix unit hold, and are as tight as the rounding to bytes allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.compute.jit import kernel
from hkm_dask.search import amx, amx_bounds, int16_gemm

pytestmark = pytest.mark.skipif(not amx.is_at_hand(), reason="needs a processor with AMX")


@kernel("void(i2[:,::1], i8, i8[::1], f4[:,::1], u1[::1], f8[::1], f4[::1], f4[::1], f4, i8, i8, f4[:,::1])")
def bounds_by_tiles(  # type: ignore[no-untyped-def]
    rows, n_columns, places, norms, tiles, rounding, constants, slopes, scale, first, n_panels, out
):
    amx_bounds.write_bounds_by_tiles(
        rows, n_columns, places, norms, tiles, rounding, constants, slopes, scale, first, n_panels, out
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 70), st.integers(1, 30),
    st.sampled_from([0, 1, 3, 127, 128, 500, 32768]), st.sampled_from([0, 1, 3, 127, 128, 500, 32768]),
)  # fmt: skip
def test_bounds_are_below_the_scores_by_no_more_than_rounding_may_change(
    seed: int, n: int, k: int, blocks: int, largest: int, largest_centroid: int
) -> None:
    rng, d = np.random.default_rng(seed), 16 * blocks
    rows, centroids = (
        rng.integers(-most, min(most, 32767) + 1, (m, d)).astype(np.int16)
        for m, most in ((2 * n, largest), (k, largest_centroid))
    )
    rows[rng.random(2 * n) < 0.2] //= 100  # some are much shorter
    places, width = rng.integers(2 * n, size=n), int16_gemm.padded(k)
    constants, slopes = (rng.uniform(-9, 9, width).astype(np.float32) for _ in range(2))
    norms, scale = rng.uniform(0, 9, (2 * n, blocks + 1)).astype(np.float32), np.float32(-(2.0**-20))
    out = np.full((-(-n // int16_gemm.BOUND_ROWS) * int16_gemm.BOUND_ROWS, width + 16), np.nan, np.float32)
    tiles, rounding = amx_bounds.pack_bytes(centroids, d, np.arange(k), width)
    bounds_by_tiles(rows, d, places, norms, tiles, rounding, constants, slopes, scale, 0, width // 32, out)
    x, c = rows[places].astype(np.float64), centroids.astype(np.float64)
    score = x @ c.T * float(scale) + constants[:k] + norms[places, blocks].astype(np.float64)[:, None] * slopes[:k]
    lengths, longest = np.linalg.norm(x, axis=1)[:, None], np.linalg.norm(c, axis=1).max()
    # Rounding to multiples of a 127th of the largest coordinate changes each by half of that.
    units = np.maximum(1, np.ceil(np.abs(x).max(axis=1, initial=0) / 127))[:, None], max(1, np.ceil(abs(c).max() / 127))
    lost, lost_centroid = (np.where(unit > 1, np.sqrt(d) * unit / 2, 0.0) for unit in units)
    slack = -float(scale) * ((lengths + lost) * lost_centroid + lost * (longest + 2 * lost_centroid))
    rounding_of_floats = 1e-6 * (-float(scale) * lengths * longest + 100.0 + slack)
    assert (out[:n, :k] <= score + rounding_of_floats).all()
    assert (out[:n, :k] >= score - 2.0 * slack - rounding_of_floats).all()


@given(st.integers(0, 2**32), st.integers(1, 70), st.sampled_from([0, 1, 127, 128, 500, 32768]))
def test_what_rounding_takes_off_centroids_is_known(seed: int, k: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    centroids = rng.integers(-largest, min(largest, 32767) + 1, (k, 48)).astype(np.int16)
    centroids //= rng.integers(1, 9, (k, 1), dtype=np.int16)
    unit, lost, longest = amx_bounds.pack_bytes(centroids, 48, np.arange(k), int16_gemm.padded(k))[1]
    exact = centroids.astype(np.float64)
    rounded = np.rint(exact / unit) * unit
    assert unit == max(1, np.ceil(np.abs(exact).max() / 127))
    assert lost == pytest.approx(np.linalg.norm(exact - rounded, axis=1).max())
    assert (
        np.linalg.norm(exact, axis=1).max()
        <= longest * (1 + 1e-12)
        <= np.linalg.norm(exact, axis=1).max() + 2 * lost + 1e-9
    )
