"""The nearest centroid is the nearest in float64, with ties to the lowest index, in any form and chunking."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.search.cpu import engine as cpu
from hkm_dask.search.cpu import kernels as cpu_kernels
from hkm_dask.search.cpu.engine import CpuIndex
from hkm_dask.search.cpu.operand import make_operand
from hkm_dask.search.geometry import Geometry
from tests.search.inputs import geometry_of, spectrum


def find(
    centroids: np.ndarray, rows: np.ndarray, geometry: Geometry | None = None, head: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    labels, distances = np.full(len(rows), -1, np.int32), np.full(len(rows), np.inf)
    CpuIndex(centroids, geometry or geometry_of(rows), head).nearest(rows, labels, distances)
    return labels, distances


def brute(centroids: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All squared distances in float64; NaN centroids are infinitely far; `argmin` takes the first."""
    squared, wide = np.empty((len(rows), len(centroids))), rows.astype(np.float64)
    for j, c in enumerate(centroids.astype(np.float64)):
        differences = wide - c
        squared[:, j] = np.einsum("ij,ij->i", differences, differences)
    squared[np.isnan(squared)] = np.inf
    return squared.argmin(1), squared.min(1)


# On a lattice of small integers every distance is exact however it is added up, and ties abound.
lattice = st.tuples(st.integers(1, 30), st.integers(1, 12), st.sampled_from([1, 2, 3, 4, 8, 9, 17])).flatmap(
    lambda s: st.tuples(
        hnp.arrays(np.float32, (s[0], s[2]), elements=st.integers(-2, 2).map(float)),
        hnp.arrays(np.float32, (s[1], s[2]), elements=st.integers(-2, 2).map(float)),
    )
)


@settings(max_examples=60)
@given(lattice, st.integers(0, 17))
def test_ties_and_duplicates_go_to_the_lowest_index(data: tuple[np.ndarray, np.ndarray], head: int) -> None:
    rows, centroids = data
    labels, distances = find(centroids, rows, head=min(head, rows.shape[1]))
    expected, squared = brute(centroids, rows)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(distances, squared)


@settings(max_examples=40)
@given(lattice, st.data())
def test_slots_without_a_centroid_are_never_found(data: tuple[np.ndarray, np.ndarray], slots: st.DataObject) -> None:
    rows, centroids = data
    used = np.array(slots.draw(st.lists(st.booleans(), min_size=len(centroids), max_size=len(centroids)).filter(any)))
    centroids[~used] = np.nan
    labels, distances = find(centroids, rows)
    expected, squared = brute(centroids, rows)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(distances, squared)
    assert used[labels].all()


@pytest.mark.parametrize(("n_bytes", "n_scores"), [(1, 64), (1 << 13, 1 << 12), (1 << 19, 1 << 16)])
def test_tiles_of_scores_may_be_any(n_bytes: int, n_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_TILE_BYTES", n_bytes)
    monkeypatch.setattr(cpu, "_TILE_SCORES", n_scores)
    rows, centroids = spectrum(301, 32), spectrum(150, 32, 1)
    geometry = geometry_of(rows)
    labels, distances = find(centroids, rows, geometry, head=16)
    expected, squared = brute(centroids, rows)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(distances, squared, rtol=1e-13)
    some = np.arange(0, 301, 3)  # rows that are kept in the form of the product are searched in one call
    again, nearest = np.full(301, -1, np.int32), np.full(301, np.inf)
    CpuIndex(centroids, geometry, 16).nearest(rows, again, nearest, make_operand(rows, geometry, 32), 0, some)
    np.testing.assert_array_equal(again[some], expected[some])
    np.testing.assert_array_equal(nearest[some], distances[some])
    assert (np.delete(again, some) == -1).all()


@pytest.mark.parametrize(("n", "k", "d"), [(500, 1, 5), (700, 90, 3), (3000, 40, 64), (300, 4500, 4), (5000, 700, 24)])
def test_labels_and_distances_equal_brute_force(n: int, k: int, d: int) -> None:
    rows, centroids = spectrum(n, d), spectrum(k, d, 1)
    labels, distances = find(centroids, rows)
    expected, squared = brute(centroids, rows)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(distances, squared, rtol=1e-13)


@pytest.mark.parametrize("head", [1, 16, 32, 48, 64])
@pytest.mark.parametrize("random_basis", [False, True])
def test_any_head_gives_the_same_bits(head: int, random_basis: bool) -> None:
    rows, centroids = spectrum(2500, 64), spectrum(300, 64, 1)
    centroids[::7] = centroids[3]
    basis = np.linalg.qr(np.random.default_rng(5).normal(size=(64, 64)))[0] if random_basis else None
    geometry = geometry_of(rows, basis)
    plain, pruned = find(centroids, rows, geometry), find(centroids, rows, geometry, head)
    np.testing.assert_array_equal(plain[0], pruned[0])
    np.testing.assert_array_equal(plain[1], pruned[1])
    np.testing.assert_array_equal(plain[0], brute(centroids, rows)[0])


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([1, 5, 16, 31]), st.sampled_from([0.3, 0.9, 1.0]))
def test_the_pruned_form_bounds_the_distance_from_below(seed: int, head: int, decay: float) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(40, 32)) * decay ** np.arange(32) + 2.0).astype(np.float32)
    geometry = geometry_of(rows)
    form = make_operand(rows, geometry, head)
    short = np.column_stack([form.matrix * geometry.step, form.residual_norms[:, -1].astype(np.float64)])
    bound = np.sqrt(((short[:, None] - short[None]) ** 2).sum(2))
    exact = np.sqrt(((rows[:, None].astype(np.float64) - rows[None]) ** 2).sum(2))
    assert (bound <= exact + form.errors[:, None] + form.errors[None]).all()
    # A bound that is off by more would exclude nothing; a tail that is all rounding is known to its square root only.
    assert form.errors.max() < 1e-2 * np.sqrt(form.norms.max())
    np.testing.assert_allclose(form.norms, (short**2).sum(1), rtol=1e-6)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 700), max_size=5), st.booleans())
