"""The whole method on a device: the same labels and centroids, to the bit, as on the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm
import hkm_dask.kmeans.fit
import hkm_dask.kmeans.lloyd
from hkm_dask.compute import staging
from hkm_dask.compute.block_cache import Part, device_cache, host_cache
from hkm_dask.compute.keyed_random import random_bits, random_uniform, stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.staging import iter_device_blocks
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.errors import ComputeError
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.kmeans.predict import nearest_labels
from hkm_dask.kmeans.search import tuning
from hkm_dask.kmeans.search.cuda import CudaCentroidIndex
from hkm_dask.kmeans.search.cuda_operand import FORMS_OF, Form
from hkm_dask.kmeans.search.geometry import Geometry, make_geometry
from tests.emulated.plugin import Emulator


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is little work would stay on the host, and an emulator is slow."""
    monkeypatch.setattr(hkm_dask.kmeans.fit, "_TINY_FLOPS", 1e4)
    monkeypatch.setattr(tuning, "DEVICE_TRIAL_ROWS", 64)


def groups(n: int, d: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(12, d))
    return (centers[rng.integers(12, size=n)] + 0.4 * rng.normal(size=(n, d))).astype(dtype)


def twice(cuda: Any, monkeypatch: pytest.MonkeyPatch, compute: Callable[[], Any]) -> tuple[Any, Any]:
    """What `compute` gives on the CPU and on the device."""
    with monkeypatch.context() as patch:
        patch.setenv("HKM_DEVICE", "cpu")
        host_cache.clear()
        on_cpu = compute()
    host_cache.clear()
    device_cache.clear()
    return on_cpu, compute()


