"""The CUDA kernels: compiler output, and the same bits of sums and distances as on the CPU."""

import ctypes
import re
import shutil
import sys
from collections.abc import Callable
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkm_dask.errors import ComputeError
from hkm_dask.search.cpu import kernels as cpu_kernels
from hkm_dask.search.cuda import kernels as cuda_kernels
from hkm_dask.search.cuda.engine import CudaEngine
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.distance import squared_distance
from hkm_dask.search.fixed_point import RowUnits
from pipelines.gpu import compiled
from tests.emulated.plugin import Emulator
from tests.emulated.real_cupy import HOPPER_OPTIONS
from tests.gpu.inputs import geometry_of, search_on_cpu, search_on_device


def assert_nothing_is_flushed(ptx: str) -> None:
    """Assert that no float is flushed to zero on its way to float64: subnormal rows are measured as they are."""
    assert "cvt.f64.f32" in ptx
    assert "cvt.ftz.f64.f32" not in ptx
    assert not re.findall(r"\b(?:ex2|lg2|sin|cos|tanh|rcp|rsqrt|sqrt|div)\.(?:approx|full)\S*", ptx)


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler nvcc")


@needs_nvcc
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("architecture", compiled.TARGETS)
def test_the_kernels_compile_and_spill_nothing(
    architecture: str, half: bool, compile_once: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    if (architecture, half) not in {("sm_80", False), ("sm_90", True)} and not request.config.getoption("--slow"):
        pytest.skip("takes minutes; run `pytest --slow`")
    made, ptx = compile_once(architecture, half)
    kernels = {one.kernel: one for one in made}
    assert len(kernels) == 15 + 3 * (not half)
    assert not [one for one in kernels.values() if one.spilled or one.stack]
    assert kernels["nearest_two"].registers * 256 <= 65536  # one block of 256 threads on a multiprocessor
    if kernels["nearest_two"].instructions:
        assert kernels["nearest_two"].instructions["HMMA.16816.F32"] == 128
        assert not [name for one in kernels.values() for name in one.instructions if name.startswith(("LDL", "STL"))]
    assert_nothing_is_flushed(ptx)
    of_sums = ptx.partition(".entry add_entries")[2].partition("\n}\n")[0]
    assert len(re.findall(r"ld\.global\.v2\.", of_sums)) == 16  # two coordinates at once, of so many rows ahead


@needs_nvcc
@pytest.mark.slow
def test_the_table_of_the_documentation_is_what_the_compiler_makes(tmp_path: Path) -> None:
    before = (compiled.DOCUMENT).read_text(encoding="utf-8")
    if f"nvcc {compiled.compiler_version()} " not in before or compiled.disassembler() is None:
        pytest.skip("it was made by another compiler, or there is no disassembler")
    (tmp_path / "gpu.md").write_text(before, encoding="utf-8")
    compiled.write_compiled(tmp_path / "gpu.md")
    assert (tmp_path / "gpu.md").read_text(encoding="utf-8") == before


def runtime_compiler() -> str | None:
    """The library NVRTC, of a toolkit or of a wheel: it is what compiles the kernels when they are used."""
    wheels = [path for folder in sys.path for path in Path(folder).glob("nvidia/*/lib/libnvrtc.so*")]
    return str(wheels[0]) if wheels else find_library("nvrtc")


def compile_as_cupy(source: str, options: list[str], kind: str) -> tuple[str, bytes]:
    """What NVRTC says and makes of a source, "PTX" or "CUBIN", with the options that CuPy adds for a Hopper."""
    nvrtc, program = ctypes.CDLL(runtime_compiler()), ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    flags = [*options, "--std=c++17", *HOPPER_OPTIONS]
    failed = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*map(str.encode, flags)))
    made = []
    for what in ("ProgramLog", kind):
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, text)
        made.append(text.raw)
        assert not failed, text.value.decode()
    return made[0].decode(), made[1]


@pytest.mark.skipif(runtime_compiler() is None, reason="needs NVRTC, as `pip install nvidia-cuda-nvrtc` brings it")
@pytest.mark.parametrize("options", [[], ["-DHALF_ROWS"]], ids=["float32", "float16"])
def test_the_kernels_compile_at_run_time(options: list[str]) -> None:
    assert_nothing_is_flushed(compile_as_cupy(cuda_kernels.source(), options, "PTX")[1].decode())


