"""GPU workers in separate processes: emulated ones everywhere, a LocalCUDACluster on machines with GPUs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

import hkm_dask as hkm
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.lloyd import iterate
from hkm_dask.kmeans.seeding import coreset
from hkm_dask.search.geometry import Geometry, make_geometry
from tests.emulated import kernels
from tests.gpu.conftest import HAS_GPU

#: Clusters and features of iterations whose bytes are counted.
K, D = 60, 32
PRELOAD = Path(kernels.__file__).with_name("on_worker.py")


def embeddings(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(30, 8))[rng.integers(30, size=n)] + 0.3 * rng.normal(size=(n, 8))).astype(np.float16)


def arrays_of(tree: Any) -> list[np.ndarray]:
    names = ("labels", "centroids", "distances", "sizes")
    return [tree[f"level_{t}"][name].to_numpy() for t in (1, 2) for name in names]


def config() -> hkm.Config:
    levels = (
        hkm.Level(n_clusters=8, n_splits=2, n_resamples=1, resample_size=5, max_iter=2),
        hkm.Level(n_clusters=3, n_resamples=0, max_iter=1, init="random"),
    )
    return hkm.Config(levels=levels, seed=1)


@pytest.mark.skipif(HAS_GPU or kernels.missing() is not None, reason=str(kernels.missing() or "time there is dear"))
@pytest.mark.parametrize("n_workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_with_gpus_build_the_tree_that_processors_build(
    n_workers: int, tmp_path: Path, built_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = embeddings(120)
    expected = arrays_of(hkm.build_hierarchy(rows, tmp_path / "cpu.zarr", config()))
    monkeypatch.setenv("HKM_EMULATED_KERNELS", str(built_kernels))
    monkeypatch.setattr("hkm_dask.compute.runner._ROUND_TRIP_FLOPS", 1.5e4)  # several tasks for little work
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            preload=[str(PRELOAD)],
            env={"HKM_DEVICE": "cuda", "HKM_DEVICE_MEMORY": "4KiB"},  # less than the rows take
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        tree = hkm.build_hierarchy(rows, tmp_path / "gpu.zarr", config(), client=client)
        assert set(client.run(_has_computed_on_a_device).values()) == {True}
        with ClusterRunner(client, work_dir=tmp_path) as runner:
            sent = bytes_of_iterations(runner)
            monkeypatch.setattr(coreset, "GROUP_POINTS", 500)  # whose tables take more memory than all before
            before = client.run(_peak)
            centers = centers_of(runner, 750 * n_workers)
            assert sum(peak > before[worker] + 200_000 for worker, peak in client.run(_peak).items()) >= 2
    with Runner() as processors:
        np.testing.assert_array_equal(centers, centers_of(processors, 750 * n_workers))
    assert len(sent) == 3
    # What workers send each other, and the centroids that each of them reads.
    assert all(8 * (n_workers - 1) * K * D <= n <= (12 - 4) * n_workers * K * D for n in sent)
    for actual, array in zip(arrays_of(tree), expected, strict=True):
        np.testing.assert_array_equal(actual, array)


def bytes_of_iterations(runner: ClusterRunner) -> list[int]:
    """Bytes that workers have received of each other between iterations."""
    values, received = np.random.default_rng(1).normal(size=(400, D)).astype(np.float32), list[int]()
    rows = runner.place(ArrayRows(values))
    geometry = make_geometry(rows, runner, n_clusters=K)

    def count(*_: Any) -> None:
        received.append(sum(runner.client.run(_received).values()))

    iterate(rows, values[:K], geometry=geometry, runner=runner, max_iter=4, tol=0.0, on_iteration=count)
    return np.diff(received).tolist()


def centers_of(runner: Runner, n_points: int) -> np.ndarray:
    """A seeding of which workers walk some groups each."""
    values = np.random.default_rng(2).normal(size=(n_points, D)).astype(np.float32)
    with runner.array_store.lent("points", values) as points:
        geometry = Geometry(values.mean(axis=0), float(np.abs(values).max()), len(values))
        weights = np.arange(1, n_points + 1)
        return coreset.seed_from_points(points, weights, K, geometry=geometry, key=7, runner=runner, n_iterations=0)[0]


def _received(dask_worker: Any) -> int:
    return sum(transfer["total"] for transfer in dask_worker.transfer_incoming_log)


def _has_computed_on_a_device() -> bool:
    return _peak() > 0


def _peak() -> int:
    from tests.emulated import memory

    return memory.pool._peak


@pytest.mark.gpu
def test_two_runs_on_gpus_and_one_on_processors_agree(tmp_path: Path) -> None:
    pytest.importorskip("dask_cuda")
    np.save(tmp_path / "rows.npy", embeddings(20_000))
    hkm.ingest([tmp_path / "rows.npy"], pool := tmp_path / "pool.zarr")
    actual = []
    for name, where in (("a", ["--local-cuda"]), ("b", ["--local-cuda", "--cuda-preset", "capacity"]), ("c", [])):
        tree = tmp_path / f"{name}.zarr"
        command = ["cluster", str(pool), str(tree), "--n-clusters", "500,100", "--set", "levels.1.n_splits=4", *where]
        subprocess.run([sys.executable, "-m", "hkm_dask", *command], check=True)
        actual.append(arrays_of(hkm.open_hierarchy(tree)))
    for other in actual[1:]:
        for one, two in zip(actual[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
