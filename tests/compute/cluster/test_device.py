"""CUDA workers and others: real processes, started as by dask-cuda, with stubs for packages that need a GPU.

Workers that join a cluster are forked, so that they need not import everything again.

The stubs are packages `dask_cuda` and `cupy` that come first on the path. They have the names that are used before a
worker computes; no result depends on them.
"""

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.cli import run_cli
from distributed import Client, LocalCluster

from hkm_dask import cli
from hkm_dask.compute.cluster import local as local_cluster
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.connect import connect, runner_for
from hkm_dask.errors import ComputeError, InputError
from hkm_dask.version import __version__
from tests.forked import start_forked

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "__import__('os').environ.get('HKM_DEVICE')"
PROCESSORS = "__import__('hkm_dask.compute.runner').compute.runner.n_processors()"
STAGING = "__import__('os').environ.get('HKM_STAGING_BLOCKS')"

# The parameters are those of dask-cuda 26.10 that are used here; any other is an error.
DASK_CUDA = """
from distributed import LocalCluster

class LocalCUDACluster(LocalCluster):
    def __init__(
        self, threads_per_worker=1, memory_limit="auto", device_memory_limit="default", protocol=None,
        rmm_pool_size=None, rmm_maximum_pool_size=None, rmm_managed_memory=False,
        rmm_allocator_external_lib_list=None, *, host, dashboard_address, silence_logs,
    ):
        assert protocol is None, "there is no UCX here"
        self.asked = (device_memory_limit, rmm_managed_memory, rmm_pool_size, rmm_maximum_pool_size,
                      rmm_allocator_external_lib_list)
        if rmm_pool_size:
            raise RuntimeError("Nanny failed to start: out of device memory")
        super().__init__(
            n_workers=1, threads_per_worker=threads_per_worker, memory_limit=memory_limit, host=host,
            dashboard_address=dashboard_address, silence_logs=silence_logs, preload=["dask_cuda.initialize"],
        )
"""
DASK_CUDA_UTILS = """
import os

class pynvml:
    class NVMLError(Exception):
        pass

    @classmethod
    def nvmlInit(cls):
        if "NO_DRIVER" in os.environ:
            raise cls.NVMLError("NVML Shared Library Not Found")
"""
CUPY = """
class cuda:
    class runtime:
        class CUDARuntimeError(RuntimeError):
            pass

        @staticmethod
        def getDeviceCount():
            return 1

        @staticmethod
        def memGetInfo():
            return 1 << 30, 1 << 30


class get_default_memory_pool:
    def total_bytes(self):
        return 0
"""


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A folder with packages that stand in for dask-cuda and CuPy."""
    folder = tmp_path / "stand-ins"
    (folder / "dask_cuda").mkdir(parents=True)
    (folder / "dask_cuda" / "__init__.py").write_text(DASK_CUDA)
    (folder / "dask_cuda" / "utils.py").write_text(DASK_CUDA_UTILS)
    (folder / "dask_cuda" / "initialize.py").touch()
    (folder / "cupy.py").write_text(CUPY)
    return folder


@pytest.fixture
def imported_stand_ins(stand_ins: Path, monkeypatch: pytest.MonkeyPatch, spawned_workers: None) -> Iterator[None]:
    """The stand-ins, for this process and those that Dask starts from it."""
    names = ("cupy", "dask_cuda", "dask_cuda.utils")
    modules = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    monkeypatch.syspath_prepend(stand_ins)
    monkeypatch.setattr(local_cluster, "require_cuda", lambda: None)
    monkeypatch.delenv("HKM_DEVICE", raising=False)
    monkeypatch.delenv("HKM_STAGING_BLOCKS", raising=False)
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(modules)


def work_for_dask(words: list[str], stand_ins: Path, environment: dict[str, str]) -> None:
    """Be the command `dask`, quietly, with packages first that are imported anew."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(stand_ins.parent)
    names = {path.stem for path in stand_ins.iterdir()}
    for module in [module for module in sys.modules if module.partition(".")[0] in names]:
        del sys.modules[module]
    sys.path.insert(0, str(stand_ins))
    sys.argv = words
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        run_cli()