@pytest.mark.parametrize(
    ("shared_kib", "n_stages"),
    [
        pytest.param(227, 4, id="Hopper"),
        pytest.param(163, 3, id="A100", marks=pytest.mark.slow),
        pytest.param(99, 2, id="smaller"),
    ],
)
def test_devices_with_less_shared_memory_have_fewer_stages(
    cuda: Any, emulator: Emulator, shared_kib: int, n_stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cuda.cuda.Device.attributes, "MaxSharedMemoryPerBlockOptin", shared_kib << 10)
    rng = np.random.default_rng(6)
    rows, centroids = rng.normal(size=(140, 328)).astype(np.float32), rng.normal(size=(270, 328)).astype(np.float32)
    geometry = geometry_of(rows)
    actual, expected = (
        search_on_device(cuda, rows, CudaIndex(centroids, geometry, "fused")),
        search_on_cpu(rows, centroids, geometry),
    )
    assert cuda_kernels.n_stages() == n_stages
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


def test_a_device_that_is_too_old_is_refused(cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.cuda.Device, "compute_capability", "75")
    rows = np.ones((10, 8), np.float32)
    with pytest.raises(ComputeError, match=r"compute_capability=7.5 should be 8.0 or newer"):
        CudaIndex(rows, geometry_of(rows))


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
    cuda_kernels.move_rows(device[0], device[1], device[2], device[3], scale, device[4], device[5])
    assert n_moved > n // 2
    np.testing.assert_array_equal(device[4].get(), sums)
    np.testing.assert_array_equal(device[5].get(), counts)