class Stored(Rows):
    """Rows that are read block by block, as from a disk."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.label, self.chunk_rows = array, "stored", 1
        self.n_rows, self.n_features = array.shape
        self.dtype = array.dtype
        self.key = ("stored", id(self))
        self.n_reads = 0

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        self.n_reads += 1
        return self._deliver(self.array[start:stop].copy(), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("init", ["coreset", "k-means||", "random"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_fit_is_the_cpus(cuda: Any, monkeypatch: pytest.MonkeyPatch, dtype: type, init: str, weighted: bool) -> None:
    rows = groups(500, 24, dtype)
    weights = np.random.default_rng(1).integers(1, 4, len(rows)) if weighted else None

    def compute() -> Any:
        table = ArrayRows(rows)
        with Runner(n_threads=1) as runner:
            total = None if weights is None else int(weights.sum())
            geometry = make_geometry(table, runner, n_clusters=20, total_weight=total)
            settings = Settings(20, init=init, max_iter=6, key=stream_key(3))
            return fit(table, settings, geometry=geometry, runner=runner, weights=weights)

    on_cpu, on_device = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(on_device.centroids, on_cpu.centroids)
    np.testing.assert_array_equal(on_device.inertia, on_cpu.inertia)


def test_empty_clusters_are_relocated_as_on_the_cpu(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hkm_dask.kmeans.lloyd import iterate

    rows = groups(300, 8)
    start = np.concatenate([rows[:10], np.full((4, 8), 50, np.float32)])

    def compute() -> Any:
        table = ArrayRows(rows)
        with Runner(n_threads=1) as runner:
            geometry = make_geometry(table, runner, n_clusters=14)
            return iterate(table, start.copy(), geometry=geometry, runner=runner, max_iter=5, tol=0.0)

    on_cpu, on_device = twice(cuda, monkeypatch, compute)
    assert on_cpu.n_relocated == on_device.n_relocated > 0
    np.testing.assert_array_equal(on_device.centroids, on_cpu.centroids)


@pytest.mark.parametrize(("metric", "strategy"), [("l2", "closest"), ("cosine", "random")])
def test_a_tree_and_its_sample_are_the_cpus(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, metric: str, strategy: str
) -> None:
    rows = groups(400, 16, np.float16)
    np.save(tmp_path / "rows.npy", rows)
    hkm.ingest([tmp_path / "rows.npy"], tmp_path / "pool.zarr")

    def compute() -> Any:
        tree = tmp_path / f"tree-{np.random.default_rng().integers(1 << 30)}.zarr"
        levels = (
            hkm.Level(n_clusters=20, n_splits=2, n_resamples=2, resample_size=4, resample_strategy=strategy),
            hkm.Level(n_clusters=8, n_resamples=2),
        )
        opened = hkm.build_hierarchy(tmp_path / "pool.zarr", tree, hkm.Config(levels=levels, metric=metric, seed=1))
        arrays = [opened[f"level_{level}"][name].to_numpy() for level in (1, 2) for name in ("labels", "centroids")]
        return [*arrays, opened["level_1"]["distances"].to_numpy(), hkm.sample(tree, 100, seed=2)]

    for on_cpu, on_device in zip(*twice(cuda, monkeypatch, compute), strict=True):
        np.testing.assert_array_equal(on_device, on_cpu)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "tf32"])
def test_every_precision_gives_the_same_tree(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, dtype: str
) -> None:
    rows, forms = groups(300, 32), set()
    plain = CudaCentroidIndex.__init__

    def noted(self: CudaCentroidIndex, centroids: np.ndarray, geometry: Geometry, form: Form = "fused") -> None:
        forms.add(form)
        plain(self, centroids, geometry, form)

    monkeypatch.setattr(CudaCentroidIndex, "__init__", noted)

    def compute() -> Any:
        tree = tmp_path / f"tree-{np.random.default_rng().integers(1 << 30)}.zarr"
        level = hkm.Level(n_clusters=12, n_splits=2, n_resamples=1, resample_size=4, max_iter=4)
        opened = hkm.build_hierarchy(rows, tree, hkm.Config(levels=(level,), dtype=dtype))
        return [opened["level_1"][name].to_numpy() for name in ("labels", "distances", "centroids")]

    for on_cpu, on_device in zip(*twice(cuda, monkeypatch, compute), strict=True):
        np.testing.assert_array_equal(on_device, on_cpu)
    assert forms <= set(FORMS_OF[dtype])
    assert forms


def test_new_rows_are_labeled_as_on_the_cpu(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, centroids = groups(200, 16), groups(30, 16, seed=5)
    rows[7] *= 3000  # further out than any centroid

    def compute() -> Any:
        with Runner(n_threads=1) as runner:
            return nearest_labels(ArrayRows(rows), centroids, runner=runner)

    on_cpu, on_device = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(on_device, on_cpu)
    squared = ((rows.astype(np.float64)[:, None] - centroids.astype(np.float64)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(on_device, squared.argmin(axis=1))


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["1KiB", "20KiB", "64MiB"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_blocks_on_the_device_are_the_rows(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, budget: str, dtype: type
) -> None:
    monkeypatch.setenv("HKM_DEVICE_MEMORY", budget)
    rows = Stored(groups(100, 8, dtype))
    part = Part(rows, (0, 10, 35, 36, 60, 100), budget=1 << 20)
    for _ in range(3):
        found = np.zeros((100, 8), np.float32)
        for start, block in iter_device_blocks(part):
            found[start : start + len(block)] = block.get()
        np.testing.assert_array_equal(found, rows.array.astype(np.float32))
    assert rows.n_reads == 5  # what the device has no room for stays in host memory


def test_blocks_that_fit_stay_on_the_device_and_come_first(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HKM_DEVICE_MEMORY", "5KiB")
    rows = Stored(groups(60, 8))
    part = Part(rows, (0, 20, 40, 60), budget=0)
    orders = [[start for start, _ in iter_device_blocks(part)] for _ in range(3)]
    kept = [pair for pair in [(0, 20), (20, 40), (40, 60)] if device_cache.get(rows.key, pair) is not None]
    assert 0 < len(kept) < 3
    assert orders[1][: len(kept)] == [start for start, _ in kept]
    assert rows.n_reads == 3 + 2 * (3 - len(kept))


def test_a_pool_larger_than_the_device_is_clustered_all_the_same(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array = groups(600, 16, np.float16)

    def compute() -> Any:
        rows = Stored(array)
        with Runner(n_threads=1) as runner:
            geometry = make_geometry(rows, runner, n_clusters=15)
            return fit(rows, Settings(15, max_iter=4), geometry=geometry, runner=runner).centroids

    with monkeypatch.context() as patch:
        patch.setenv("HKM_DEVICE_MEMORY", "6KiB")  # a third of the rows
        on_cpu, on_device = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(on_device, on_cpu)


def test_settings_of_the_device_that_make_no_sense_are_refused(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(Stored(groups(10, 8)), (0, 10), budget=0)
    monkeypatch.setenv("HKM_DEVICE_MEMORY", "plenty")
    with pytest.raises(ComputeError, match="HKM_DEVICE_MEMORY='plenty' should be a number of bytes"):
        list(iter_device_blocks(part))


def test_random_numbers_of_a_row_are_the_same_bits_on_the_device(cuda: Any) -> None:
    rows = np.arange(1 << 40, (1 << 40) + 1000)
    np.testing.assert_array_equal(random_bits(7, cuda.asarray(rows)).get(), random_bits(7, rows))
    np.testing.assert_array_equal(random_uniform(7, cuda.asarray(rows)).get(), random_uniform(7, rows))


def test_a_search_goes_on_when_device_memory_runs_out(cuda: Any, emulator: Emulator) -> None:
    from hkm_dask.kmeans.search.centroid_index import CentroidIndex
    from hkm_dask.kmeans.search.cuda import CudaCentroidIndex

    rows, centroids = groups(600, 16), groups(400, 16, seed=1)
    geometry = make_geometry(ArrayRows(rows), Runner(n_threads=1), n_clusters=10)
    search, there = CudaCentroidIndex(centroids, geometry, "half"), cuda.asarray(rows)
    labels, distances = cuda.full(600, -1, cuda.int32), cuda.full(600, cuda.inf)
    used = cuda.get_default_memory_pool().used_bytes()
    emulator.limit_memory(used + 400_000)  # all scores take 960,000
    search.nearest(there, labels, distances)
    expected, squared = np.full(600, -1, np.int32), np.full(600, np.inf)
    CentroidIndex(centroids, geometry).nearest(rows, expected, squared)
    np.testing.assert_array_equal(labels.get(), expected)
    np.testing.assert_array_equal(distances.get(), squared)


def test_a_fit_keeps_less_on_a_device_that_turns_out_too_small(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = groups(3000, 32)

    def compute() -> Any:
        rows = Stored(array)
        with Runner(n_threads=1) as runner:
            geometry = make_geometry(rows, runner, n_clusters=20)
            return fit(rows, Settings(20, max_iter=3), geometry=geometry, runner=runner).centroids

    monkeypatch.setattr(hkm_dask.kmeans.lloyd, "block_bytes", lambda *_: 1 << 15)
    with monkeypatch.context() as patch:
        patch.setenv("HKM_DEVICE_MEMORY", "1GiB")  # which it has not
        emulator.limit_memory(cuda.get_default_memory_pool().used_bytes() + 700_000)  # rows and operands take more
        on_cpu, on_device = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(on_device, on_cpu)
    assert staging._most_resident is not None
    emulator.limit_memory(20_000)
    with pytest.raises(ComputeError, match=r"device memory ran out \(.*\); free some"):
        compute()