class Site:
    """A scheduler, and workers that are started by hand."""

    def __init__(self, client: Client, folder: Path, stand_ins: Path) -> None:
        self.client = client
        self.file = folder / "scheduler.json"
        self.stand_ins = stand_ins
        self.processes: list[BaseProcess] = []
        client.write_scheduler_file(str(self.file))

    def start(self, *, cuda: bool, **environment: str) -> None:
        """Start a worker and wait for it, with the preload that `dask cuda worker` gives its own if `cuda`."""
        words = ["dask", "worker", "--scheduler-file", str(self.file), "--no-nanny"]
        words += ["--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1", "--memory-limit", "1GiB"]
        words += ["--local-directory", str(self.file.parent)]
        if cuda:
            words += ["--preload", "dask_cuda.initialize"]
        clean = {name: value for name, value in os.environ.items() if name != "HKM_DEVICE"}
        n_before = len(self.client.nthreads())
        self.processes.append(start_forked(work_for_dask, words, self.stand_ins, {**clean, **environment}))
        self.client.wait_for_workers(n_before + 1, timeout=60)

    def stop(self) -> None:
        """Stop all workers, and wait until the scheduler knows."""
        for process in self.processes:
            process.terminate()
            process.join(30)
            assert process.exitcode is not None
        self.processes = []
        while self.client.nthreads():
            time.sleep(0.05)

    def devices(self) -> list[str | None]:
        """What each worker has been told to compute on."""
        return list(self.client.run(eval, DEVICE).values())


