"""The CUDA search against the CPU's: labels and distances are the same bits, because both measure in the same order."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.errors import ComputeError
from hkm_dask.kmeans.search import cpu_kernels, cuda_kernels
from hkm_dask.kmeans.search.centroid_index import CentroidIndex
from hkm_dask.kmeans.search.cuda import CudaCentroidIndex
from hkm_dask.kmeans.search.cuda_operand import FORMS, Form, kind_of, make_cuda_operand, multiply
from hkm_dask.kmeans.search.geometry import Geometry
from tests.emulated.plugin import Emulator


def frame_of(rows: np.ndarray, **more: Any) -> Geometry:
    wide = rows.astype(np.float64)
    return Geometry(wide.mean(axis=0).astype(np.float32), float(np.abs(wide).max()), len(rows), **more)


def on_cpu(rows: np.ndarray, centroids: np.ndarray, geometry: Geometry, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, distances = np.full(len(rows), -1, np.int32), np.full(len(rows), np.inf)
    CentroidIndex(centroids, geometry).nearest(rows.astype(np.float32), labels, distances, **how)
    return labels, distances


def on_device(cupy: Any, rows: np.ndarray, search: CudaCentroidIndex, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, distances = cupy.full(len(rows), -1, cupy.int32), cupy.full(len(rows), cupy.inf)
    search.nearest(cupy.asarray(rows), labels, distances, **how)
    return labels.get(), distances.get()


KINDS = {
    "around a mean": lambda rng, n, d: rng.normal(5, 1, (n, d)),
    "ties": lambda rng, n, d: rng.integers(-3, 4, (n, d)),
    "far from the origin": lambda rng, n, d: 300 + rng.normal(0, 0.5, (n, d)),
    "tiny": lambda rng, n, d: 1e-4 * rng.normal(0, 1, (n, d)),
    "an outlier": lambda rng, n, d: rng.normal(0, 1, (n, d)) * np.where(np.arange(n) == 3, 8e3, 1.0)[:, None],
    "tight groups": lambda rng, n, d: (
        rng.normal(0, 1, (7, d))[rng.integers(7, size=n)] + 1e-3 * rng.normal(size=(n, d))
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("n", "d", "k"), [(150, 2, 40), (131, 17, 130), (260, 72, 300)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_device_finds_what_the_cpu_finds(
    cuda: Any, kind: str, n: int, d: int, k: int, dtype: type, form: Form
) -> None:
    rng = np.random.default_rng(n + d)
    k = min(k, n)
    rows = KINDS[kind](rng, n, d).astype(dtype)
    centroids = rows[rng.choice(n, k, replace=False)].astype(np.float32) + rng.normal(0, 1e-3, (k, d)).astype(
        np.float32
    )
    centroids[k // 2] = np.nan
    geometry = frame_of(rows)
    expected = on_cpu(rows, centroids, geometry)
    found = on_device(cuda, rows, CudaCentroidIndex(centroids, geometry, form))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("form", FORMS)
def test_what_is_known_already_is_kept_unless_something_is_nearer(cuda: Any, form: Form) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(200, 24)).astype(np.float16)
    centroids = rng.normal(size=(90, 24)).astype(np.float32)
    geometry, which = frame_of(rows), np.flatnonzero(rng.random(200) < 0.4)
    labels, distances = on_cpu(rows, centroids[:50], geometry)
    device_labels, device_distances = cuda.asarray(labels), cuda.asarray(distances)
    CentroidIndex(centroids[50:], geometry).nearest(rows.astype(np.float32), labels, distances, first=50, which=which)
    search = CudaCentroidIndex(centroids[50:], geometry, form)
    search.nearest(cuda.asarray(rows), device_labels, device_distances, first=50, which=cuda.asarray(which))
    np.testing.assert_array_equal(device_labels.get(), labels)
    np.testing.assert_array_equal(device_distances.get(), distances)


@pytest.mark.parametrize("form", FORMS)
def test_a_search_among_some_keeps_their_numbers(cuda: Any, form: Form) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(140, 16)).astype(np.float32)
    centroids = rows[:60].copy()
    centroids[::7] = np.nan
    geometry, some = frame_of(rows), rng.random(60) < 0.5
    labels, distances = np.full(140, -1, np.int32), np.full(140, np.inf)
    CentroidIndex(centroids, geometry).only(some).nearest(rows, labels, distances)
    found = on_device(cuda, rows, CudaCentroidIndex(centroids, geometry, form).only(some))
    np.testing.assert_array_equal(found[0], labels)
    np.testing.assert_array_equal(found[1], distances)


def test_nothing_to_search_changes_nothing(cuda: Any) -> None:
    rows = np.ones((3, 8), np.float32)
    labels, distances = on_device(cuda, rows, CudaCentroidIndex(np.full((2, 8), np.nan, np.float32), frame_of(rows)))
    assert labels.tolist() == [-1, -1, -1]
    assert np.isinf(distances).all()


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_score_misses_by_no_more_than_the_bound(cuda: Any, form: Form) -> None:
    rng = np.random.default_rng(3)
    for dtype, center in [(np.float16, 0.2), (np.float32, 0.2), (np.float16, 40.0), (np.float32, 4000.0)]:
        rows = rng.normal(center, 1, (50, 64)).astype(dtype)
        centroids = rng.normal(center, 1, (30, 64)).astype(np.float32)
        geometry = frame_of(rows)
        search = CudaCentroidIndex(centroids, geometry, form)
        operand = make_cuda_operand(cuda.asarray(rows), geometry, kind_of(form))
        scales = operand.scale * search._operand.scale
        there = cuda.empty((50, 30), cuda.float32)
        multiply(operand.matrix, search._operand.matrix, there, form)
        products = there.get()
        scores = products * np.float32(-2.0 / scales) + search._biases[operand.as_stored].get()[:30]
        squared = ((rows.astype(np.float64)[:, None] - centroids.astype(np.float64)) ** 2).sum(axis=2)
        missed = np.abs(scores - (squared - operand.norms.get()[:, None]))
        allowed = operand.sizes.get() * search._per_size + operand.errors.get() * search._per_error + search._constant
        assert (missed <= allowed[:, None]).all()
        assert operand.as_stored == (dtype == np.float16 and center < 1 and form == "half")


def test_tiles_are_halved_when_the_device_is_full(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 64)).astype(np.float32)
    search = CudaCentroidIndex(rows[:50], frame_of(rows), "half")
    whole, tiles = search._settled, []

    def full_at_first(*arguments: Any) -> int:
        tiles.append(arguments[-1])
        if len(tiles) < 3:
            raise cuda.cuda.memory.OutOfMemoryError(1, 1, 1)
        return whole(*arguments)

    monkeypatch.setattr(search, "_settled", full_at_first)
    labels, _ = on_device(cuda, rows, search)
    assert tiles == [search._tile >> i for i in range(3)]
    squared = ((rows[:, None].astype(np.float64) - rows[:50].astype(np.float64)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(labels, squared.argmin(axis=1))


@pytest.mark.parametrize("tile", [64, 1000])
def test_tiles_of_any_size_find_the_same(cuda: Any, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    rows, centroids = rng.normal(size=(90, 24)).astype(np.float32), rng.normal(size=(150, 24)).astype(np.float32)
    geometry = frame_of(rows)
    search = CudaCentroidIndex(centroids, geometry, "half")
    search._tile = tile
    monkeypatch.setattr("hkm_dask.kmeans.search.cuda._MOST_COLUMNS", 70)
    found, expected = on_device(cuda, rows, search), on_cpu(rows, centroids, geometry)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize(("shared_kib", "n_stages"), [(227, 4), (163, 3), (99, 2)], ids=["Hopper", "A100", "smaller"])
def test_devices_with_less_shared_memory_have_fewer_stages(
    cuda: Any, emulator: Emulator, shared_kib: int, n_stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cuda.cuda.Device.attributes, "MaxSharedMemoryPerBlockOptin", shared_kib << 10)
    rng = np.random.default_rng(6)
    rows, centroids = rng.normal(size=(140, 328)).astype(np.float16), rng.normal(size=(270, 328)).astype(np.float32)
    geometry = frame_of(rows)
    found, expected = (
        on_device(cuda, rows, CudaCentroidIndex(centroids, geometry, "fused")),
        on_cpu(rows, centroids, geometry),
    )
    assert cuda_kernels.n_stages() == n_stages
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_device_that_is_too_old_is_refused(cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cuda.cuda.Device.attributes, "ComputeCapabilityMajor", 7)
    rows = np.ones((10, 8), np.float32)
    with pytest.raises(ComputeError, match=r"compute_capability=7.0 should be 8.0 or newer"):
        CudaCentroidIndex(rows, frame_of(rows))


# -- the other kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("d", [1, 13, 200])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_are_the_cpus(cuda: Any, dtype: type, d: int, weighted: bool) -> None:
    rng = np.random.default_rng(d)
    n, k, scale = 300, 9, 2.0**40
    rows = rng.normal(size=(n, d)).astype(dtype)
    before, after = (rng.integers(0, k, n).astype(np.int32) for _ in range(2))
    weights = rng.integers(1, 5, n) if weighted else np.empty(0, np.int64)
    sums, counts = np.zeros((k, d), np.int64), np.zeros(k, np.int64)
    device = [cuda.asarray(a) for a in (rows, before, after, weights, sums, counts)]
    wide = rows.astype(np.float32)
    cpu_kernels.add_rows(wide, before, weights, scale, sums, counts)
    cuda_kernels.add_rows(device[0], device[1], device[3], scale, device[4], device[5])
    np.testing.assert_array_equal(device[4].get(), sums)
    np.testing.assert_array_equal(device[5].get(), counts)
    n_moved = cpu_kernels.move_rows(wide, before, after, weights, scale, sums, counts)
    assert cuda_kernels.move_rows(device[0], device[1], device[2], device[3], scale, device[4], device[5]) == n_moved
    np.testing.assert_array_equal(device[4].get(), sums)
    np.testing.assert_array_equal(device[5].get(), counts)


@pytest.mark.parametrize("d", [1, 8, 13, 100])
def test_distances_are_the_cpus(cuda: Any, d: int) -> None:
    rng = np.random.default_rng(d)
    rows, centroids = rng.normal(size=(77, d)).astype(np.float16), rng.normal(size=(5, d)).astype(np.float32)
    centroids[3] = np.nan
    labels, stayed = rng.integers(-1, 5, 77).astype(np.int32), np.array([True, False, False, True, False])
    for flags in (np.empty(0, np.bool_), stayed):
        distances = np.arange(77.0)
        there = cuda.asarray(distances)
        cpu_kernels.label_distances(rows.astype(np.float32), centroids, flags, labels, distances)
        cuda_kernels.label_distances(
            cuda.asarray(rows), cuda.asarray(centroids), cuda.asarray(flags), cuda.asarray(labels), there
        )
        np.testing.assert_array_equal(there.get(), distances)
