"""The CUDA search gives the same bits as the CPU's, because both compute distances in the same order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.search.cpu.engine import CpuIndex
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.cuda.kernels import RowList
from hkm_dask.search.cuda.operand import FORMS, Form
from hkm_dask.search.geometry import make_geometry
from tests.emulated.memory import RMM_MESSAGE
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import geometry_of, groups, search_on_cpu, search_on_device

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


# Every kind and type at one size; fewer features and centroids than a tile takes, and several tiles, of each type once,
# for the two hardest kinds.
CASES = [
    *(("around a mean", 150, 2, 40, dtype) for dtype in (np.float16, np.float32)),
    *((kind, 131, 17, 130, dtype) for kind in KINDS for dtype in (np.float16, np.float32)),
    ("ties", 260, 72, 300, np.float16),
    ("an outlier", 260, 72, 300, np.float32),
    pytest.param("ties", 260, 72, 300, np.float32, marks=pytest.mark.slow),
    pytest.param("an outlier", 260, 72, 300, np.float16, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "n", "d", "k", "dtype"), CASES)
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
    geometry = geometry_of(rows)
    expected = search_on_cpu(rows, centroids, geometry)
    actual = search_on_device(cuda, rows, CudaIndex(centroids, geometry, form))
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.parametrize("unit", [1, 2, 4])
def test_units_of_columns_find_the_same(cuda: Any, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(150, 20)).astype(np.float32)
    centroids = rng.normal(size=(301, 20)).astype(np.float32)
    # Rows for whom another column than the first of a unit is nearest, and no other unit is near.
    first = 16 * np.arange(18) + 2 * np.arange(18) % 8
    for column, offset in ((1, 0.05), (8, 0.3), (9, 0.3)):
        centroids[first + column] = centroids[first] + np.float32(offset)
    rows[:72] = centroids[np.concatenate([first, first + 1, first + 8, first + 9])]
    geometry, n_open = geometry_of(rows), []
    plain = RowList.get

    def counted(self: RowList) -> Any:
        n_open.append(len(left := plain(self)))
        return left

    monkeypatch.setattr("hkm_dask.search.cuda.index._CENTROIDS_FOR_UNITS", {unit: 0})
    monkeypatch.setattr(RowList, "get", counted)
    expected = search_on_cpu(rows, centroids, geometry)
    actual = search_on_device(cuda, rows, CudaIndex(centroids, geometry, "fused"))
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])
    assert n_open[0] < 120


@pytest.mark.parametrize("form", FORMS)
def test_subnormal_rows_are_searched_as_on_the_cpu(cuda: Any, form: Form) -> None:
    rng = np.random.default_rng(4)
    rows, centroids = ((1e-40 * rng.normal(size=(n, 24))).astype(np.float32) for n in (140, 30))
    rows[:20] += np.float32(1e-38)
    geometry = geometry_of(rows)
    expected = search_on_cpu(rows, centroids, geometry)
    assert len(np.unique(expected[0])) > 10
    labels, distances = search_on_device(cuda, rows, CudaIndex(centroids, geometry, form))
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_array_equal(distances, expected[1])


@pytest.mark.parametrize("form", FORMS)
def test_what_is_known_already_is_kept_unless_something_is_nearer(cuda: Any, form: Form) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(200, 24)).astype(np.float16)
    centroids = rng.normal(size=(90, 24)).astype(np.float32)
    geometry, which = geometry_of(rows), np.flatnonzero(rng.random(200) < 0.4)
    labels, distances = search_on_cpu(rows, centroids[:50], geometry)
    device_labels, device_distances = cuda.asarray(labels), cuda.asarray(distances)
    CpuIndex(centroids[50:], geometry).nearest(rows.astype(np.float32), labels, distances, first=50, which=which)
    search = CudaIndex(centroids[50:], geometry, form)
    search.nearest(cuda.asarray(rows), device_labels, device_distances, first=50, which=cuda.asarray(which))
    np.testing.assert_array_equal(device_labels.get(), labels)
    np.testing.assert_array_equal(device_distances.get(), distances)


@pytest.mark.parametrize("form", FORMS)
def test_a_search_among_some_keeps_their_numbers(cuda: Any, form: Form) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(140, 16)).astype(np.float32)
    centroids = rows[:60].copy()
    centroids[::7] = np.nan
    geometry, some = geometry_of(rows), rng.random(60) < 0.5
    labels, distances = np.full(140, -1, np.int32), np.full(140, np.inf)
    CpuIndex(centroids, geometry).only(some).nearest(rows, labels, distances)
    actual = search_on_device(cuda, rows, CudaIndex(centroids, geometry, form).only(some))
    np.testing.assert_array_equal(actual[0], labels)
    np.testing.assert_array_equal(actual[1], distances)


def test_centroids_may_be_on_the_device_already(cuda: Any) -> None:
    rows = groups(140, 16)
    geometry, centroids = geometry_of(rows), rows[:30].copy()
    for n_unused in (0, 3):
        centroids[:n_unused] = np.nan
        index = CudaIndex(cuda.asarray(centroids), geometry)
        for actual, expected in zip(
            search_on_device(cuda, rows, index), search_on_cpu(rows, centroids, geometry), strict=True
        ):
            np.testing.assert_array_equal(actual, expected)


def test_nothing_to_search_changes_nothing(cuda: Any) -> None:
    rows = np.ones((3, 8), np.float32)
    labels, distances = search_on_device(cuda, rows, CudaIndex(np.full((2, 8), np.nan, np.float32), geometry_of(rows)))
    assert labels.tolist() == [-1, -1, -1]
    assert np.isinf(distances).all()


OUT_OF_MEMORY: dict[str, Callable[[Any], MemoryError]] = {
    "CuPy": lambda cuda: cuda.cuda.memory.OutOfMemoryError(1, 1, 1),
    "RMM": lambda cuda: MemoryError(RMM_MESSAGE),
}


@pytest.mark.parametrize("out_of_memory", OUT_OF_MEMORY)
def test_tiles_are_halved_when_the_device_is_full(
    cuda: Any, out_of_memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 64)).astype(np.float32)
    search = CudaIndex(rows[:50], geometry_of(rows), "half")
    whole, tiles = search._settled, []

    def full_at_first(*arguments: Any) -> int:
        tiles.append(arguments[-1])
        if len(tiles) < 3:
            raise OUT_OF_MEMORY[out_of_memory](cuda)
        return whole(*arguments)

    monkeypatch.setattr(search, "_settled", full_at_first)
    labels, _ = search_on_device(cuda, rows, search)
    assert tiles == [search._tile >> i for i in range(3)]
    squared = ((rows[:, None].astype(np.float64) - rows[:50].astype(np.float64)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(labels, squared.argmin(axis=1))


@pytest.mark.parametrize("tile", [64, 1000])
def test_tiles_of_any_size_find_the_same(cuda: Any, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    rows, centroids = rng.normal(size=(90, 24)).astype(np.float32), rng.normal(size=(150, 24)).astype(np.float32)
    geometry = geometry_of(rows)
    search = CudaIndex(centroids, geometry, "half")
    search._tile = tile
    monkeypatch.setattr("hkm_dask.search.cuda.index._MOST_COLUMNS", 70)
    actual, expected = search_on_device(cuda, rows, search), search_on_cpu(rows, centroids, geometry)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.parametrize("allocator", ["cupy", "rmm"])
def test_a_search_continues_when_device_memory_runs_out(cuda: Any, emulator: Emulator, allocator: str) -> None:
    emulator.allocate_with(allocator)

    rows, centroids = groups(600, 16), groups(400, 16, seed=1)
    geometry = make_geometry(ArrayRows(rows), Runner(n_threads=1), n_clusters=10)
    search, on_gpu = CudaIndex(centroids, geometry, "half"), cuda.asarray(rows)
    labels, distances = cuda.full(600, -1, cuda.int32), cuda.full(600, cuda.inf)
    used = cuda.get_default_memory_pool().used_bytes()
    emulator.limit_memory(used + 400_000)  # all scores take 960,000
    search.nearest(on_gpu, labels, distances)
    expected, squared = np.full(600, -1, np.int32), np.full(600, np.inf)
    CpuIndex(centroids, geometry).nearest(rows, expected, squared)
    np.testing.assert_array_equal(labels.get(), expected)
    np.testing.assert_array_equal(distances.get(), squared)
