"""Registers, spills and instructions of the compiled kernels, for every architecture; writes a table of the docs.

Needs nvcc, but no device. Instructions are counted if there is a disassembler (`pip install nvidia-cuda-nvdisasm`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hkm_dask.search.cuda import kernels as cuda_kernels
from pipelines.gpu.tables import replace_section

BEGIN, END = "<!-- pipelines/gpu --compiled writes from here ... -->\n", "<!-- ... to here -->\n"
DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"
#: Stages of the fused search that fit into the shared memory of each architecture.
TARGETS = {"sm_80": 3, "sm_86": 2, "sm_89": 2, "sm_90": 4, "sm_100": 4, "sm_120": 2}
HOPPER = "sm_90a"
#: Instructions that show how products and copies are done: tensor cores, copies for them, and register spills.
_TELLING = r"\b(HGMMA|HMMA|UTMALDG|LDGSTS|LDSM|STL|LDL)\b([.\w]*)"
#: Registers that a review of commit 3fa8cbf found for sm_90 (the kernel) and sm_90a (a sketch of one).
REVIEW = {"nearest_two": "242 (sm_90)", "nearest_two_hopper": "168 (sketch)"}


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel: registers per thread, and bytes of stack, of spills, and of static shared memory.

    `instructions` is empty without a disassembler.
    """

    kernel: str
    registers: int
    stack: int
    spilled: int
    shared: int
    instructions: Counter[str] = field(default_factory=Counter)


def disassembler() -> str | None:
    """Return the path of the disassembler from a CUDA toolkit or a wheel, if there is one."""
    wheels = [path for folder in sys.path for path in Path(folder).glob("nvidia/*/bin/nvdisasm")]
    return shutil.which("nvdisasm") or (str(wheels[0]) if wheels else None)


def compile_for(architecture: str, *, half: bool = True, folder: Path | None = None) -> list[Compiled]:
    """Compile all kernels for an architecture as CuPy does, with warnings as errors; for "sm_90a", the Hopper kernel.

    `folder` keeps the source, its PTX and the machine code. Raises RuntimeError with the message of the compiler.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            return compile_for(architecture, half=half, folder=Path(name))
    is_hoppers = architecture == HOPPER
    files = cuda_kernels.HOPPER_FILES if is_hoppers else cuda_kernels.FILES
    source, code = folder / "kernels.cu", folder / "kernels.cubin"
    source.write_text(cuda_kernels.source(files), encoding="utf-8")
    options = [] if is_hoppers else [f"-DSTAGES={TARGETS[architecture]}", *(["-DHALF_ROWS"] if half else [])]
    # CuPy compiles every module so that subnormals are flushed to zero.
    command = ["nvcc", "-std=c++17", "-ftz=true", *options, "-Werror", "all-warnings", "-Xptxas", "-v", "-cubin"]
    command += [f"-gencode=arch=compute_{architecture[3:]},code={architecture}", "--keep", "--keep-dir", str(folder)]
    done = subprocess.run([*command, "-o", str(code), str(source)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    if warned := re.findall(r".*(?:warning|C7510|serializ).*", done.stderr):  # C7510: wgmma instructions are serialized
        raise RuntimeError("\n".join(warned))
    counted = instructions_of(code)
    return [
        Compiled(name, int(used), int(stack), int(stored) + int(loaded), int(shared or 0), counted.get(name, Counter()))
        for name, stack, stored, loaded, used, shared in re.findall(
            r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
            r".*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
            done.stderr, re.DOTALL,
        )
    ]  # fmt: skip


def instructions_of(code: Path) -> dict[str, Counter[str]]:
    """Count the instructions of interest of each kernel in machine code; empty without a disassembler."""
    tool = disassembler()
    if tool is None:
        return {}
    listed = subprocess.run([tool, str(code)], capture_output=True, text=True, check=True).stdout
    _, *parts = re.split(r"^\.text\.(\w+):", listed, flags=re.MULTILINE)
    return {
        name: Counter(first + rest for first, rest in re.findall(_TELLING, text))
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


@cache
def compiler_version() -> str:
    """Return the version of nvcc, such as 13.0."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([\d.]+)", said)
    return found[1] if found else "unknown"


def section() -> str:
    """Format the table as Markdown: registers of every kernel for float16 rows and, if different, float32 rows."""
    made = {target: [*compile_for(target), *compile_for(target, half=False)] for target in TARGETS}
    (hopper,) = compile_for(HOPPER)
    every = [one for some in made.values() for one in some] + [hopper]

    def registers(name: str, target: str) -> str:
        return " or ".join(map(str, dict.fromkeys(one.registers for one in made[target] if one.kernel == name)))

    lines = [("kernel", *TARGETS, "at commit 3fa8cbf"), ("---",) * (len(TARGETS) + 2)]
    lines += [
        (f"`{name}`", *(registers(name, target) for target in TARGETS), REVIEW.get(name, ""))
        for name in sorted({one.kernel for one in every} - {hopper.kernel})
    ]
    lines.append((f"`{hopper.kernel}`", "", "", "", f"{hopper.registers} ({HOPPER})", "", "", REVIEW[hopper.kernel]))
    spilling = sorted({one.kernel for one in every if one.spilled or one.stack})
    spills = f"Of {len(every)} kernels {', '.join(spilling) or 'none'} spill{'' if spilling else 's'} a register."
    fused = next(one for one in made["sm_90"] if one.kernel == "nearest_two")
    ops = "; ".join(f"`{one.kernel}`: {_listed(one.instructions)}" for one in (fused, hopper) if one.instructions)
    paragraphs = [
        f"Registers of a thread, by nvcc {compiler_version()} (`python pipelines/gpu/run.py --compiled`), for rows in "
        f"float16 and float32 where they differ. {spills}",
        "\n".join(re.sub(r"  (?=\|)", " ", f"| {' | '.join(cells)} |") for cells in lines),
        f"Instructions for sm_90 and {HOPPER}: {ops}. A sketch had 4 HGMMA.64x256x16 per step, too." if ops
        else "Instructions were not counted: there was no disassembler.",
    ]  # fmt: skip
    return "\n\n".join(paragraphs) + "\n"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))


def write_compiled(document: Path) -> None:
    """Write the table into a document, between its markers."""
    replace_section(document, BEGIN, END, section())
