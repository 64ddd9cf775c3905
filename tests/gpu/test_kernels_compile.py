"""What the CUDA compiler says of the kernels, where there is one: they compile, and stay within their registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import hkm_dask.kmeans.kernels_cuda

SOURCE = Path(hkm_dask.kmeans.kernels_cuda.__file__).with_name("kernels.cu")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler nvcc")
@pytest.mark.parametrize("options", [[], ["-DHALF_ROWS"]], ids=["float32", "float16"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_kernels_compile_and_spill_nothing(options: list[str], architecture: str, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-Werror", "all-warnings", "-Xptxas", "-v", *options]
    done = subprocess.run(
        [*command, "-cubin", "-o", str(tmp_path / "kernels.cubin"), str(SOURCE)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", done.stderr)
    assert spills
    assert set(spills) == {("0", "0")}
    registers = dict(re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", done.stderr, re.DOTALL))
    assert int(registers["nearest_two"]) * 256 <= 65536  # one block of 256 threads on a multiprocessor
