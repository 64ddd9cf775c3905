"""Kernels compiled by a child process: read from its cache, or compiled here if it failed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from distributed import Worker

from hkm_dask.compute import jit, jit_child
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.config import Config
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.planning.plan import make_plan
from hkm_dask.planning.workers import Workers

ROOT = Path(__file__).resolve().parents[2]
SIGNATURE = "f8(f8[::1])"
_MODULE = """
from hkm_dask.compute.jit import kernel


@kernel("f8(f8[::1])")
def total(values):
    result = 0.0
    for i in range(values.shape[0]):
        result += values[i]
    return result
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module with a kernel, which keeps what is compiled of it in a folder of its own."""
    name = f"kernels_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(jit_child, "_requested", set())
    monkeypatch.setattr(jit_child, "_is_wanted", True)
    yield __import__(name)
    del sys.modules[name]


def compiled(module: Any, monkeypatch: pytest.MonkeyPatch, *modules: str) -> Any:
    monkeypatch.setattr(jit, "modules_with_kernels", lambda: modules or [module.__name__])
    made: Any = jit._compiled(module.total._function, SIGNATURE)
    assert made(np.arange(4.0)) == 6.0
    return made


def test_a_child_compiles_and_its_parent_reads(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[Any] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: children.append(run(*words, **options)))
    made = compiled(module, monkeypatch)
    assert len(children) == 1
    assert children[0].returncode == 0
    assert sum(made.stats.cache_hits.values()) == 1
    assert not made.stats.cache_misses
    jit_child._requested.clear()
    compiled(module, monkeypatch)  # it is there now, and nobody is started
    assert len(children) == 1


@pytest.mark.parametrize("refused", [True, False])
def test_what_a_child_does_not_get_to_is_compiled_here(
    refused: bool, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused:  # there is no such interpreter
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    made = compiled(module, monkeypatch, module.__name__ if refused else "no.such.module", module.__name__)
    assert sum(made.stats.cache_misses.values()) == 1


@pytest.mark.faults
def test_a_child_that_compiles_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    script = (
        "import subprocess; from hkm_dask.compute import jit_child; subprocess.run(jit_child.command_line(['slow']))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert psutil.wait_procs([child], timeout=10)[1] == []


def _peak(dask_worker: Worker) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.usefixtures("spawned_workers")
@pytest.mark.slow
def test_a_worker_stays_within_its_plan_where_no_kernel_was_compiled_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    rows = np.random.default_rng(0).normal(size=(200_000, 32)).astype(np.float16)
    pool = ingest(rows, tmp_path / "pool.zarr")
    config = Config.from_flags((500,), n_resamples=1, max_iter=2)
    with connect(workers=1, memory_limit="512MiB") as runner:
        write_hierarchy(pool, tmp_path / "tree.zarr", config, client=runner.client)
        (peak,) = runner.client.run(_peak).values()
    plan = make_plan(config, pool.rows(), Workers.processes(1, 1, 512 << 20))
    assert list((tmp_path / "kernels").rglob("*.nbi"))
    assert peak < 1.15 * plan.peak  # 1.4 times as much where it compiles by itself
