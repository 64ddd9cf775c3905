"""Reports: tables on the terminal, JSON, Markdown and a figure, with a description of the machine."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_info

from pipelines.benchmark.device import Ceilings
from pipelines.benchmark.measure import Case, Measurement, finite
from pipelines.benchmark.ours import NAME
from pipelines.benchmark.peers import PEERS, n_threads

_HEADER = (
    "", "seconds", "runs", "× time", "inertia", "× inertia", "TFLOP/s", "of the GEMM", "of the limit", "wrong labels",
    "distances", "",
)  # fmt: skip
#: Relative error up to which a squared distance counts as correct.
TOLERANCE = 1e-6
_OWN, _OTHER = "#d9480f", "#3b82c4"
LIBRARIES = ("hkm-dask", "numpy", "numba", "dask", "zarr", *(peer.distribution for peer in PEERS))
GPU_LIBRARIES = (
    "hkm-dask", "cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "flash-kmeans", "fastkmeans", "numpy", "numba",
    "dask", "dask-cuda", "rmm-cu13", "zarr",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Results of a run.

    Attributes
    ----------
    machine, device : dict
        From `describe_machine`, and on a GPU from `describe_device`.
    absent : tuple of str
        Peers that are not available.
    command : str
    date : str
    cases : tuple of Case
    ceilings : Ceilings or None
        Measured peak rates of the device.
    """

    machine: dict[str, Any]
    absent: tuple[str, ...]
    command: str
    date: str
    cases: tuple[Case, ...] = ()
    device: dict[str, Any] | None = None
    ceilings: Ceilings | None = None


def describe_machine(libraries: Sequence[str] = LIBRARIES) -> dict[str, Any]:
    """Describe the machine: processor, cores, memory (GiB), load, library versions, and the BLAS libraries loaded."""
    versions = {name: _version(name) for name in libraries}
    blas = {
        f"{pool['internal_api']} {pool['version']} for {pool.get('architecture')}, {pool['num_threads']} threads"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    }
    return {
        "cpu": _cpu_model(),
        "cores": n_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: number for name, number in versions.items() if number},
        "blas": sorted(blas),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(case: Case, ceilings: Ceilings | None = None) -> list[tuple[str, ...]]:
    """Return the header and rows of a case's table, without empty columns."""
    lines = [_cells(case, measurement, ceilings) for measurement in case.measurements]
    used = [any(line[column] for line in lines) for column in range(len(_HEADER))]
    return [tuple(cell for cell, keep in zip(line, used, strict=True) if keep) for line in (_HEADER, *lines)]


def _cells(case: Case, one: Measurement, ceilings: Ceilings | None) -> tuple[str, ...]:
    """Return one row of the table."""
    base = next(m for m in case.measurements if m.who == case.base)
    seconds, ratio, own, others, check = one.median, case.ratio(one), one.median_inertia, base.median_inertia, one.check
    ended = math.isfinite(seconds)
    rate = case.n_flops / seconds if ceilings and ended and seconds > 0 else 0.0
    return (
        one.who,
        f"{seconds:.4g}" if ended else "not reached",
        str(len(one.seconds)),
        "" if ratio is None else f"{ratio:.2f}",
        "" if own is None else f"{own:.6g}",
        "" if own is None or not others else f"{own / others:.5f}",
        f"{rate / 1e12:.1f}" if rate else "",
        f"{rate / ceilings.float16:.1%}" if ceilings and rate else "",
        f"{ceilings.limit(case.n_flops, case.n_bytes) / seconds:.1%}" if ceilings and rate and case.n_bytes else "",
        "" if check is None else f"{check.n_wrong} of {check.n_rows}",
        "" if check is None or check.error is None else _describe_error(check.error),
        one.note,
    )


def _describe_error(error: float) -> str:
    # Written so that NaN counts as off.
    return f"within {error:.0e}" if error <= TOLERANCE else f"off by {error:.0e}"


def print_case(case: Case, console: Console, ceilings: Ceilings | None = None) -> None:
    """Print one case as a table."""
    shown = Table(title=f"{case.title}\n{case.problem}", title_justify="left", caption="\n".join(case.facts) or None)
    shown.caption_justify = "left"
    header, *lines = table(case, ceilings)
    for name in header:
        shown.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    for line in lines:
        shown.add_row(*line)
    console.print(shown)


