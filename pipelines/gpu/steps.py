"""The steps of the first thirty minutes, the most important first."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import hkm_dask as hkm
from hkm_dask.search.cuda.check import Sample, find_fault, made_sample
from hkm_dask.search.cuda.forms import NAMES
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.cuda.kernels import compile_kernels
from hkm_dask.search.cuda.operand import Form
from hkm_dask.search.cuda.walk_check import find_made_walk_fault, find_walk_fault, made_walks
from hkm_dask.search.engine import LEAST_FEATURES
from hkm_dask.search.geometry import Geometry
from pipelines.benchmark import gpu, gpu_peers
from pipelines.benchmark.device import (
    Ceilings,
    computing_on,
    describe_device,
    environment,
    measure_ceilings,
    synchronize,
)
from pipelines.benchmark.inputs import RowMaker, to_numpy
from pipelines.benchmark.measure import Case, Measurement, check_labels, clock, percent, run_apart, with_case
from pipelines.benchmark.ours import NAME
from pipelines.benchmark.report import GPU_LIBRARIES, case_facts, describe_machine
from pipelines.benchmark.whole import run_whole, whole_config
from pipelines.gpu.kernels import forms_here, measure_kernels
from pipelines.gpu.record import Record

ROOT = Path(__file__).parents[2]
#: Features and clusters of the passes, the most important first.
_PASSES = (
    (1024, 16_384), (384, 16_384), (128, 16_384), (1024, 4096), (384, 4096), (128, 4096), (1024, 100_000),
    (384, 100_000), (128, 100_000),
)  # fmt: skip
#: Gigabytes of rows for Lloyd's iteration; 30M × 1024 are 61.
_LLOYD_GIGABYTES = (8.0, 61.0)
#: Folder of the CUDA toolkit's programs.
_TOOLKIT = "/usr/local/cuda/bin"
#: Suites with peers, whose import takes seconds.
_SUITES_WITH_PEERS = ("resident", "streamed", "lloyd")
#: Rows, features and clusters of the search run under NVIDIA's tools, and rows of a rehearsal.
_SMALL, _REHEARSED_ROWS = (4096, 128, 600), 240


@dataclass(frozen=True)
class Step:
    """A step, with its share of thirty minutes, and the least seconds it needs."""

    name: str
    title: str
    minutes: float
    least: float
    work: Callable[[Record], None]


def name_of(work: Callable[[Record], None]) -> str:
    """Return the name by which a child process finds a function.

    Examples
    --------
    >>> name_of(search_once)
    'pipelines.gpu.steps:search_once'
    """
    return f"{work.__module__}:{work.__qualname__}"


# -- machine ----------------------------------------------------------------------------------------------------------


def describe(record: Record) -> None:
    """Record versions, the device, and its peak rates."""
    record.add(machine=describe_machine(GPU_LIBRARIES))
    device = describe_device()
    n_devices = import_module("cupy").cuda.runtime.getDeviceCount()
    record.add(
        f"{device['name']}, {device['memory_gib']} GiB, driver {device['driver']}, CUDA {device['cuda']}; "
        f"{n_devices} visible",
        device=device,
        n_devices=n_devices,
    )
    ceilings = measure_ceilings()
    record.add(
        f"product {ceilings.float16 / 1e12:.0f} TFLOP/s, copy {ceilings.copy / 1e12:.2f} TB/s, "
        f"from pinned memory {ceilings.upload / 1e9:.1f} GB/s, pinned {ceilings.pin / 1e9:.1f} GB/s",
        ceilings=asdict(ceilings),
    )


# -- correctness ------------------------------------------------------------------------------------------------------


def check_forms(record: Record) -> None:
    """Compare each form's scores with their bounds and its labels with the CPU's, as workers do at start; also walks.

    The Hopper form is a separate step, because it might hang.
    """
    forms, samples = forms_here(), _samples(record)
    compiling, _ = clock(lambda: compile_kernels(0, (False, True), for_hopper="hopper" in forms))
    record.add(f"kernels compiled in {compiling:.1f} s", compiling=compiling)
    others = [form for form in forms if form != "hopper"]
    faults = [fault for form in others for fault in _faults_of(record, form, samples)]
    for d in {d for d, _ in samples if d >= LEAST_FEATURES}:
        fault = find_made_walk_fault(d)
        faults += [f"walks d = {d} {fault}"] if fault else []
        record.add(f"walks d = {d}: {fault or 'right'}", checks=[{"form": "walks", "d": d, "fault": fault}])
    search_once(record, others)
    if faults:
        raise ValueError("; ".join(faults))


def check_hopper(record: Record) -> None:
    """Like `check_forms` for the Hopper form; then run a k-means that checks all forms itself.

    Later steps leave out the Hopper form unless the figure "hopper" says that it is right.
    """
    faults: list[str] = []
    if "hopper" in forms_here():
        record.add(hopper="not told")
        faults += _faults_of(record, "hopper", _samples(record))
        search_once(record, ["hopper"])
        record.add(hopper="; ".join(faults) or "right")
    else:
        record.add("no Hopper", hopper="right")
    faults += fit_once(record)
    if faults:
        raise ValueError("; ".join(faults))


def _samples(record: Record) -> dict[tuple[int, str], Sample]:
    """Return synthetic rows by width and dtype, including widths that are not multiples of 64, or of 8, features."""
    widths = (16,) if record.rehearsal else (128, 384, 1024, 100, 520, 13)
    samples = [(d, dtype) for d in widths for dtype in ("float16", "float32")][: 1 if record.rehearsal else None]
    return {(d, dtype): made_sample(d, np.dtype(dtype)) for d, dtype in samples}


def _faults_of(record: Record, form: Form, samples: Mapping[tuple[int, str], Sample]) -> Iterator[str]:
    for (d, dtype), sample in samples.items():  # the host computes its answer once for all forms
        fault = find_fault(form, sample, is_made=True)
        record.add(f"{form} d = {d}, {dtype}: {fault or 'right'}", checks=[{"form": form, "d": d, "fault": fault}])
        if fault:
            yield f"{form} d = {d}, {dtype} {fault}"


def fit_once(record: Record) -> list[str]:
    """Run a small k-means, whose worker checks all forms itself; return its warnings about rejected forms."""
    n, d, k = (_REHEARSED_ROWS, 16, 12) if record.rehearsal else (200_000, 128, 512)
    rows = np.empty((n, d), np.float32)
    RowMaker(np, d).fill(rows)
    with computing_on("cuda"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        seconds, _ = clock(lambda: hkm.KMeans(k, max_iter=3).fit(rows))
    messages = [text for one in caught if (text := str(one.message)).startswith(tuple(NAMES.values()))]
    record.add(f"a fit of {n} × {d}, checks included: {seconds:.1f} s; {'; '.join(messages) or 'no form put aside'}")
    return messages


def search_once(record: Record, forms: Sequence[Form] | None = None) -> None:
    """Label a few rows twice with each form, or the given ones, and check them by brute force; the first compiles."""
    import cupy

    n, d, k = (_REHEARSED_ROWS, 16, 20) if record.rehearsal else _SMALL
    maker, rows = RowMaker(cupy, d), cupy.empty((n, d), cupy.float16)
    geometry, centroids = Geometry(*maker.fill(rows), n), maker.centroids(k)
    for form in forms_here() if forms is None else forms:
        labels, distances = cupy.full(n, -1, cupy.int32), cupy.full(n, cupy.inf)
        index, search = CudaIndex(centroids, geometry, form), (rows, labels, distances)
        first, again = (clock(lambda i=index, s=search: i.nearest(*s), synchronize)[0] for _ in range(2))  # type: ignore[misc]
        check = check_labels(to_numpy(rows).astype(np.float32), centroids, labels.get(), distances.get())
        record.add(
            f"{form}: {check.n_wrong} of {n} labels wrong, first search {first:.2f} s, second {1e3 * again:.2f} ms",
            searches=[{"form": form, "first": first, "second": again, **asdict(check)}],
        )
        if check.n_wrong:
            raise ValueError(f"{check.n_wrong} of {n} labels of the form {form} should be others")


def search_and_walk_once(record: Record) -> None:
    """Run `search_once`, and walks over a few small groups."""
    search_once(record)
    fault = find_walk_fault(made_walks(LEAST_FEATURES)[:3])
    record.add(f"walks: {fault or 'right'}")
    if fault:
        raise ValueError(f"walks {fault}")


def run_tests(record: Record) -> None:
    """Run the tests of the GPU path, except those that start workers, test these steps, or need no device."""
    chosen = ["tests/gpu", "tests/compute/cluster/test_device.py", "-k", "not compile"]
    chosen += [f"--ignore=tests/gpu/test_{name}.py" for name in ("cluster", "first_minutes")]
    _pytest(record, ["-p", "tests.emulated.as_device", "tests/gpu/test_seeding.py"] if record.rehearsal else chosen)


def run_cluster_tests(record: Record) -> None:
    """Run the tests that start one worker per GPU."""
    _pytest(record, ["tests/gpu/test_cluster.py", *(["--collect-only"] if record.rehearsal else [])])


def _pytest(record: Record, chosen: Sequence[str]) -> None:
    """Run tests and record results as they come; ignores the checkout's options, whose plugins may be missing."""
    options = "-o addopts= --import-mode=importlib -W default -p no:cacheprovider -v --tb=line".split()
    results: dict[str, int] = {}
    at_fault, failed = list[str](), list[str]()

    def take(line: str) -> None:
        if found := re.match(r"(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", line):
            results[found[2]] = results.get(found[2], 0) + 1
            if found[2] in ("FAILED", "ERROR"):  # the reason is printed only at the end, which may not be reached
                at_fault.append(f"{found[2]} {found[1]}")
            counts = ", ".join(f"{n} {word.lower()}" for word, n in results.items())
            record.lines[:] = [counts, *at_fault[:20]]
            record.add(tests=results)
        elif re.match(r"(FAILED|ERROR) \S", line):  # in the summary at the end, with the reason
            record.lines[1:] = []
            failed.append(line.strip())

    code = _run([sys.executable, "-m", "pytest", *options, *chosen], take)
    for line in failed[:20] if results else ["no test ran"]:
        record.add(line, failed=[line])
    if code:
        raise AssertionError(f"pytest ended with status {code}; {len(failed)} tests failed")


