"""The geometry: measures equal NumPy's, scales never overflow, directions are principal components."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.compute.runner import Runner
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import ArrayRows
from hkm_dask.errors import InputError
from hkm_dask.kmeans.lloyd import means
from hkm_dask.search.geometry import Geometry, make_geometry, measure_rows


def spectrum(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows whose variance falls from direction to direction, none of them an axis."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return ((rng.normal(size=(n, d)) * 0.9 ** np.arange(d)) @ turn + 3.0).astype(np.float32)


# -- scales -----------------------------------------------------------------------------------------------------------

sizes = st.sampled_from([1, 2, 3, 1000, 10**6, 10**9, 10**12])
values = st.floats(2.0**-100, 2.0**60)


@given(sizes, values, st.sampled_from([1, 2, 384, 4096]))
def test_fixed_point_never_leaves_int64(n: int, max_abs: float, d: int) -> None:
    geometry = Geometry(np.zeros(d, np.float32), max_abs, n)
    largest = int(np.rint(max_abs * geometry.scale))
    assert n * largest < 2**63
    assert largest <= 2**53  # a float64 holds it exactly before it becomes an integer
    furthest = d * (2.0 * max_abs) ** 2
    assert furthest * geometry.distance_scale < 2.0**geometry.distance_bits
    for scale in (geometry.scale, geometry.distance_scale):
        assert math.frexp(scale)[0] == 0.5  # a power of two: scaling rounds nothing


@given(sizes, values)
def test_fixed_point_wastes_few_bits(n: int, max_abs: float) -> None:
    geometry = Geometry(np.zeros(8, np.float32), max_abs, n)
    assert n * max_abs * geometry.scale >= 2**57 or max_abs * geometry.scale >= 2**48


def test_a_billion_rows_keep_nine_digits() -> None:
    geometry = Geometry(np.zeros(1024, np.float32), 1.0, 10**9)
    assert geometry.scale == 2.0**31
    assert geometry.distance_sum(10**9).limb_bits == 32


def test_rows_of_zeros_have_a_scale() -> None:
    assert Geometry(np.zeros(2, np.float32), 0.0, 5).scale == 1.0


@given(
    hnp.arrays(np.float32, 4, elements=st.floats(-1, 1, width=32)),
    st.floats(1, 1000),
    st.sampled_from([1, 7, 1000, 10**9]),
    st.booleans(),
)
def test_a_row_lies_within_the_resolution_of_the_mean_of_its_copies(
    row: np.ndarray, max_abs: float, n: int, spherical: bool
) -> None:
    if spherical:
        row, max_abs = UnitRows(ArrayRows(row[None])).read(0, 1)[0], 1.0
    geometry = Geometry(np.zeros(4, np.float32), max_abs, n, spherical=spherical)
    fixed = np.rint(row.astype(np.float64) * geometry.scale).astype(np.int64)
    mean = means((n * fixed)[None], np.array([n]), geometry)[0]
    squared_distance = sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(row, mean, strict=True))
    assert squared_distance <= geometry.resolution


def test_the_resolution_is_small_beside_the_rows() -> None:
    assert Geometry(np.zeros(384, np.float32), 1.0, 10**9).resolution < 1e-15
    assert Geometry(np.zeros(384, np.float32), 1.0, 10**6, spherical=True).resolution < 1e-12


# -- measures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_measures_equal_numpy(dtype: str, runner: Runner) -> None:
    array = (np.random.default_rng(0).normal(size=(300, 5)) * 100 + 50).astype(dtype)
    array[[4, 250]] = 0
    actual = measure_rows(ArrayRows(array), runner)
    made = make_geometry(ArrayRows(array), runner, n_clusters=3)
    wide = array.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(actual.total, wide.sum(0), rtol=1e-12)
    assert (actual.n_rows, actual.n_zero, actual.max_abs) == (300, 2, np.abs(wide).max())
    np.testing.assert_allclose(made.origin, wide.mean(0), rtol=1e-6)
    assert (made.max_abs, made.n_rows, made.basis) == (actual.max_abs, 300, None)


def test_float16_sums_do_not_overflow(runner: Runner) -> None:
    array = np.full((5000, 3), 1000.0, np.float16)  # 5e6 in all, float16 ends at 65504
    assert measure_rows(ArrayRows(array), runner).total.tolist() == [5e6] * 3


@pytest.mark.parametrize("n_bytes", [1000, 1 << 20])
def test_measures_are_bitwise_the_same_for_any_number_of_parts(
    in_parts: Callable[[int], Runner], monkeypatch: pytest.MonkeyPatch, n_bytes: int
) -> None:
    monkeypatch.setattr("hkm_dask.search.geometry.block_bytes", lambda budget, threads: n_bytes)
    rng = np.random.default_rng(0)
    # So far apart that float64 rounds their sum.
    array = (rng.normal(size=(3001, 7)) * 10.0 ** rng.integers(-12, 12, (3001, 7))).astype(np.float32)
    actual = [measure_rows(ArrayRows(array), in_parts(n)) for n in (1, 2, 8)]
    assert len({statistics.total.tobytes() for statistics in actual}) == 1


def test_known_measures_spare_the_pass(runner: Runner) -> None:
    class Counted(ArrayRows):
        n_read = 0

        def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
            self.n_read += stop - start
            return super().read(start, stop, out)

    rows = Counted(np.ones((90_000, 2)))
    geometry = make_geometry(rows, runner, n_clusters=2, mean=np.ones(2, np.float32), max_abs=1.0, total_weight=100_000)
    assert (geometry.n_rows, geometry.max_abs) == (100_000, 1.0)
    assert rows.n_read <= 1024


@pytest.mark.parametrize("d", [1, 4096])
def test_values_too_large_for_float32_squares_are_refused(d: int, runner: Runner) -> None:
    edge = 2.0**62 / math.sqrt(d)
    make_geometry(ArrayRows(np.full((2, d), 0.9 * edge, np.float32)), runner, n_clusters=1)
    with pytest.raises(InputError, match=r"max_abs=.* should be < .* scale the embeddings down"):
        make_geometry(ArrayRows(np.full((2, d), 1.1 * edge, np.float32)), runner, n_clusters=1)


# -- rows far from all others -----------------------------------------------------------------------------------------


def with_far_rows(value: float, n_far: int = 1, n: int = 3000, d: int = 32) -> np.ndarray:
    array = spectrum(n, d)
    array[17 : 17 + 200 * n_far : 200] = value
    return array


def test_the_spread_ignores_far_rows(runner: Runner) -> None:
    array = spectrum(3000, 32)
    expected = np.median(np.linalg.norm(array - np.median(array, axis=0), axis=1))
    for rows in (array, with_far_rows(1e3), with_far_rows(1e12, n_far=10)):
        geometry = make_geometry(ArrayRows(rows), runner, n_clusters=64)
        assert geometry.spread == pytest.approx(expected, rel=0.05)
        assert np.linalg.norm(geometry.origin - 3.0) < 2 * expected


def test_ordinary_rows_keep_the_mean_for_origin(runner: Runner) -> None:
    rows = np.concatenate([np.zeros((60, 2)), np.random.default_rng(0).normal(9, 1, (40, 2))]).astype(np.float32)
    geometry = make_geometry(ArrayRows(rows), runner, n_clusters=2)
    np.testing.assert_array_equal(geometry.origin, rows.mean(0, dtype=np.float64).astype(np.float32))
    assert 10 < geometry.spread < 16  # of the rows that are not all zeros


def test_a_few_far_rows_do_not_set_the_radius(runner: Runner) -> None:
    plain = make_geometry(ArrayRows(spectrum(3000, 32)), runner, n_clusters=64)
    far = make_geometry(ArrayRows(with_far_rows(1e12, n_far=10)), runner, n_clusters=64)
    assert far.radius == pytest.approx(plain.radius, rel=0.3)
    assert far.basis is not None
    assert plain.basis is not None
    overlap = far.basis.get().T @ plain.basis.get()
    np.testing.assert_allclose(np.abs(np.diag(overlap))[:8], 1.0, atol=0.1)


@pytest.mark.parametrize("known", [False, True])
def test_rows_that_sums_would_lose_others_to_are_named(known: bool, runner: Runner) -> None:
    rows = with_far_rows(1e15)
    measured: dict[str, Any] = {"total_weight": 1 << 45}  # leaves few bits to a value
    if known:
        measured |= {"mean": rows.mean(0, dtype=np.float64).astype(np.float32), "max_abs": 1e15}
    with pytest.raises(InputError, match=r"max_abs=1e\+15 in row 17 of array should be < .*; leave that row out"):
        make_geometry(ArrayRows(rows), runner, n_clusters=3, **measured)
    subset = SubsetRows(ArrayRows(rows), np.arange(5, 3000))
    with pytest.raises(InputError, match="in row 17 of array"):
        make_geometry(subset, runner, n_clusters=3, **measured)
    without = SubsetRows(ArrayRows(rows), np.delete(np.arange(3000), 17))
    geometry = make_geometry(without, runner, n_clusters=3, **measured)
    assert geometry.max_abs == np.abs(np.delete(rows, 17, axis=0)).max()
    several = r"max_abs=1e\+15 in 7 rows \(17, 217, 417, 617, 817, …\) of array should be < .*; leave those rows out"
    with pytest.raises(InputError, match=several):
        make_geometry(ArrayRows(with_far_rows(1e15, n_far=7)), runner, n_clusters=3, total_weight=1 << 45)
    assert make_geometry(ArrayRows(rows), runner, n_clusters=3, sums=False).max_abs == np.float32(1e15)


def test_far_initial_centroids_are_refused(runner: Runner) -> None:
    rows = ArrayRows(spectrum(3000, 32))
    start = np.zeros((2, 32), np.float32)
    start[1] = 1e4
    assert make_geometry(rows, runner, n_clusters=2, start=start).max_abs == 1e4
    start[1] = 1e16
    with pytest.raises(InputError, match=r"max_abs=1e\+16 in init should be < "):
        make_geometry(rows, runner, n_clusters=2, start=start, total_weight=1 << 45)


# -- directions -------------------------------------------------------------------------------------------------------


def test_the_basis_holds_the_principal_directions(runner: Runner) -> None:
    array = spectrum(500, 32)  # few enough to be looked at whole
    geometry = make_geometry(ArrayRows(array), runner, n_clusters=64)
    assert geometry.basis is not None
    basis = geometry.basis.get().astype(np.float64)
    assert np.linalg.norm(basis.T @ basis - np.eye(32), 2) <= geometry.basis_error + 1e-12 < 1e-5
    centered = array.astype(np.float64) - array.mean(0, dtype=np.float64)
    variances = ((centered @ basis) ** 2).sum(0)
    expected = np.linalg.svd(centered, compute_uv=False) ** 2
    np.testing.assert_allclose(variances, expected, rtol=1e-3)


@pytest.mark.parametrize(("n", "d", "k"), [(2000, 16, 64), (2000, 32, 63), (100, 32, 64)])
def test_small_problems_have_no_basis(n: int, d: int, k: int, runner: Runner) -> None:
    assert make_geometry(ArrayRows(spectrum(n, d)), runner, n_clusters=k).basis is None


def test_rows_without_variance_have_no_basis(runner: Runner) -> None:
    geometry = make_geometry(ArrayRows(np.full((200, 32), 0.1, np.float32)), runner, n_clusters=64)
    assert geometry.basis is None


@pytest.mark.parametrize("scale", [2.0**-60, 1.0, 2.0**50])
def test_a_basis_needs_squares_that_float32_holds(scale: float, runner: Runner) -> None:
    geometry = make_geometry(ArrayRows(spectrum(2000, 32) * np.float32(scale)), runner, n_clusters=64)
    assert (geometry.basis is not None) == (scale == 1.0)
    if scale == 1.0:
        assert 1.0 <= 32767 * geometry.step / geometry.radius < 2.0
