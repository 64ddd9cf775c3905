"""`run.py --gpu`: measure the search and Lloyd's iteration on a CUDA device beside what others have for one.

    python pipelines/benchmark/run.py --gpu --d 128,384,768,1024 --k 1024,4096,16384,100000 --out gpu-benchmark
    python pipelines/benchmark/run.py --gpu --suite lloyd --gigabytes 61                  # 30M × 1024, 20 iterations
    python pipelines/benchmark/run.py --gpu --suite budget --gigabytes 12 --scratch DIR   # three times what is allowed
    python pipelines/benchmark/run.py --gpu --suite split                                 # thousands of small k-means
    python pipelines/benchmark/run.py --gpu --suite "" --whole                            # hkm cluster --local-cuda

What the device can do is measured first, in the same call. Tables are written anew after every case.
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hkm_dask.compute.backend import require_cuda
from hkm_dask.errors import ComputeError
from pipelines.benchmark import gpu_cases
from pipelines.benchmark.gpu_cases import DeviceOptions
from pipelines.benchmark.gpu_peers import PEERS, find_participants
from pipelines.benchmark.gpu_report import Ceilings, DeviceResults, table, write_results
from pipelines.benchmark.gpu_split import split
from pipelines.benchmark.report import describe_case, describe_machine

SUITES = {**gpu_cases.SUITES, "split": split}
_LIBRARIES = (
    "hkm-dask", "cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "flash-kmeans", "fastkmeans", "numpy", "numba",
    "dask", "dask-cuda", "rmm-cu13", "zarr",
)  # fmt: skip
#: Side of the matrix product, and numbers that are copied and sent: many times what a cache holds.
_SIDE, _COPIED, _SENT = 8192, 1 << 29, 1 << 28


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line that stands beside ``--gpu``.

    Parameters
    ----------
    words : sequence of str

    Returns
    -------
    argparse.Namespace
    """
    parser = argparse.ArgumentParser(
        "run.py --gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suites = tuple(name for name in SUITES if name != "whole")
    parser.add_argument("--suite", type=_names, default=suites, help=f"of {','.join(suites)}; default: all")
    parser.add_argument("--d", type=_numbers, default=(128, 384, 768, 1024), help="features, one case each")
    parser.add_argument("--k", type=_numbers, default=(1024, 4096, 16384, 100_000), help="clusters, one case each")
    parser.add_argument(
        "--n", type=int, help="rows of every case; default: what --gigabytes hold, or a second is worth"
    )
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of rows in float16; default: 4")
    parser.add_argument("--peers", type=_names, help=f"of {','.join(PEERS)}; default: those that are there")
    parser.add_argument("--seconds-per-case", type=float, default=10.0, help="to spend on a pass, about; default: 10")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the iterations; default: 3")
    parser.add_argument("--scratch", type=Path, help="where pools are made; default: the temporary folder")
    parser.add_argument("--whole", action="store_true", help="the whole command as well, beside threads of the CPU")
    parser.add_argument("--whole-n", type=int, default=5_000_000, help="rows of 384 features of it; default: 5000000")
    parser.add_argument("--levels", type=_numbers, default=(20_000, 1000, 100), help="of it; default: 20000,1000,100")
    parser.add_argument("--max-iter", type=int, default=10, help="iterations of each k-means of it; default: 10")
    parser.add_argument("--resamples", type=int, default=2, help="resamplings of each level of it; default: 2")
    parser.add_argument("--out", type=Path, default=Path("hkm-benchmark"), help="folder; default: hkm-benchmark")
    arguments = parser.parse_args(words)
    for option, given, known in (("suite", arguments.suite, suites), ("peers", arguments.peers or (), PEERS)):
        for name in given:
            if name not in known:
                parser.error(f"--{option}={name} should be one of {', '.join(known)}")
    for name in ("d", "k", "n", "gigabytes", "seconds_per_case", "repeats", "whole_n", "max_iter"):
        given = getattr(arguments, name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and not (math.isfinite(value) and value > 0):
                parser.error(f"--{name.replace('_', '-')}={value} should be > 0; give a larger one")
    if arguments.n is not None and arguments.n < max(arguments.k):
        parser.error(f"--n={arguments.n} should be >= {max(arguments.k)}, the largest --k; give more rows")
    return arguments


# -- what the device is and does --------------------------------------------------------------------------------------


def describe_device() -> dict[str, Any]:
    """Tell on what device is measured: name, memory (GiB), compute capability, driver and CUDA."""
    import cupy

    facts = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    version = cupy.cuda.runtime.runtimeGetVersion()
    return {
        "name": facts["name"].decode(),
        "memory_gib": round(facts["totalGlobalMem"] / 2**30, 1),
        "capability": f"{facts['major']}.{facts['minor']}",
        "driver": _driver(),
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
    }


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return (answer.stdout.split() or ["unknown"])[0]


def measure_ceilings() -> Ceilings:
    """Measure what a pass can be no faster than; random numbers, since products of zeros are quicker."""
    return Ceilings(*_products(), *_transfers())


def _transfers() -> tuple[float, float]:
    """Bytes per second of a copy within the device, read and written, and from pinned host memory."""
    import cupy

    there = cupy.random.default_rng(0).standard_normal(_COPIED, dtype=cupy.float32)
    here = cupy.empty_like(there)
    some = here[:_SENT]
    pinned = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(some.nbytes), 0)
    host = np.ndarray(_SENT, np.float32, buffer=pinned)
    host[...] = there[:_SENT].get()
    copied = _rate(lambda: cupy.copyto(here, there), 2.0 * there.nbytes)
    sent = _rate(lambda: some.set(host), float(some.nbytes))
    return copied, sent


def _products() -> tuple[float, float | None]:
    """FLOP per second in float16 and in bfloat16: torch's where it is there, else CuPy's, which has no bfloat16."""
    n_flops = 2.0 * _SIDE**3
    try:
        torch = import_module("torch")
        if torch.cuda.is_available():
            rates = []
            for dtype in (torch.float16, torch.bfloat16):
                a, b = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=dtype) for _ in range(2))
                out = torch.empty_like(a)
                rates.append(_rate(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), n_flops))  # type: ignore[misc]
            return rates[0], rates[1]
    except ImportError:
        pass
    import cupy

    rng = cupy.random.default_rng(0)
    left, right = (rng.standard_normal((_SIDE, _SIDE), dtype=cupy.float32).astype(cupy.float16) for _ in range(2))
    return _rate(lambda: left @ right, n_flops), None