def test_however_the_rows_are_cut_the_bits_are_the_same(cuts: list[int], kept: bool) -> None:
    rows, centroids = spectrum(700, 24), spectrum(90, 24, 1)
    geometry, head = geometry_of(rows), 8
    labels, distances = find(centroids, rows, geometry, head)
    search = CpuIndex(centroids, geometry, head)
    for low, high in zip([0, *sorted(cuts)], [*sorted(cuts), 700], strict=True):
        some, best = np.full(high - low, -1, np.int32), np.full(high - low, np.inf)
        operand = make_operand(rows[low:high], geometry, search.n_refine) if kept else None
        search.nearest(rows[low:high], some, best, operand)
        np.testing.assert_array_equal(some, labels[low:high])
        np.testing.assert_array_equal(best, distances[low:high])


@pytest.mark.parametrize("d", [2, 24])
@pytest.mark.parametrize("cuts", [[30], [1, 2, 70], [50, 50]])
def test_centroids_found_batch_by_batch_are_those_found_at_once(d: int, cuts: list[int]) -> None:
    rows, centroids = np.round(spectrum(400, d) * 4), np.round(spectrum(90, d, 1) * 4)  # rounded: many ties
    labels, distances = np.full(400, -1, np.int32), np.full(400, np.inf)
    for low, high in zip([0, *cuts], [*cuts, 90], strict=True):
        CpuIndex(centroids[low:high], geometry_of(rows)).nearest(rows, labels, distances, first=low)
    np.testing.assert_array_equal(labels, brute(centroids, rows)[0])
    np.testing.assert_array_equal(distances, brute(centroids, rows)[1])


@pytest.mark.parametrize("d", [2, 24])
@pytest.mark.parametrize("gaps", [False, True])
def test_what_is_known_before_changes_nothing(d: int, gaps: bool) -> None:
    rows, centroids = spectrum(600, d), spectrum(80, d, 1)
    centroids[40:] = centroids[:40]
    if gaps:
        centroids[[0, 5, 79]] = np.nan
    expected = find(centroids, rows)
    search = CpuIndex(centroids, geometry_of(rows))
    for seed in range(3):
        labels = np.random.default_rng(seed).integers(-1, 80, 600).astype(np.int32)
        distances = np.empty(600)
        cpu_kernels.label_distances(rows, centroids, np.empty(0, np.bool_), labels, distances)
        usable = (labels >= 0) & ~np.isnan(centroids[labels, 0])
        np.testing.assert_array_equal(np.isinf(distances), ~usable)
        exact = ((rows.astype(np.float64) - centroids[labels]) ** 2).sum(1)
        np.testing.assert_allclose(distances[usable], exact[usable], rtol=1e-13)
        search.nearest(rows, labels, distances)
        np.testing.assert_array_equal(labels, expected[0])
        np.testing.assert_array_equal(distances, expected[1])


