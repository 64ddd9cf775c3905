"""The fused search on Hopper: compiled code, and the same bits as on the CPU."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows
from hkm_dask.errors import ComputeError
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.search.cuda import hopper as cuda_hopper
from hkm_dask.search.cuda import kernels as cuda_kernels
from hkm_dask.search.cuda.engine import CudaEngine, CudaSearch
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.cuda.operand import FUSED, make_cuda_operand
from hkm_dask.search.engine import RowTile
from hkm_dask.search.geometry import make_geometry
from pipelines.gpu import compiled
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import geometry_of, groups, search_on_cpu, search_on_device, twice
from tests.gpu.test_cuda_kernels import compile_as_cupy, needs_nvcc, runtime_compiler


def assert_registers(said: str) -> None:
    """Assert that blocks of 384 threads get 168 registers each, which is all there are, and spill none of them."""
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said
    assert "Used 168 registers" in said
    assert not re.findall("warning|C7510|serializ", said)  # wgmma one after another, for want of registers or of fences


def assert_instructions(found: dict[str, int]) -> None:
    """Assert that products and copies are Hopper's, where a disassembler was at hand."""
    a_step = {"HGMMA.64x256x16.F32": 4, "UTMALDG.2D": 1, "UTMALDG.2D.MULTICAST": 1}
    assert found == (a_step if compiled.disassembler() else {})


@needs_nvcc
def test_the_kernel_compiles_and_spills_nothing(compile_once: Callable[..., Any]) -> None:
    (made,), _ = compile_once(compiled.HOPPER)
    assert (made.registers, made.spilled, made.stack) == (168, 0, 0)
    assert_instructions(made.instructions)


@pytest.mark.skipif(runtime_compiler() is None, reason="needs NVRTC, as `pip install nvidia-cuda-nvrtc` brings it")
def test_the_kernel_compiles_at_run_time(tmp_path: Path) -> None:
    # CuPy's -arch comes after ours, and the first one counts.
    source = cuda_kernels.source(cuda_kernels.HOPPER_FILES)
    log, cubin = compile_as_cupy(source, ["-arch=sm_90a", "--ptxas-options=-v"], "CUBIN")
    assert_registers(log)
    (tmp_path / "hopper.cubin").write_bytes(cubin)
    assert_instructions(compiled.instructions_of(tmp_path / "hopper.cubin").get("nearest_two_hopper", {}))