@pytest.fixture
def site(tmp_path: Path, stand_ins: Path) -> Iterator[Site]:
    options: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=0, **options) as cluster, Client(cluster, set_as_default=False) as client:
        made = Site(client, tmp_path, stand_ins)
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def hkm(tmp_path: Path, stand_ins: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `hkm ingest` in a process of its own, with the stand-ins unless told otherwise."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(50, 3)).astype("f4"))

    def run(*options: object, path: Path = stand_ins, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "hkm_dask", "ingest", tmp_path / "rows.npy", tmp_path / "pool.zarr", *options]
        return subprocess.run(
            [str(word) for word in words],
            env={**os.environ, "PYTHONPATH": str(path), **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def open_place(**options: Any) -> None:
    with connect(**options):
        pass


# -- workers of a cluster that is there -------------------------------------------------------------------------------


def test_workers_of_two_kinds_are_refused(site: Site, hkm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    site.start(cuda=True)
    site.start(cuda=False)
    advice = "the workers, 1 CUDA and 1 CPU, should be all of one kind; start all with `dask cuda worker` or all with"
    with pytest.raises(ComputeError, match=advice):
        open_place(scheduler_file=site.file)
    with pytest.raises(ComputeError, match=advice):
        runner_for(site.client)
    assert site.devices() == [None, None]
    done = hkm("--scheduler-file", site.file)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {advice}")


def test_workers_of_one_kind_are_told_what_they_are_and_so_are_those_that_follow(site: Site) -> None:
    site.start(cuda=False)
    for _ in range(2):
        with connect(scheduler_file=site.file) as runner:
            assert runner.n_threads == 1
    assert site.devices() == [None]
    site.stop()

    site.start(cuda=True, CUDA_VISIBLE_DEVICES="1,0")
    share = max(1, len(os.sched_getaffinity(0)) // 2)  # one of two such workers on this machine
    for _ in range(2):
        open_place(scheduler_file=site.file)
        assert site.devices() == ["cuda"]
        assert list(site.client.run(eval, PROCESSORS).values()) == [share]
    site.start(cuda=True, HKM_PROCESSORS="7")
    assert site.devices() == ["cuda", "cuda"]
    assert sorted(site.client.run(eval, PROCESSORS).values()) == sorted([share, 7])
    site.start(cuda=False)  # told so, too, which ends in an error where it computes; and at the next start
    with pytest.raises(ComputeError, match="the workers, 2 CUDA and 1 CPU, should be"):
        open_place(scheduler_file=site.file)
    site.stop()

    site.start(cuda=False)
    open_place(scheduler_file=site.file)
    assert site.devices() == ["cpu"]


def test_the_environment_of_a_worker_comes_first(site: Site) -> None:
    site.start(cuda=True)
    site.start(cuda=False, HKM_DEVICE="cuda")
    for _ in range(2):
        with runner_for(site.client) as runner:
            assert runner.n_threads == 2
        assert site.devices() == ["cuda", "cuda"]
    site.stop()
    site.start(cuda=True, HKM_DEVICE="cpu")
    site.start(cuda=False)
    open_place(scheduler_file=site.file)
    assert site.devices() == ["cpu", "cpu"]


def test_a_cuda_worker_without_a_gpu_is_named(site: Site) -> None:
    (site.stand_ins / "cupy.py").write_text(CUPY.replace("return 1", "return 0"))
    site.start(cuda=True)
    with pytest.raises(ComputeError, match=r"worker=tcp://127.0.0.1:\d+: no GPU is visible"):
        open_place(scheduler_file=site.file)
    assert site.devices() == [None]


def test_a_worker_that_cannot_import_the_package_is_named(site: Site) -> None:
    (site.stand_ins / "hkm_dask.py").write_text("raise ImportError('not here')")
    site.start(cuda=True)
    with pytest.raises(ComputeError, match=r"worker=tcp://127.0.0.1:\d+ should have hkm_dask; install the same"):
        open_place(scheduler_file=site.file)


def test_a_worker_with_another_version_is_named_whenever_it_comes(site: Site) -> None:
    told = rf"worker=tcp://127.0.0.1:\d+ should have hkm_dask {re.escape(__version__)}, but has 0.0.1; install the same"
    site.start(cuda=False)
    with connect(scheduler_file=site.file) as runner:
        assert runner.map(abs, [-1], stage="test") == [1]
        (site.stand_ins / "hkm_dask.py").write_text("__version__ = '0.0.1'")
        site.start(cuda=False)
        with pytest.raises(ComputeError, match=told):
            runner.map(abs, [-1], stage="test")
    with pytest.raises(ComputeError, match=told):
        open_place(scheduler_file=site.file)


# -- a LocalCUDACluster -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("imported_stand_ins")
def test_capacity_leaves_device_memory_alone_and_stages_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, expected in ((None, "8"), ("7", "7")):
        if setting:
            monkeypatch.setenv("HKM_STAGING_BLOCKS", setting)
        with connect(local_cuda=True, cuda_preset="capacity", memory_limit="1GiB") as runner:
            assert isinstance(runner, ClusterRunner)
            assert runner.client.cluster.asked == (0, False, None, None, None)
            assert (runner.n_workers, runner.n_threads) == (1, 1)
            assert runner.call(eval, DEVICE, stage="test") == "cuda"
            assert runner.call(eval, STAGING, stage="test") == expected
            with runner_for(runner.client) as again:  # as a function does that is given the client
                assert again.call(eval, STAGING, stage="test") == expected


@pytest.mark.usefixtures("imported_stand_ins")
def test_performance_takes_a_pool_where_there_is_one(
    stand_ins: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed = {"rmm": False, "distributed_ucxx": False}
    monkeypatch.setattr(local_cluster, "find_spec", lambda name: installed[name] or None)
    caplog.set_level("INFO", logger="hkm_dask")
    with connect(local_cuda=True) as runner:
        assert runner.client is not None
        assert runner.client.cluster.asked == (0, False, None, None, None)
        assert runner.call(eval, DEVICE, stage="test") == "cuda"
        assert runner.call(eval, STAGING, stage="test") is None
    assert [r.message for r in caplog.records if "RMM is not installed" in r.message]

    installed = {"rmm": True, "distributed_ucxx": True}
    options = local_cluster._cuda_options("performance", None)
    assert options.pop("protocol") == "ucx"
    assert (options["rmm_allocator_external_lib_list"], options["threads_per_worker"]) == ("cupy", 1)
    assert (options["rmm_managed_memory"], options["device_memory_limit"]) == (False, 0)
    installed = {"rmm": True, "distributed_ucxx": False}
    with pytest.raises(ComputeError, match=r"should start a worker on every GPU; look at .* out of device memory\)"):
        open_place(local_cuda=True)


def test_there_are_two_presets() -> None:
    with pytest.raises(InputError, match="cuda_preset='speed' should be one of performance, capacity; name one"):
        open_place(local_cuda=True, cuda_preset="speed")


def test_the_command_line_starts_gpu_workers(hkm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = hkm("--local-cuda", "--cuda-preset", "capacity", "--memory-limit", "1GiB")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a command said besides that it was still at work, which on a busy machine it says every ten seconds."""
    return [line for line in done.stderr.splitlines() if not line.endswith("hkm ingest, working")]


def test_no_driver_is_told_with_what_to_install(hkm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = hkm("--local-cuda", NO_DRIVER="")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = told(done)
    assert line.startswith("Error: there is no GPU, or no driver for it; install the driver, and the matching extra")
    assert line.endswith("hkm-dask[cuda13] (driver 580 or newer) or [cuda12] (525 or newer) "
                         "(NVML says: NVML Shared Library Not Found)")  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("dask_cuda") is not None, reason="dask-cuda is installed")
def test_no_dask_cuda_is_told_with_what_to_install(
    tmp_path: Path, hkm: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = hkm("--local-cuda", path=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert told(done) == ["Error: dask-cuda is not installed; pip install 'hkm-dask[cuda13]' or [cuda12]"]
    assert not (tmp_path / "pool.zarr").exists()


@pytest.mark.parametrize("words", [["--cuda-preset", "capacity"], ["--local-cuda", "--cuda-preset", "speed"]])
def test_a_preset_is_for_gpu_workers(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["ingest", "rows.npy", "pool.zarr", *words], prog_name="hkm")
    assert exit_.value.code == 2
    assert "--cuda-preset" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["performance", "capacity"])
def test_real_gpu_workers_start(preset: str) -> None:
    pytest.importorskip("dask_cuda")
    with connect(local_cuda=True, cuda_preset=preset) as runner:  # type: ignore[arg-type]
        assert runner.client is not None
        assert runner.n_workers == runner.n_threads
        assert set(runner.client.run(eval, DEVICE).values()) == {"cuda"}
        held = "float(__import__('cupy').arange(1000).sum())"
        assert runner.call(eval, held, stage="test") == 499_500