@pytest.mark.parametrize("d", [2, 24, 100])
@pytest.mark.parametrize("head", [0, 8])
def test_some_rows_among_some_centroids(d: int, head: int) -> None:
    rows, centroids = spectrum(500, d), spectrum(80, d, 1)
    centroids[10] = np.nan
    only = np.random.default_rng(0).uniform(size=80) < 0.3
    only[10] = True
    hidden = np.where((only & ~np.isnan(centroids[:, 0]))[:, None], centroids, np.nan)
    geometry = geometry_of(rows)
    search = CpuIndex(centroids, geometry, head).only(only)
    for which in (np.arange(100, 300), np.array([3, 7, 499]), np.arange(0, 500, 3), np.empty(0, np.int64)):
        labels, distances = np.full(500, -1, np.int32), np.full(500, np.inf)
        search.nearest(
            rows, labels, distances, make_operand(rows, geometry, search.n_refine) if d > 2 else None, which=which
        )
        expected, squared = brute(hidden, rows[which]) if len(which) else (which, which)
        np.testing.assert_array_equal(labels[which], expected)
        np.testing.assert_allclose(distances[which], squared, rtol=1e-13)
        assert (np.delete(labels, which) == -1).all()
    nothing = CpuIndex(centroids, geometry, head).only(np.zeros(80, bool))
    assert nothing.nearest(rows, labels, distances) == 0


# -- numbers that are hard on float32 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [0, 64])
def test_cancellation_far_from_the_origin(head: int) -> None:
    rng = np.random.default_rng(0)
    rows = (10 + 0.05 * rng.normal(size=(2000, 256))).astype(np.float32)
    centroids = (10 + 0.05 * rng.normal(size=(200, 256))).astype(np.float32)
    expected, squared = brute(centroids, rows)
    textbook = (rows * rows).sum(1)[:, None] - 2 * rows @ centroids.T + (centroids * centroids).sum(1)
    assert (textbook.argmin(1) != expected).mean() > 0.05  # the case is as hard as it is meant to be
    # A geometry whose origin is of no help must be as exact, only slower.
    for mean in (rows.mean(0), np.zeros(256, np.float32)):
        base = geometry_of(rows)
        geometry = Geometry(mean, base.max_abs, base.n_rows, base.basis, base.basis_error)
        labels, distances = find(centroids, rows, geometry, head)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_allclose(distances, squared, rtol=1e-13)
        assert (distances >= 0).all()


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-22, 1e-15, 1e6, 1e17])
@pytest.mark.parametrize("head", [0, 8])
def test_no_scale_is_too_small_or_too_large(scale: float, head: int) -> None:
    rows = (np.random.default_rng(0).normal(size=(500, 16)) * scale).astype(np.float32)
    centroids = rows[:40]
    labels, distances = find(centroids, rows, head=head)
    expected, squared = brute(centroids, rows)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(distances, squared, rtol=1e-13)


def test_float16_rows_with_large_values() -> None:
    rows = (np.random.default_rng(0).uniform(300, 1000, size=(500, 48))).astype(np.float16)
    with np.errstate(over="ignore"):
        assert np.isinf((rows**2).sum(1)).all()  # in float16 the norms overflow
    wide = rows.astype(np.float32)
    labels, distances = find(wide[:50], wide)
    expected, squared = brute(rows[:50], rows)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(distances, squared)


@pytest.mark.parametrize("d", [2, 30])
def test_rows_on_centroids_are_at_distance_zero(d: int) -> None:
    rows = spectrum(100, d)
    labels, distances = find(rows, rows, head=min(d, 8))
    np.testing.assert_array_equal(labels, np.arange(100))
    assert not distances.any()


@given(hnp.arrays(np.float32, (20, 2), elements=st.floats(-1e3, 1e3, width=32)), st.integers(1, 20))
def test_the_sweep_over_few_features_is_exact(rows: np.ndarray, k: int) -> None:
    labels, distances = find(rows[:k], rows)
    expected, squared = brute(rows[:k], rows)
    np.testing.assert_allclose(distances, squared, rtol=1e-12)
    same = labels == expected
    # Where the two sums round differently the labels may: then both are as near.
    for i in np.flatnonzero(~same):
        other = math.fsum((float(a) - float(b)) ** 2 for a, b in zip(rows[i], rows[labels[i]], strict=True))
        assert other <= squared[i] * (1 + 1e-12)


def test_most_pairs_the_head_does_not_exclude_need_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, centroids = spectrum(400, 120), spectrum(200, 120, 1)
    geometry, counts = geometry_of(rows), {}
    for n_more in (0, 48):
        monkeypatch.setattr(cpu, "_REFINE", n_more)
        labels, distances = np.full(400, -1, np.int32), np.full(400, np.inf)
        counts[n_more] = CpuIndex(centroids, geometry, 16).nearest(rows, labels, distances)
        np.testing.assert_array_equal(labels, brute(centroids, rows)[0])
    assert 400 <= counts[48] < counts[0] / 3