def _rate(work: Callable[[], object], amount: float, *, batch: int = 20, repeats: int = 10) -> float:
    """So much per second: the median of some batches, after one that warms up."""
    import cupy

    seconds = []
    for _ in range(repeats + 1):
        cupy.cuda.runtime.deviceSynchronize()
        begin = time.perf_counter()
        for _ in range(batch):
            work()
        cupy.cuda.runtime.deviceSynchronize()
        seconds.append((time.perf_counter() - begin) / batch)
    return amount / statistics.median(seconds[1:])


# -- the run ----------------------------------------------------------------------------------------------------------


def main(words: Sequence[str]) -> None:
    """Run the suites.

    Parameters
    ----------
    words : sequence of str
        The command line without ``--gpu``.
    """
    arguments = parse_arguments(words)
    try:
        require_cuda()
    except ComputeError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    aside = Console(stderr=True, highlight=False, soft_wrap=True)
    participants, absent = find_participants(arguments.peers)
    aside.print(f"with {', '.join(one.name for one in participants)}; not here: {', '.join(absent) or 'none'}")
    ceilings = measure_ceilings()
    results = DeviceResults(
        describe_machine(_LIBRARIES), describe_device(), ceilings, tuple(absent), _tell_command(words),
        datetime.now(UTC).strftime("%Y-%m-%d"),
    )  # fmt: skip
    write_results(results, arguments.out)
    options = DeviceOptions(
        n_features=arguments.d, n_clusters=arguments.k, n_rows=arguments.n, gigabytes=arguments.gigabytes,
        seconds=arguments.seconds_per_case, repeats=arguments.repeats, participants=participants, ceilings=ceilings,
        scratch=arguments.scratch, whole_rows=arguments.whole_n, levels=arguments.levels, max_iter=arguments.max_iter,
        n_resamples=arguments.resamples, tell=aside.print,
    )  # fmt: skip
    for name in (*arguments.suite, *(["whole"] if arguments.whole else [])):
        for found in SUITES[name](options):
            results = replace(results, cases=(*results.cases, found))
            print("\n".join(describe_case(found.case, table(found, ceilings))), flush=True)
            write_results(results, arguments.out)
    print(f"\nresults in {arguments.out}")


def _tell_command(words: Sequence[str]) -> str:
    # Where files lie is nobody's concern.
    told = [Path(word).name if "/" in word else word for word in words]
    return shlex.join(["python", "pipelines/benchmark/run.py", "--gpu", *told])
