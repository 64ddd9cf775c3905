"""All names of CuPy, RMM, dask-cuda and NVML that the code uses exist in their wheels, with these parameters."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster

from hkm_dask.compute.cluster import device
from hkm_dask.compute.cluster import local as local_cluster
from tests.emulated import kernels, names_used, real_cupy, wheel_names
from tests.emulated.names_used import Use, problem, uses_in, uses_of

ROOT = Path(__file__).resolve().parents[2]
FILES = [*(ROOT / "hkm_dask").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
WHEELS = ("dask_cuda", "rmm", "pynvml")

needs_wheels = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in WHEELS),
    reason="needs the wheels, not a GPU: pip install --no-deps dask-cuda rmm-cu13 nvidia-ml-py",
)
needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None or kernels.missing() is not None,
    reason="needs the real CuPy, which imports without a driver: pip install cupy-cuda13x",
)


def of_cupy(uses: list[Use]) -> dict[str, Any]:
    facts: dict[str, Any] = real_cupy.ask(use.name for use in uses)["names"]
    return facts


def is_cupys(use: Use) -> bool:
    return use.name.startswith("cupy")


@needs_cupy
def test_what_is_asked_of_cupy_is_there() -> None:
    wrong = """
def work(self):
    import cupy
    from cupy.cuda import Event, runtime
    begin = Event(blocking=True)
    begin.synchronise()
    cupy.empty(3, dtyp=float)
    cupy.get_default_memory_pool().free_every_block()
    cupy.full(3)
    self.xp.flatnonzero(1, 2)
    block = cupy.zeros(3)
    block.set(1, strim=2)
"""
    on_purpose = list(uses_in(wrong, "wrong.py"))
    uses = [use for use in uses_of(FILES) if is_cupys(use)]
    facts = of_cupy([*uses, *on_purpose])
    assert not [text for use in uses if (text := problem(use, facts[use.name]))]
    assert len({use.name for use in uses}) > 50
    assert sum(bool(use.n_positional is not None and facts[use.name]["parameters"]) for use in uses) > 60
    lines = {use.where.partition(":")[2] for use in on_purpose if problem(use, facts[use.name])}
    assert lines >= {"6", "7", "8", "9", "10"}


@needs_wheels
def test_what_is_asked_of_the_other_packages_is_there() -> None:
    uses = [use for use in uses_of(FILES) if not is_cupys(use)]
    assert {use.name.split(".")[0] for use in uses} >= {"dask_cuda", "rmm"}
    assert not [text for use in uses if (text := problem(use, wheel_names.describe(use.name)))]
    for wrong in ("dask_cuda.LocalCudaCluster", "rmm.mr.get_device_resource", "pynvml.nvmlStart"):
        assert wheel_names.describe(wrong) is None
    assert wheel_names.describe("dask_cuda.utils.pynvml.nvmlInit") is not None
    assert wheel_names.describe("rmm.mr.PoolMemoryResource.pool_size") is not None  # which `device_budget` looks for


@needs_wheels
@pytest.mark.parametrize("preset", ["performance", "capacity"])
def test_a_cluster_is_started_with_options_that_dask_cuda_takes(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "find_spec", lambda name: name)
    options = set(local_cluster._cuda_options(preset, None))
    fact = wheel_names.describe("dask_cuda.LocalCUDACluster")
    assert fact is not None
    assert fact["any_keyword"]
    handed_on = options - set(fact["parameters"]["positional"])
    assert handed_on <= set(inspect.signature(LocalCluster.__init__).parameters)
    assert handed_on == {"host", "dashboard_address", "silence_logs"}


@needs_wheels
def test_workers_of_dask_cuda_are_known_by_their_preload() -> None:
    assert device._PRELOAD_OF_CUDA_WORKERS == "dask_cuda.initialize"
    for module in ("dask_cuda.cuda_worker", "dask_cuda.local_cuda_cluster"):
        assert '"dask_cuda.initialize"' in wheel_names.source_of(module)


@needs_wheels
def test_the_documentation_names_options_that_workers_of_dask_cuda_take() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    many = text.partition("## Many machines")[2].partition("\n## ")[0]
    flags = set(re.findall(r"--[a-z-]+", many)) - {"--config"}
    assert len(flags) > 5
    assert {flag for flag in flags if f'"{flag}' not in wheel_names.source_of("dask_cuda.cli")} == set()


def test_uses_are_found_through_variables_and_what_functions_return() -> None:
    source = """
def work(self):
    import cupy as cp
    from cupy.cuda import Event
    self.stream = cp.cuda.Stream(non_blocking=True)
    event = self.stream.record()
    event.synchronize()
    Event().record()
    return import_module("rmm").mr.thing(1, *rest)
"""
    found = {(use.name, use.n_positional, use.keywords) for use in names_used.uses_in(source, "a.py")}
    assert found >= {
        ("cupy.cuda.Stream", 0, ("non_blocking",)),
        ("cupy.cuda.Stream.record", 0, ()),
        ("cupy.cuda.Event.synchronize", 0, ()),
        ("cupy.cuda.Event.record", 0, ()),
        ("rmm.mr.thing", None, ()),
    }