@pytest.mark.parametrize(("n", "k", "d"), [(2500, 1500, 2), (130, 2, 9)])
@pytest.mark.parametrize("largest", [8.0, 2.0**60])
def test_sums_over_many_or_few_clusters_are_the_cpus(cuda: Any, n: int, k: int, d: int, largest: float) -> None:
    rng, engine = np.random.default_rng(n), CudaEngine()
    units = RowUnits(2.0**48 / largest, 48, is_split=largest > 8.0)
    rows, weights = rng.normal(size=(n, d)).astype(np.float32), np.empty(0, np.int64)
    rows[::50] *= np.float32(largest / 8)
    labels = [rng.integers(-1, k, n).astype(np.int32), rng.integers(0, k, n).astype(np.int32)]
    labels[1][: n // 2] = labels[0][: n // 2]
    whole, expected = units.whole(rows), np.zeros((k, units.n_columns(d)), np.int64)
    sums, counts = cuda.zeros(expected.shape, cuda.int64), cuda.zeros(k, cuda.int64)
    on_gpu = [cuda.asarray(a) for a in (rows, *labels, weights)]
    for turn in range(3):  # each leaves things for the next one as it found them
        before, after = labels[turn % 2], labels[1 - turn % 2]
        if turn == 0:
            units.add_rows(engine, on_gpu[0], on_gpu[2], on_gpu[3], sums, counts)
        else:
            given = on_gpu[1 + turn % 2], on_gpu[2 - turn % 2]
            units.move_rows(engine, on_gpu[0], *given, on_gpu[3], sums, counts)
        expected[:] = 0
        np.add.at(expected, after[after >= 0], whole[after >= 0])
        np.testing.assert_array_equal(sums.get(), expected, err_msg=f"{turn} {before[:3]}")
        np.testing.assert_array_equal(counts.get(), np.bincount(after[after >= 0], minlength=k))


@pytest.mark.parametrize("gathers", [0, 1, 2])
def test_rows_are_split_by_whether_they_are_further_than_before(cuda: Any, gathers: int) -> None:
    rng = np.random.default_rng(3)
    rows, centroids = rng.normal(size=(333, 8)).astype(np.float16), rng.normal(size=(6, 8)).astype(np.float32)
    stayed, labels = np.arange(6) % 3 == 0, rng.integers(-1, 6, 333).astype(np.int32)
    old = rng.uniform(0, 40, 333)
    expected, distances = old.copy(), cuda.asarray(old)
    cpu_kernels.label_distances(rows.astype(np.float32), centroids, stayed, labels, expected)
    operands, gathered = (
        cuda.asarray(rng.normal(size=(333, 72)).astype(np.float16)),
        cuda.full((333, 72), 7, cuda.float16),
    )
    previous, further, others = cuda_kernels.split_rows(
        cuda.asarray(rows), cuda.asarray(centroids), cuda.asarray(stayed), cuda.asarray(labels), distances,
        cuda.zeros(2, cuda.uint64), gathers, operands, gathered,
    )  # fmt: skip
    np.testing.assert_array_equal(distances.get(), expected)
    np.testing.assert_array_equal(previous.get(), labels)
    np.testing.assert_array_equal(np.sort(further.get()), np.flatnonzero(expected > old))
    np.testing.assert_array_equal(np.sort(others.get()), np.flatnonzero(expected <= old))
    assert 0 < len(further) < 333
    lines, n_gathered = np.concatenate([further.get(), others.get()]), (0, len(further), 333)[gathers]
    np.testing.assert_array_equal(gathered.get()[:n_gathered], operands.get()[lines[:n_gathered]])
    assert (gathered.get()[n_gathered:] == 7).all()


@pytest.mark.parametrize("d", [1, 8, 13, 100])
def test_distances_are_the_cpus(cuda: Any, d: int) -> None:
    rng = np.random.default_rng(d)
    rows, centroids = rng.normal(size=(77, d)).astype(np.float16), rng.normal(size=(5, d)).astype(np.float32)
    centroids[3] = np.nan
    labels, stayed = rng.integers(-1, 5, 77).astype(np.int32), np.array([True, False, False, True, False])
    for flags in (np.empty(0, np.bool_), stayed):
        distances = np.arange(77.0)
        on_gpu = cuda.asarray(distances)
        cpu_kernels.label_distances(rows.astype(np.float32), centroids, flags, labels, distances)
        cuda_kernels.label_distances(
            cuda.asarray(rows), cuda.asarray(centroids), cuda.asarray(flags), cuda.asarray(labels), on_gpu
        )
        np.testing.assert_array_equal(on_gpu.get(), distances)


@pytest.mark.parametrize(("n", "d"), [(1, 3), (32, 8), (70, 2), (97, 45), (64, 40)])
def test_candidates_that_come_too_close_are_the_cpus(cuda: Any, n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    rows = rng.normal(size=(n, d)).astype(np.float32)
    rows[n // 2 :: 3] = rows[: len(rows[n // 2 :: 3])]  # copies, which a limit of 0 does not let pass
    limits = np.where(rng.random(n) < 0.2, 0.0, rng.uniform(0.0, 2.0 * d, n))
    # The very distance, at which one is not accepted, where the order of a sum tells.
    for i in range(1, n, 4):
        limits[i] = min(squared_distance(rows[j], rows[i]) for j in range(i))
    expected = np.ones(n, np.bool_)
    cpu_kernels.accept_in_order(rows, limits, expected)
    actual = cuda_kernels.accept_in_order(cuda.asarray(rows), cuda.asarray(limits))
    np.testing.assert_array_equal(actual, expected)
    assert expected.sum() < n or n == 1


@pytest.mark.parametrize("scale", [1e-40, 1e-44])
def test_subnormal_rows_are_measured_and_added_as_on_the_cpu(cuda: Any, scale: float) -> None:
    rng = np.random.default_rng(0)
    rows, centroids = ((scale * rng.normal(size=(n, 13))).astype(np.float32) for n in (40, 5))
    labels, none = rng.integers(0, 5, 40).astype(np.int32), np.empty(0, np.int64)
    distances, sums, counts = np.zeros(40), np.zeros((5, 13), np.int64), np.zeros(5, np.int64)
    on_gpu = [cuda.asarray(a) for a in (rows, centroids, np.empty(0, np.bool_), labels, distances, none, sums, counts)]
    cpu_kernels.label_distances(rows, centroids, np.empty(0, np.bool_), labels, distances)
    cpu_kernels.add_rows(rows, labels, none, 2.0**150, sums, counts)
    assert distances.all()
    assert sums.any()
    cuda_kernels.label_distances(*on_gpu[:5])
    cuda_kernels.add_rows(on_gpu[0], on_gpu[3], on_gpu[5], 2.0**150, *on_gpu[6:])
    np.testing.assert_array_equal(on_gpu[4].get(), distances)
    np.testing.assert_array_equal(on_gpu[6].get(), sums)
