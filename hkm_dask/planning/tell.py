"""Plans formatted as text, as JSON, and as one line before a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hkm_dask.data.summary import Summary, size_text
from hkm_dask.planning.files import FileBytes
from hkm_dask.planning.plan import BOUNDS, LevelPlan, Plan
from hkm_dask.view.progress import duration


def to_dict(plan: Plan) -> dict[str, Any]:
    """Return a dict for JSON: bytes, seconds and operations, by level and in total.

    Seconds are None if no rates are known; ``calibration`` can be passed to ``hkm plan --rates``.
    """
    levels = [
        {
            **level.shape, "units": level.units, "flops": level.flops, "passes": level.passes,
            **{bound: level.times[bound] if level.times else None for bound in BOUNDS}, "network_bytes": level.network,
            "files": {phase: asdict(one) for phase, one in level.files.items()},
            "in_ranges": {"seconds": level.range_seconds, **asdict(level.in_ranges)},
        }
        for level in plan.levels
    ]  # fmt: skip
    workers = plan.workers
    return {
        "n_rows": plan.n_rows, "n_features": plan.n_features, "dtype": plan.dtype,
        "workers": {
            "n_workers": workers.n_workers, "n_threads": workers.n_threads, "memory_limit": workers.memory_limit,
            "gpu": None if workers.gpu is None else workers.gpu.name,
        },
        "basis": basis(plan), "levels": levels, "other": plan.other,
        **{bound: plan.total(bound) for bound in BOUNDS}, "fits": plan.fits,
        "memory": {
            "stages": {name: stage.total() for name, stage in plan.stages.items()}, "inputs": plan.inputs,
            "budget": plan.budget, "peak": plan.peak, "need": plan.need, "resident": plan.resident,
        },
        "remedies": list(plan.remedies),
        "calibration": None if plan.calibration is None else plan.calibration.to_dict(),
    }  # fmt: skip


def basis(plan: Plan) -> str:
    """Describe the origin of the times."""
    if plan.workers.gpu is not None:
        return (
            f"predicted, not measured: rates of {plan.workers.gpu.source} from its data sheet, "
            "every k-means making max_iter iterations"
        )
    if plan.calibration is None:
        return "no times, since no rates are known"
    one = plan.calibration
    return f"measured on {one.n_rows:,} rows in {one.seconds:.0f} s, {one.n_processors} threads of {one.machine}"


def render(plan: Plan, name: str) -> str:
    """Format a plan as text."""
    stored = plan.n_rows * plan.n_features * (2 if plan.dtype == "float16" else 4)
    facts = [
        ("rows", f"{plan.n_rows:,} × {plan.n_features} {plan.dtype}, {size_text(stored)}"),
        ("workers", f"{plan.workers}, {size_text(plan.workers.memory_limit)} each"),
        ("memory", _memory(plan)),
        ("times", basis(plan)),
    ]
    facts += [("ranges", text) for text in _in_ranges(plan)]
    if (why := _why_a_range(plan)) is not None:
        facts.append(("range", why))
    head = ["level", "rows", "clusters", "resamplings", "passes", "operations", "time", "at most", "read", "written"]
    rows = [[str(t), *_level(level)] for t, level in enumerate(plan.levels, 1)]
    title = f"Plan of {name}: {_span(plan.total())}" if plan.total() is not None else f"Plan of {name}"
    lines = [str(Summary(title, facts, [head, *rows]))]
    phases = _by_phase(plan)
    if phases:
        lines += ["", "  of which " + ", ".join(f"{phase} {_span(seconds)}" for phase, seconds in phases.items())]
    if not plan.fits:
        lines += ["", f"It does not fit: {plan.worst} needs a limit of {size_text(plan.need)}. Any of these would fit:"]
        lines += [f"  {remedy}" for remedy in plan.remedies]
    return "\n".join(lines)


def short(plan: Plan) -> str:
    """Summarize a plan in one line, before a run begins.

    >>> from hkm_dask.config import Config
    >>> from hkm_dask.planning.plan import make_plan
    >>> from hkm_dask.planning.workers import PlannedRows, Workers
    >>> rows = PlannedRows(40_000, 384, "float16")
    >>> short(make_plan(Config.from_flags((2000, 400)), rows, Workers.here(8 << 30)))[:15]
    'Plan: 2 levels,'
    """
    flops = sum(level.flops for level in plan.levels)
    total = plan.total()
    time = f"about {_span(total)}" if total is not None else "`hkm plan` estimates the time"
    again = "" if plan.resident >= 1 else f", {plan.resident:.0%} of the rows stay in memory"
    memory = f"{size_text(plan.peak)} of {size_text(plan.workers.memory_limit)} of memory{again}"
    n = len(plan.levels)
    shared_out = "".join(f"; {text}" for text in _in_ranges(plan))
    return f"Plan: {n} level{'s' if n > 1 else ''}, {flops:.1e} operations, {memory}; {time}{shared_out}"


def _in_ranges(plan: Plan) -> list[str]:
    """Describe the levels whose clusters do not fit one worker: number of ranges and additional cost."""
    texts = []
    for t, level in enumerate(plan.levels, 1):
        if (n := level.shape["n_ranges"]) > 1:
            files = size_text(level.in_ranges.read + level.in_ranges.written)
            time = "" if level.range_seconds is None else f"about {_span(level.range_seconds)} and "
            clusters = f"the {level.shape['k']:,} clusters of level {t} are divided into {n} ranges"
            texts.append(f"{clusters}, as no worker can hold them all: {time}{files} of additional reads and writes")
    return texts


def _memory(plan: Plan) -> str:
    stay = "all rows stay" if plan.resident >= 1 else f"{plan.resident:.0%} of the rows stay"
    least = size_text(plan.need)
    return f"{size_text(plan.peak)} at most, {stay} in memory; at least {least} is needed ({plan.worst})"


def _why_a_range(plan: Plan) -> str | None:
    """Describe the range of the total time, and the iterations it depends on."""
    if plan.calibration is None or plan.workers.gpu is not None:
        return None
    low, high = (_span(plan.total(bound)) for bound in ("at_least", "likely_at_most"))
    made = [
        f"{one.fewest:.0f} to {one.most:.0f}" if one.fewest < one.most else f"{one.most:.0f}"
        for one in (plan.calibration.seen[name][0] for name in ("first", "resampled") if plan.calibration.seen[name])
    ]
    resampled = f", {made[1]} when resampled" if len(made) > 1 else ""
    return f"{low} to {high}, depending on the iterations until convergence, such as {made[0]} at level 1{resampled}"


def _level(level: LevelPlan) -> list[str]:
    shape, files = level.shape, sum(level.files.values(), FileBytes())
    k = f"{shape['k']:,}" + (f" × {shape['n_splits']}" if shape["n_splits"] > 1 else "")
    m = f"{shape['m']} of {shape['r']}" if shape["m"] else "0"
    times = [_span(sum(level.times[name].values()) if level.times else None) for name in ("seconds", "at_most")]
    return [
        f"{shape['n']:,}", k, m, f"{level.passes:,}", f"{level.flops:.1e}", *times, size_text(files.read),
        size_text(files.written),
    ]  # fmt: skip


def _by_phase(plan: Plan) -> dict[str, float]:
    spent: dict[str, float] = {}
    for one in [*(level.seconds for level in plan.levels), plan.other]:
        for phase, seconds in (one or {}).items():
            spent[phase] = spent.get(phase, 0.0) + seconds
    return {} if plan.total() is None else dict(sorted(spent.items(), key=lambda item: -item[1]))


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