def _run(command: Sequence[str], take: Callable[[str], None]) -> int:
    """Run a command, print its output and pass it line by line to `take`; return the exit status."""
    with (
        environment(HKM_DEVICE=None),  # set in a rehearsal, but child processes have no emulator
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            take(line)
    return process.returncode


def _under(
    record: Record, tool: str, options: Sequence[str], wanted: str, work: Callable[[Record], None] = search_once
) -> str:
    """Run one small search, or other work, under one of NVIDIA's tools, and keep the relevant lines of its output.

    Returns what went wrong with the tool or with the work, "" if nothing did.
    """
    place = shutil.which(tool) or shutil.which(tool, path=_TOOLKIT)
    if record.rehearsal or place is None:
        record.add(f"{tool}: {'no device' if record.rehearsal else 'not installed'}")
        return ""
    found = str(record.path.with_suffix(".search"))
    child = [sys.executable, "-m", "pipelines.gpu.child", name_of(work), found, str(record.left)]
    kept: list[str] = []

    def take(line: str) -> None:
        if re.search(wanted, line):
            kept.append(line.strip(" =\n"))

    code = _run([place, *options, *child], take)
    for line in kept[:12] or [f"no output, status {code}"]:
        record.add(f"{' '.join([tool, *options[:2]])}: {line}", tools=[line])
    return f"{' '.join([tool, *options[:2]])} ended with status {code}; see the log" if code else ""


def sanitize(record: Record) -> None:
    """Look for invalid memory accesses and races in one small search, and in walks over small groups."""
    faults = [
        _under(record, "compute-sanitizer", ["--tool", tool], "SUMMARY|Error|hazard", search_and_walk_once)
        for tool in ("memcheck", "racecheck")
    ]
    if any(re.search(r"SUMMARY: [1-9]", line) for line in record.figures.get("tools", [])):
        faults.insert(0, "compute-sanitizer found errors; see the log")
    if fault := "; ".join(filter(None, faults)):
        raise AssertionError(fault)


def profile(record: Record) -> None:
    """Profile one launch of the search with ncu."""
    options = ["--section", "SpeedOfLight", "--kernel-name", "regex:nearest_two", "--launch-count", "1"]
    if fault := _under(record, "ncu", [*options, "--clock-control", "none"], r"Throughput|Duration|ERR"):
        raise AssertionError(fault)


# -- speed ------------------------------------------------------------------------------------------------------------


def _known_ceilings(record: Record) -> Ceilings:
    """Return the peak rates of the device from the first step of this run; measures them again if it did not run."""
    all_steps = record.path.with_name("gpu.json")
    found = json.loads(all_steps.read_text(encoding="utf-8"))["steps"] if all_steps.exists() else {}
    known = found.get("machine", {}).get("figures", {}).get("ceilings")
    return Ceilings(**known) if known else measure_ceilings()


def _options(record: Record, suite: str, ceilings: Ceilings, **settings: Any) -> gpu.DeviceOptions:
    """Return the options of a suite: `settings`, and tiny sizes in a rehearsal."""
    has_peers = suite in _SUITES_WITH_PEERS and not record.rehearsal
    participants, absent = gpu_peers.find_participants(None if has_peers else ())
    record.add(absent=absent, ceilings=asdict(ceilings))
    tiny: dict[str, Any] = {
        "n_rows": _REHEARSED_ROWS, "n_features": (16,), "n_clusters": (12,), "seconds": 0.1, "whole_rows": 300,
        "whole_features": 16, "levels": (12, 3), "max_iter": 2,
    }  # fmt: skip
    defaults: dict[str, Any] = {
        "n_features": (1024,), "n_clusters": (4096,), "n_rows": None, "gigabytes": 2.0, "seconds": 4.0, "repeats": 1,
        "scratch": None, "whole_rows": 1_000_000, "whole_features": 128, "levels": (4000, 400, 40), "max_iter": 5,
        "n_resamples": 1,
    }  # fmt: skip
    return gpu.DeviceOptions(
        participants=participants, ceilings=ceilings, tell=lambda line: print(line, flush=True),
        **(defaults | settings | (tiny if record.rehearsal else {})),
    )  # fmt: skip


def _run_suite(record: Record, suite: str, ceilings: Ceilings, **settings: Any) -> None:
    earlier, cases = record.figures.get("cases", []), tuple[Case, ...]()
    lines = list(record.lines)
    for case in gpu.SUITES[suite](_options(record, suite, ceilings, **settings)):
        cases = with_case(cases, case)
        record.figures["cases"] = [*earlier, *map(case_facts, cases)]
        record.lines[:] = [*lines, *(line for one in cases for line in describe_case(one, ceilings))]
        record.add()


def describe_case(case: Case, ceilings: Ceilings) -> list[str]:
    """Describe the times of all participants, in one line or, if they have notes, one line each; then other facts."""
    lines = [_describe_measurement(case, one, ceilings) for one in case.measurements]
    k = ", ".join(map(str, case.n_clusters))
    head = f"{case.suite} {case.shape[0]} × {case.shape[1]}, k = {k}: "
    if any(one.note for one in case.measurements):
        return [head.rstrip(), *(f"  {line}" for line in lines), *(f"  {fact}" for fact in case.facts)]
    return [head + "; ".join(lines), *(f"  {fact}" for fact in case.facts)]


def _describe_measurement(case: Case, one: Measurement, ceilings: Ceilings) -> str:
    rate = case.n_flops / one.median if one.median > 0 else 0.0
    share = f", {rate / 1e12:.0f} TFLOP/s, {percent(rate / ceilings.float16)}" if rate else ""
    wrong = f", {one.check.n_wrong} WRONG" if one.check is not None and one.check.n_wrong else ""
    return f"{one.who.removeprefix(NAME + ', ')} {one.median:.4g} s{share}{wrong}{one.note and f', {one.note}'}"


def time_passes(record: Record) -> None:
    """Time one pass over resident rows, also with the peers."""
    ceilings, cases = measure_ceilings(), _PASSES[: 1 if record.rehearsal else None]
    for d, k in cases:
        if record.left < 0.1 * record.seconds:
            return record.add(f"no time left for d = {d}, k = {k} and later cases")
        _run_suite(record, "resident", ceilings, n_features=(d,), n_clusters=(k,), seconds=record.seconds / 20)
    return None


def time_streams(record: Record) -> None:
    """Time a pass over rows in host memory, and iterations on more rows than the device may hold."""
    ceilings = _known_ceilings(record)
    for d in (1024, 384):
        _run_suite(record, "streamed", ceilings, n_features=(d,), seconds=record.seconds / 10)
    _run_suite(record, "budget", ceilings, gigabytes=6.0)


def time_lloyd(record: Record) -> None:
    """Time twenty iterations on 8 GB, and on 61 GB if time and memory permit."""
    ceilings = _known_ceilings(record)
    for gigabytes in _LLOYD_GIGABYTES[: 1 if record.rehearsal else None]:
        free = psutil.virtual_memory().available / 1e9
        if record.figures.get("cases") and (record.left < 2.5 * gigabytes or free < 1.5 * gigabytes):
            return record.add(f"{gigabytes:.0f} GB: {record.left:.0f} s and {free:.0f} GB of memory are not enough")
        _run_suite(record, "lloyd", ceilings, gigabytes=gigabytes)
    return None


def time_small(record: Record) -> None:
    """Time splitting thousands of clusters."""
    _run_suite(record, "split", _known_ceilings(record), gigabytes=0.5)


def time_whole(record: Record) -> None:
    """Time a run from pool to subset: twice on the device, because the first run compiles, and on the CPU."""
    _run_suite(record, "whole", _known_ceilings(record))


def time_devices(record: Record) -> None:
    """Time building the same tree with one worker, and with one per GPU."""
    n_devices = 1 if record.rehearsal else import_module("cupy").cuda.runtime.getDeviceCount()
    if n_devices < 2:
        return record.add("one GPU is visible: nothing to compare")
    config = whole_config((4000, 400, 40), n_resamples=1, max_iter=5)
    with tempfile.TemporaryDirectory() as folder:
        pool = run_apart(gpu.make_pool, Path(folder), 4_000_000, 384, "cupy")
        for n in (1, n_devices):
            with environment(CUDA_VISIBLE_DEVICES=",".join(map(str, range(n)))):
                seconds, note = run_apart(run_whole, pool, Path(folder, f"{n}.zarr"), config, "workers")
            record.add(f"{n} of {n_devices} GPUs: {seconds:.1f} s; {note}", devices=[{"n": n, "seconds": seconds}])
    return None


STEPS = (
    Step("machine", "versions, the device, its ceilings", 0.5, 45, describe),
    Step("forms", "each form against its bounds and the CPU", 1, 60, check_forms),
    Step("hopper", "the form of Hopper, and a k-means that checks", 1, 40, check_hopper),
    Step("whole", "from a pool to a subset", 4, 110, time_whole),
    Step("kernels", "each kernel by CUDA events", 4, 70, measure_kernels),
    Step("passes", "a pass over resident rows, and the peers", 5, 85, time_passes),
    Step("lloyd", "twenty iterations from host memory", 4, 40, time_lloyd),
    Step("tests", "tests/gpu", 4, 60, run_tests),
    Step("sanitizer", "bad accesses and races", 2, 40, sanitize),
    Step("streams", "rows that do not fit", 2, 40, time_streams),
    Step("cluster", "tests of workers with GPUs", 1.5, 40, run_cluster_tests),
    Step("small", "thousands of small k-means", 0.5, 30, time_small),
    Step("profile", "what limits the search, by ncu", 0.5, 20, profile),
    Step("devices", "one GPU and all of them", 0.5, 20, time_devices),
)