def write_results(results: Results, path: Path) -> None:
    """Write ``PATH.json`` and ``PATH.md``, creating the folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**asdict(results), "cases": [case_facts(case) for case in results.cases]}
    text = json.dumps(finite(content), indent=2, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(to_markdown(results), encoding="utf-8")


def case_facts(case: Case) -> dict[str, Any]:
    """Return a case as a dict, with the median and the ratio of every measurement."""
    facts = asdict(case)
    for line, one in zip(facts["measurements"], case.measurements, strict=True):
        line.update(median=one.median, ratio=case.ratio(one))
    return facts


def to_markdown(results: Results) -> str:
    """Format the results as a Markdown page."""
    machine = results.machine
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    paragraphs = [
        "# Benchmark" if results.device is None else "# Benchmark on a GPU",
        *_describe_gpu(results),
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}, {versions}. BLAS: {'; '.join(machine['blas'])}. "
        f"Load average at the start: {', '.join(map(str, machine['load_average']))}.",
        f"{results.date}, by `{results.command}`.",
        f"Not installed: {', '.join(results.absent) or 'none'}. Participants run in turns; seconds and inertia are "
        "medians, × is relative to the row with 1. Inertia is recomputed in float64.",
    ]
    for case in results.cases:
        header, *body = table(case, results.ceilings)
        rule = "|".join("--:" if name else ":--" for name in header)
        paragraphs += [f"## {case.title}", case.problem, "\n".join([_line(header), f"|{rule}|", *map(_line, body)])]
        paragraphs += case.facts
    return "\n\n".join(paragraphs) + "\n"


def _describe_gpu(results: Results) -> list[str]:
    """Describe the device, its peak rates, and the columns specific to GPUs."""
    device, ceilings = results.device, results.ceilings
    if device is None or ceilings is None:
        return []
    bfloat16 = "not measured" if ceilings.bfloat16 is None else f"{ceilings.bfloat16 / 1e12:.0f} TFLOP/s"
    return [
        f"{device['name']}, {device['memory_gib']} GiB, compute capability {device['capability']}, "
        f"driver {device['driver']}, CUDA {device['cuda']}.",
        f"Measured in the same run: matrix product {ceilings.float16 / 1e12:.0f} TFLOP/s in float16, {bfloat16} in "
        f"bfloat16 (8192³, random numbers); copy within the device {ceilings.copy / 1e12:.2f} TB/s, read and written; "
        f"from pinned host memory {ceilings.upload / 1e9:.1f} GB/s.",
        "Runs follow a warm-up and are timed with device synchronization. A pass counts as 2nkd operations; the GEMM "
        "is the float16 matrix product. The limit is the longer of two times: the operations at the rate of the GEMM, "
        "and the bytes to be sent at the transfer rate. Labels and distances are compared with brute force in float64; "
        f"the relative error of a distance should be at most {TOLERANCE:.0e}.",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def draw_ratios(cases: Sequence[Case]) -> Figure:
    """Draw the time of every participant relative to ours, with one panel per case."""
    drawn = [(c, [(m.who, r) for m in c.measurements if (r := c.ratio(m)) is not None]) for c in cases]
    drawn = [(case, bars) for case, bars in drawn if len(bars) > 1]
    heights = [0.6 + 0.3 * len(bars) for _, bars in drawn] or [1.0]
    figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for panel, (case, bars) in zip(panels, drawn, strict=False):
        panel.set_title(f"{case.title}\n{case.problem}", fontsize=8, loc="left")
        colors = [_OWN if who.startswith(NAME) else _OTHER for who, _ in bars]
        panel.barh([who for who, _ in bars], [ratio for _, ratio in bars], color=colors)
        for place, (_, ratio) in enumerate(bars):
            panel.annotate(f" {ratio:.2f}", (ratio, place), va="center", fontsize=8)
        panel.axvline(1.0, color="#656d76", linewidth=0.8)
        panel.invert_yaxis()
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xscale("log")
    panels[-1].margins(x=0.15)
    for set_formatter in (panels[-1].xaxis.set_major_formatter, panels[-1].xaxis.set_minor_formatter):
        set_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
    panels[-1].set_xlabel("time relative to hkm_dask (logarithmic)", fontsize=8)
    return figure
