"""What the CUDA compiler says of the kernels, where there is one: they compile, and stay within their registers."""

import ctypes
import re
import shutil
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest

import hkm_dask.kmeans.search.cuda_kernels

SOURCE = Path(hkm_dask.kmeans.search.cuda_kernels.__file__).with_name("kernels.cu")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler nvcc")
@pytest.mark.parametrize("options", [[], ["-DHALF_ROWS"]], ids=["float32", "float16"])
@pytest.mark.parametrize(("architecture", "n_stages"), [("sm_80", 3), ("sm_89", 2), ("sm_90", 4)])
def test_the_kernels_compile_and_spill_nothing(
    options: list[str], architecture: str, n_stages: int, tmp_path: Path
) -> None:
    command = [
        "nvcc",
        "-std=c++17",
        f"-arch={architecture}",
        f"-DSTAGES={n_stages}",
        "-Werror",
        "all-warnings",
        "-Xptxas",
        "-v",
        *options,
    ]
    done = subprocess.run(
        [*command, "-cubin", "-o", str(tmp_path / "kernels.cubin"), str(SOURCE)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", done.stderr)
    assert spills
    assert set(spills) == {("0", "0")}
    registers = dict(re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", done.stderr, re.DOTALL))
    assert int(registers["nearest_two"]) * 256 <= 65536  # one block of 256 threads on a multiprocessor


def _runtime_compiler() -> str | None:
    """The library NVRTC, of a toolkit or of a wheel: it is what compiles the kernels when they are used."""
    wheels = [found for folder in sys.path for found in Path(folder).glob("nvidia/*/lib/libnvrtc.so*")]
    return str(wheels[0]) if wheels else find_library("nvrtc")


@pytest.mark.skipif(_runtime_compiler() is None, reason="needs NVRTC, as `pip install nvidia-cuda-nvrtc` brings it")
@pytest.mark.parametrize("options", [[], [b"-DHALF_ROWS"]], ids=["float32", "float16"])
def test_the_kernels_compile_at_run_time(options: list[bytes]) -> None:
    nvrtc, program = ctypes.CDLL(_runtime_compiler()), ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.read_bytes(), b"kernels.cu", 0, None, None) == 0
    flags = [b"--gpu-architecture=sm_90", b"--std=c++17", *options]
    failed = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()
