"""The whole method on a device: bitwise the same labels and centroids as on the CPU."""

from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm
import hkm_dask.kmeans.fit
import hkm_dask.kmeans.lloyd
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.kmeans.lloyd import Progress
from hkm_dask.kmeans.predict import nearest_labels
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.cuda.operand import FORMS_OF, Form
from hkm_dask.search.geometry import Geometry, make_geometry
from tests.gpu.inputs import Stored, groups, twice

pytestmark = pytest.mark.usefixtures("little_work_on_the_device")


# Every start, type of rows, with and without weights; what one makes of rows does not depend on the others.
@pytest.mark.parametrize(
    ("dtype", "weighted", "init"),
    [
        (np.float16, False, "coreset"),
        (np.float32, True, "coreset"),
        (np.float16, True, "k-means||"),
        (np.float64, False, "k-means||"),
        (np.float32, False, "random"),
        (np.float64, True, "random"),
    ],
)
def test_a_fit_is_the_cpus(cuda: Any, monkeypatch: pytest.MonkeyPatch, dtype: type, weighted: bool, init: str) -> None:
    rows = groups(260, 24, dtype)
    weights = np.random.default_rng(1).integers(1, 4, len(rows)) if weighted else None

    def compute() -> Any:
        table = ArrayRows(rows)
        with Runner(n_threads=1) as runner:
            total = None if weights is None else int(weights.sum())
            geometry = make_geometry(table, runner, n_clusters=15, total_weight=total)
            settings = Settings(15, init=init, max_iter=4, key=stream_key(3))
            return fit(table, settings, geometry=geometry, runner=runner, weights=weights)

    on_cpu, on_device = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(on_device.centroids, on_cpu.centroids)
    np.testing.assert_array_equal(on_device.inertia, on_cpu.inertia)


@pytest.mark.parametrize("value", [1e4, 1e15])
def test_a_fit_beside_far_rows_is_the_cpus(cuda: Any, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    rows = groups(260, 24)
    rows[[3, 77, 200]] *= np.float32(value)
    start = np.concatenate([rows[4:18], rows[[3, 77]].mean(0, keepdims=True)])

    def compute() -> Any:
        table = ArrayRows(rows)
        with Runner(n_threads=1) as runner:
            geometry = make_geometry(table, runner, n_clusters=15)
            settings = Settings(15, max_iter=6, key=stream_key(3))
            given = fit(table, settings, geometry=geometry, runner=runner, progress=Progress(start, (), 0))
            return given, fit(table, settings, geometry=geometry, runner=runner)

    for on_cpu, on_device in zip(*twice(cuda, monkeypatch, compute), strict=True):
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
    cuda: Any,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    tmp_path: Any,
    metric: str,
    strategy: str,
) -> None:
    if metric == "l2":  # one tree chooses its forms by trials, which take most of its time here
        request.getfixturevalue("trials_of_few_rows")
    rows = groups(260 if metric == "l2" else 120, 16, np.float16)
    np.save(tmp_path / "rows.npy", rows)
    hkm.ingest([tmp_path / "rows.npy"], tmp_path / "pool.zarr")

    def compute() -> Any:
        tree = tmp_path / f"tree-{np.random.default_rng().integers(1 << 30)}.zarr"
        levels = (
            hkm.Level(
                n_clusters=12, n_splits=2, n_resamples=1, resample_size=4, resample_strategy=strategy, max_iter=2
            ),
            hkm.Level(n_clusters=6, n_resamples=1, max_iter=2),
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
    rows, forms = groups(80, 16), set()
    plain = CudaIndex.__init__

    def noted(self: CudaIndex, centroids: np.ndarray, geometry: Geometry, form: Form = "fused", *more: Any) -> None:
        forms.add(form)
        plain(self, centroids, geometry, form, *more)

    monkeypatch.setattr(CudaIndex, "__init__", noted)

    def compute() -> Any:
        tree = tmp_path / f"tree-{np.random.default_rng().integers(1 << 30)}.zarr"
        level = hkm.Level(n_clusters=12, n_splits=2, n_resamples=1, resample_size=4, max_iter=2)
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


def test_a_pool_larger_than_the_device_is_clustered_all_the_same(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array = groups(300, 16, np.float16)

    def compute() -> Any:
        rows = Stored(array)
        with Runner(n_threads=1) as runner:
            geometry = make_geometry(rows, runner, n_clusters=15)
            return fit(rows, Settings(15, max_iter=4), geometry=geometry, runner=runner).centroids

    with monkeypatch.context() as patch:
        patch.setenv("HKM_DEVICE_MEMORY", "3KiB")  # a third of the rows
        on_cpu, on_device = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(on_device, on_cpu)
