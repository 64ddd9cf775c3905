"""What was found: on the terminal, as JSON, as Markdown and as a picture, each with the machine's description."""

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

from pipelines.benchmark.measure import Case, Measurement
from pipelines.benchmark.ours import NAME
from pipelines.benchmark.peers import PEERS, n_threads

_HEADER = ("", "seconds", "runs", "× time", "inertia", "× inertia", "")
_OWN, _OTHER = "#d9480f", "#3b82c4"
_LIBRARIES = ("hkm-dask", "numpy", "numba", "dask", "zarr", *(peer.distribution for peer in PEERS))


@dataclass(frozen=True)
class Results:
    """All of a run.

    Attributes
    ----------
    machine : dict
        From `describe_machine`.
    absent : tuple of str
        Peers that are not installed.
    settings : dict
        The options of the command.
    cases : tuple of Case
    """

    machine: dict[str, Any]
    absent: tuple[str, ...]
    settings: dict[str, Any]
    cases: tuple[Case, ...] = ()


def describe_machine(libraries: Sequence[str] = _LIBRARIES) -> dict[str, Any]:
    """Tell on what is measured: processor, cores, memory (GiB), load, versions, and BLAS as far as it is loaded.

    Parameters
    ----------
    libraries : sequence of str
        Distributions whose versions are told, where they are installed.

    Returns
    -------
    dict
    """
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
        "versions": {name: found for name, found in versions.items() if found},
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


def _table(case: Case) -> list[tuple[str, ...]]:
    """Header and lines of a case's table, without columns in which there is nothing."""
    return drop_empty(_HEADER, [_cells(case, measurement) for measurement in case.measurements])


def drop_empty(header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Put a header above lines, without the columns in which no line has anything.

    Parameters
    ----------
    header : tuple of str
    lines : sequence of tuple of str

    Returns
    -------
    list of tuple of str

    Examples
    --------
    >>> drop_empty(("", "seconds", "runs"), [("a", "1.0", ""), ("b", "2.0", "")])
    [('', 'seconds'), ('a', '1.0'), ('b', '2.0')]
    """
    used = [any(line[column] for line in lines) for column in range(len(header))]
    return [tuple(cell for cell, keep in zip(line, used, strict=True) if keep) for line in (header, *lines)]


def _cells(case: Case, measurement: Measurement) -> tuple[str, ...]:
    """One line of a table."""
    base = next(m for m in case.measurements if m.who == case.base)
    ratio, own, others = case.ratio(measurement), measurement.median_inertia, base.median_inertia
    return (
        measurement.who,
        f"{measurement.median:.3f}" if math.isfinite(measurement.median) else "not reached",
        str(len(measurement.seconds)),
        "" if ratio is None else f"{ratio:.2f}",
        "" if own is None else f"{own:.6g}",
        "" if own is None or not others else f"{own / others:.5f}",
        measurement.note,
    )


def print_case(case: Case, console: Console) -> None:
    """Print one case as a table.

    Parameters
    ----------
    case : Case
    console : rich.console.Console
    """
    table = Table(title=f"{case.title}\n{case.problem}", title_justify="left", caption="\n".join(case.facts) or None)
    header, *lines = _table(case)
    for name in header:
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    for line in lines:
        table.add_row(*line)
    console.print(table)


def write_results(results: Results, folder: Path) -> None:
    """Write ``results.json`` and ``results.md``.

    Parameters
    ----------
    results : Results
    folder : Path
        Made if need be.
    """
    write_files(asdict(results), to_markdown(results), folder / "results")


def write_files(content: dict[str, Any], page: str, path: Path) -> None:
    """Write figures as JSON and as Markdown, side by side.

    Parameters
    ----------
    content : dict
    page : str
    path : Path
        Without the suffix; its folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page, encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(results: Results) -> str:
    """Write the results as a page.

    Parameters
    ----------
    results : Results

    Returns
    -------
    str
    """
    lines = [
        "# Benchmark",
        "",
        tell_machine(results.machine),
        "",
        f"Not installed: {', '.join(results.absent) or 'none'}. Seconds and inertia are medians of runs in turns; "
        "× is in proportion to the line that says 1. Inertia is recomputed in float64.",
    ]
    for case in results.cases:
        lines += describe_case(case, _table(case))
    return "\n".join(lines) + "\n"


def tell_machine(machine: dict[str, Any]) -> str:
    """Put what `describe_machine` found in a sentence or two.

    Parameters
    ----------
    machine : dict

    Returns
    -------
    str
    """
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}, {versions}. BLAS: {'; '.join(machine['blas'])}. "
        f"Load when it began: {', '.join(map(str, machine['load_average']))}."
    )


def describe_case(case: Case, cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Write a case and its table as lines of Markdown.

    Parameters
    ----------
    case : Case
    cells : sequence of tuple of str
        Header and lines of the table.

    Returns
    -------
    list of str
    """
    header, *body = cells
    rule = "|".join("--:" if name else ":--" for name in header)
    lines = ["", f"## {case.title}", "", case.problem, "", _line(header), f"|{rule}|", *map(_line, body)]
    return lines + [text for fact in case.facts for text in ("", fact)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def draw_ratios(cases: Sequence[Case]) -> Figure:
    """Draw how many times as long as we everybody took: a panel per case.

    Parameters
    ----------
    cases : sequence of Case

    Returns
    -------
    matplotlib.figure.Figure
    """
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
    panels[-1].set_xlabel("time, in proportion to ours (logarithmic)", fontsize=8)
    return figure