# One block of a cluster without rows; rows that stay, in one step and in two, through more tiles than stages; rows that
# are fetched again and again.
@pytest.mark.parametrize(
    ("n", "k", "d", "unit"), [(60, 30, 8, 4), (200, 1900, 16, 2), (300, 900, 72, 4), (150, 300, 392, 1)]
)
def test_the_device_finds_what_the_cpu_finds(
    cuda: Any, n: int, k: int, d: int, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(d)
    rows = rng.normal(size=(n, d)).astype(np.float16)
    centroids = rng.normal(size=(k, d)).astype(np.float32)
    centroids[9 : k : k // 3] = centroids[0]
    centroids[3] = np.nan
    geometry = geometry_of(rows)
    monkeypatch.setattr("hkm_dask.search.cuda.index._CENTROIDS_FOR_UNITS", {unit: 0})
    expected = search_on_cpu(rows, centroids, geometry)
    actual = search_on_device(cuda, rows, CudaIndex(centroids, geometry, "hopper"))
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


def test_scores_are_those_of_the_plain_kernel(cuda: Any) -> None:
    rng = np.random.default_rng(7)
    rows, centroids = rng.normal(size=(300, 72)).astype(np.float16), rng.normal(size=(700, 72)).astype(np.float32)
    geometry, on_device, found = geometry_of(rows), cuda.asarray(rows), []
    for form in FUSED:
        out = cuda.empty(300, cuda.float32), cuda.empty(300, cuda.float32), cuda.empty(300, cuda.int32)
        operand = make_cuda_operand(on_device, geometry)
        assert CudaIndex(centroids, geometry, form).two_best(on_device, operand, None, None, out) == 2
        found.append([values.get() for values in out])
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5)


@pytest.mark.parametrize(("least", "has_room", "searched"), [(512, True, []), (90, True, [192]), (90, False, [])])
def test_rows_in_no_run_are_gathered_where_it_pays_and_there_is_room(
    cuda: Any, emulator: Emulator, least: int, has_room: bool, searched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    rows, centroids = rng.normal(size=(400, 24)).astype(np.float16), rng.normal(size=(90, 24)).astype(np.float32)
    geometry, which = geometry_of(rows), rng.choice(400, 192, replace=False)
    monkeypatch.setattr(cuda_hopper, "LEAST_FOR_GATHERED", least)
    lines, plain, make = list[int](), cuda_hopper.nearest_two, cuda_kernels.if_there_is_room

    def counted(*arguments: Any) -> None:
        lines.append(len(arguments[0]))
        plain(*arguments)

    def with_little_room(gather: Callable[[], Any]) -> Any:
        def out_of_memory() -> Any:
            raise cuda.cuda.memory.OutOfMemoryError(1, 1, 1)

        return make(gather if has_room else out_of_memory)

    monkeypatch.setattr(cuda_hopper, "nearest_two", counted)
    monkeypatch.setattr(cuda_kernels, "if_there_is_room", with_little_room)
    actual = search_on_device(cuda, rows, CudaIndex(centroids, geometry, "hopper"), which=cuda.asarray(which))
    assert lines == searched
    expected = search_on_cpu(rows, centroids, geometry)
    np.testing.assert_array_equal(actual[0][which], expected[0][which])
    np.testing.assert_array_equal(actual[1][which], expected[1][which])
    assert (np.delete(actual[0], which) == -1).all()


# Operands of the rows that are further are gathered, of all, and of none, as there is no room.
@pytest.mark.parametrize(("least", "has_room"), [(20, True), (6, True), (6, False)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_iteration_on_gathered_operands_is_the_cpus(
    cuda: Any, emulator: Emulator, least: int, has_room: bool, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = groups(300, 24, dtype)
    before = rows[:24].astype(np.float32)
    now = before + groups(24, 24, seed=1) * (np.arange(24) % 2)[:, None].astype(np.float32) / 10
    monkeypatch.setattr(cuda_hopper, "LEAST_FOR_GATHERED", least)
    monkeypatch.setattr(CudaSearch, "form", lambda *_: "hopper")
    if not has_room:
        monkeypatch.setattr(cuda_kernels, "if_there_is_room", lambda _: None)
    engine, geometry = CudaEngine(), geometry_of(rows)
    assignment = engine.unknown(300)
    search = engine.search(Part(ArrayRows(rows), (0, 300), 1 << 20), geometry, "lloyd", assignment)
    nothing = engine.put(np.empty(0, np.int64))
    tile = RowTile(0, 300, engine.put(rows), assignment.labels, assignment.distances, nothing)
    shared = SharedArray(array=before), SharedArray(array=now)
    search.update(tile, shared[0])
    given: list[tuple[int, bool]] = []
    propose = CudaIndex.propose
    monkeypatch.setattr(
        CudaIndex, "propose",
        lambda self, *some, gathered, **more: (
            given.append((len(more["which"]), gathered is not None)), propose(self, *some, gathered=gathered, **more)
        ),
    )  # fmt: skip
    search.update(tile, shared[1], shared[0])
    labels, distances = search_on_cpu(rows, now, geometry)
    np.testing.assert_array_equal(tile.labels.get(), labels)
    np.testing.assert_array_equal(tile.distances.get(), distances)
    assert all(n for n, _ in given)
    assert [is_gathered for _, is_gathered in given] == [has_room, has_room and least == 6]


@pytest.mark.parametrize("lacking", ["device", "driver", "wish"])
def test_where_there_is_no_hopper_the_plain_kernel_serves(
    cuda: Any, emulator: Emulator, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "device":
        monkeypatch.setattr(cuda.cuda.Device, "compute_capability", "80")
    elif lacking == "wish":
        monkeypatch.setenv("HKM_HOPPER", "0")
    else:
        monkeypatch.setattr(cuda_hopper, "encoder", lambda: None)
    cuda_hopper.is_available.cache_clear()
    assert not cuda_hopper.is_available()
    rng = np.random.default_rng(2)
    rows, centroids = rng.normal(size=(130, 16)).astype(np.float32), rng.normal(size=(40, 16)).astype(np.float32)
    geometry = geometry_of(rows)
    labels, _ = search_on_device(cuda, rows, CudaIndex(centroids, geometry, "hopper"))
    np.testing.assert_array_equal(labels, search_on_cpu(rows, centroids, geometry)[0])
    if lacking == "driver":
        with pytest.raises(ComputeError, match="CUDA 12 or newer"):
            cuda_hopper.tensor_map(cuda.zeros((4, 8), cuda.float16), (4, 8))


def test_what_the_driver_refuses_is_an_error(cuda: Any) -> None:
    with pytest.raises(ComputeError, match=r"refused a matrix of shape \(4, 12\)"):
        cuda_hopper.tensor_map(cuda.zeros((4, 12), cuda.float16), (4, 8))  # lines at no multiple of 16 bytes
    with pytest.raises(ComputeError, match=r"refused a matrix of shape \(4, 8\)"):
        cuda_hopper.tensor_map(cuda.zeros((4, 8), cuda.float16), (300, 8))


def test_a_fit_is_the_cpus(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = groups(260, 24, np.float16)
    monkeypatch.setattr("hkm_dask.search.worker._TINY_FLOPS", 1e4)
    launched, plain = [], cuda_hopper.nearest_two
    monkeypatch.setattr(cuda_hopper, "nearest_two", lambda *some: launched.append(plain(*some)))

    def compute() -> Any:
        with Runner(n_threads=1) as runner:
            geometry = make_geometry(ArrayRows(rows), runner, n_clusters=15)
            return fit(ArrayRows(rows), Settings(15, max_iter=3), geometry=geometry, runner=runner).centroids

    on_cpu, on_device = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(on_device, on_cpu)
    assert len(launched) > 3  # it comes first where there is a Hopper
