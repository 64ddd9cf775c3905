"""Scores are exact sums of products of 16-bit integers, with any instruction set."""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.compute.jit import kernel
from hkm_dask.search import int16_gemm


@kernel("i4(i2[:,::1], i8, i2[:,::1], i8, i8, i8)")
def inner(a, i, b, j, first, last):  # type: ignore[no-untyped-def]
    return int16_gemm.inner_product(a, i, b, j, first, last)


def integers(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Rows no longer than `int16_gemm.LARGEST`, some of them of one coordinate."""
    rows = rng.normal(size=(n, width))
    rows[::3] = 0.0
    rows[::3, rng.integers(width)] = rng.choice([-1.0, 1.0])
    return np.trunc(rows / np.linalg.norm(rows, axis=1, keepdims=True) * int16_gemm.LARGEST).astype(np.int16)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 150), st.sampled_from([(16, 16), (48, 32), (112, 112)])
)
def test_scores_are_those_of_exact_arithmetic(seed: int, n: int, k: int, columns: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    width, used = columns
    rows, centroids = integers(rng, n, width), integers(rng, k, width)
    tails = rng.uniform(0, 9, (n, width // 16 + 1)).astype(np.float32)
    chosen, places = rng.permutation(k)[: k // 2 + 1], rng.integers(n, size=n)
    n_padded = int16_gemm.padded(len(chosen))
    constants, slopes = (rng.uniform(-9, 9, n_padded).astype(np.float32) for _ in range(2))
    scale = np.float32(-(2.0**-29))
    n_panels = n_padded // int16_gemm.PANEL
    scores = np.full((-(-n // int16_gemm.BLOCK_ROWS) * int16_gemm.BLOCK_ROWS, n_padded + 16), 77.0, np.float32)
    panels = int16_gemm.pack(centroids, used, chosen)
    int16_gemm.score(rows, used, places, tails, panels, constants, slopes, scale, 0, n_panels, scores)
    dots = rows[places, :used].astype(np.int64) @ centroids[chosen, :used].astype(np.int64).T
    assert np.abs(dots).max() < 2**31
    tail = tails[places, used // 16].astype(np.float64)[:, None]
    expected = constants[: len(chosen)] + float(scale) * dots + tail * slopes[: len(chosen)]
    np.testing.assert_allclose(scores[:n, : len(chosen)], expected, rtol=1e-6, atol=1e-4)
    assert (scores[:, n_padded:] == 77.0).all()


def test_a_later_panel_is_scored_by_itself() -> None:
    rng = np.random.default_rng(0)
    k = 3 * int16_gemm.PANEL
    rows, centroids = integers(rng, int16_gemm.BLOCK_ROWS, 16), integers(rng, k, 16)
    zeros, tails = np.zeros(k, np.float32), np.zeros((int16_gemm.BLOCK_ROWS, 2), np.float32)
    scores = np.zeros((int16_gemm.BLOCK_ROWS, 2 * int16_gemm.PANEL), np.float32)
    places, panels = np.arange(int16_gemm.BLOCK_ROWS), int16_gemm.pack(centroids, 16, np.arange(k))
    int16_gemm.score(rows, 16, places, tails, panels, zeros, zeros, np.float32(1), 1, 2, scores)
    expected = rows.astype(np.int64) @ centroids[int16_gemm.PANEL :].astype(np.int64).T
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@settings(deadline=None)  # processes of their own know nothing of the profile of the tests
@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(1, 4))
def test_inner_products_are_exact(seed: int, first: int, n: int) -> None:
    a, b = (integers(np.random.default_rng(seed + i), 5, 112) for i in range(2))
    low, high = 16 * first, 16 * (first + n)
    expected = a[3, low:high].astype(np.int64) @ b[4, low:high].astype(np.int64)
    assert inner(a, 3, b, 4, low, high) == expected


def test_without_special_instructions_the_numbers_are_the_same(tmp_path: Path) -> None:
    # A processor chosen by hand gets the portable form. numba reads the name when it is imported.
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_int16_gemm as t
assert t.int16_gemm.PANEL == 8, t.int16_gemm.PANEL
t.test_a_later_panel_is_scored_by_itself()
t.test_inner_products_are_exact()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(int16_gemm.PACKED != "u1[::1]", reason="needs a processor with AMX")
def test_a_matrix_unit_can_be_left_alone(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_int16_gemm as t
assert (t.int16_gemm.PACKED, t.int16_gemm.PANEL, t.int16_gemm.BLOCK_ROWS) == ("i2[::1]", 32, 8)
t.test_a_later_panel_is_scored_by_itself()
t.test_scores_are_those_of_exact_arithmetic()
"""
    environment = {**os.environ, "HKM_AMX": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2"), reason="needs a processor with AVX2")
def test_on_a_processor_with_avx2_alone_the_numbers_are_the_same(tmp_path: Path) -> None:
    # What was compiled for this processor must not be taken for that one's.
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    code = f"""
import sys
import llvmlite.binding as llvm
features = llvm.get_host_cpu_features()
for name in [name for name in features if name.startswith("avx512")]:
    features[name] = False
llvm.get_host_cpu_features = lambda: features
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_int16_gemm as t
assert (t.int16_gemm.PANEL, t.int16_gemm.BLOCK_ROWS) == (16, 6), t.int16_gemm.PANEL
t.test_a_later_panel_is_scored_by_itself()
t.test_inner_products_are_exact()
t.test_scores_are_those_of_exact_arithmetic()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
