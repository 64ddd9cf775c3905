"""Charts and tables by level: cluster sizes, convergence of the k-means, time of each stage."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hkm_dask.view.report.axes import PANEL, WIDTH, Scale, chart, panel, panels, path, rule, text, x_axis, y_axis
from hkm_dask.view.report.facts import Facts, LevelFacts
from hkm_dask.view.report.markup import Content, Markup, count, duration, element, legend, table, things, value

_POINTS = 100  # per curve
_ROW = 26.0  # height of a level in the timeline
_REST = "assignment, writing, other"


def size_panels(facts: Facts) -> Markup:
    """Plot cluster sizes of each level against their rank, in the pool and in the draw; the top level first."""
    return panels([_ranks(level) for level in reversed(facts.levels)])


def _ranks(level: LevelFacts) -> Markup:
    gini = f"Gini {level.gini:.2f}"
    if level.drawn is not None:
        gini += f" in the pool, {level.drawn_gini:.2f} in the draw"
    x = Scale(1, max(len(level.filled), 2), 44, PANEL - 8, log=True)
    most = max(int(counts.max()) for counts in (level.sizes, level.drawn) if counts is not None)
    y = Scale(1, max(most, 2), 150, 10, log=True)
    lines = [_rank_line(level.sizes, x, y, "line pool")]
    if level.drawn is not None:
        lines.append(_rank_line(level.drawn, x, y, "line draw"))
    head = f"Level {level.number}: {things(len(level.filled), 'cluster')}"
    label = f"Samples in the clusters of level {level.number} by rank, on logarithmic axes: a flat line would be even"
    axes = [y_axis(y, 44, PANEL - 8), x_axis(x, 150, "rank of the cluster", n=4)]
    return panel(head, gini, 190, axes, lines, label=label)


def _rank_line(sizes: NDArray[np.int64], x: Scale, y: Scale, class_: str) -> Markup:
    ranked = np.sort(sizes[sizes > 0])[::-1]
    ranks = np.unique(np.geomspace(1, max(len(ranked), 1), _POINTS).round().astype(int))
    points = [(x(rank), y(ranked[rank - 1])) for rank in ranks.tolist()] if len(ranked) else [(x(1), y(1))]
    if len(points) == 1:  # draw a dash instead
        (at, height), half = points[0], 4.0
        points = [(at - half, height), (at + half, height)]
    return path(points, class_)


def size_table(facts: Facts) -> Markup:
    """Tabulate the cluster sizes of each level."""
    head = ["Level", "Clusters", "Empty", "Smallest", "Median", "Mean", "Largest", "Gini"]
    head += ["Gini of the draw", "Clusters not in the draw"] if facts.rows is not None else []
    rows = []
    for level in facts.levels:
        sizes = level.filled
        row: list[Content] = [level.number, count(len(sizes)), count(len(level.sizes) - len(sizes)), count(sizes.min())]
        row += [count(float(np.median(sizes))), count(round(float(sizes.mean()), 1)), count(sizes.max())]
        row.append(f"{level.gini:.2f}")
        if level.drawn is not None:
            missed = int(((level.sizes > 0) & (level.drawn == 0)).sum())
            row += [f"{level.drawn_gini:.2f}", count(missed)]
        rows.append(row)
    return table(head, rows, caption="Samples per cluster, by level")


def inertia_panels(facts: Facts) -> Markup:
    """Plot the inertia by iteration, relative to the first, for each k-means of each level."""
    return panels([made for level in facts.levels if (made := _inertia(level)) is not None])


def _inertia(level: LevelFacts) -> Markup | None:
    runs = [run / run[0] for run in level.runs if len(run) and run[0] > 0]
    if not runs:
        return None
    low = min(float(run.min()) for run in runs)
    longest = max(2, max(map(len, runs)))
    x = Scale(1, longest, 52, PANEL - 8)
    y = Scale(low - 0.05 * (1.0001 - low), 1, 150, 12)
    lines = [
        path([(x(i), y(v)) for i, v in enumerate([*run, run[-1]][: max(len(run), 2)], 1)], f"line {kind}")
        for run, kind in reversed([(run, "first" if i == 0 else "resampled") for i, run in enumerate(runs)])
    ]
    n_iter = ", ".join(count(len(run)) for run in level.runs)
    label = f"Inertia of level {level.number} by iteration, relative to the first; iterations of each run: {n_iter}"
    quiet = f"{things(len(runs), 'k-means run')}, {things(sum(map(len, runs)), 'iteration')}"
    axes = [y_axis(y, 52, PANEL - 8, n=3), x_axis(x, 150, "iteration", n=min(4, longest - 1))]
    return panel(f"Level {level.number}", quiet, 190, axes, lines, label=label)


def _stages(level: LevelFacts) -> Iterator[tuple[str, str, float]]:
    """Yield the stages of a level in order: CSS class, name and seconds."""
    names = ["first k-means", *(f"k-means of resampling {i}" for i in range(1, len(level.step_seconds)))]
    for i, (name, seconds) in enumerate(zip(names, level.step_seconds, strict=True)):
        yield "stage-first" if i == 0 else "stage-more", name, seconds
    yield "stage-rest", _REST, max((level.seconds or 0.0) - sum(level.step_seconds), 0.0)


def stage_legend() -> Markup:
    """Make the legend of the timeline."""
    resampled = ("stage-more", "k-means of resampled members")
    return legend([("stage-first", "first k-means"), resampled, ("stage-rest", _REST)])


def timeline(facts: Facts) -> Markup | None:
    """Draw the time of each stage, level by level; None if the tree does not record it."""
    total = sum(level.seconds or 0.0 for level in facts.levels)
    if not total:
        return None
    x = Scale(0, total, 64, WIDTH - 90)
    start, rows = 0.0, []
    for place, level in enumerate(facts.levels):
        y, first = 8 + _ROW * place, start
        for kind, name, seconds in (
            _stages(level) if level.step_seconds else [("stage-rest", "all", level.seconds or 0.0)]
        ):
            tooltip = element("title", f"level {level.number}, {name}: {duration(seconds)}")
            width = max(x(start + seconds) - x(start) - 0.6, 0.6)
            rows.append(element("rect", tooltip, x=x(start), y=y, width=width, height=16, class_=kind))
            start += seconds
        rows.append(text(56, y + 13, f"Level {level.number}", "label", "end"))
        rows.append(text(x(start) + 6, y + 13, duration(start - first), "quiet"))
        rows.append(rule(x(first), y - 5, x(first), y + 18))
    bottom = 8 + _ROW * len(facts.levels)
    spans = ", ".join(f"level {level.number} {duration(level.seconds or 0.0)}" for level in facts.levels)
    return chart(bottom + 40, x_axis(x, bottom, "seconds", n=8), rows, label=f"Time of each level: {spans}")


def step_table(facts: Facts) -> Markup:
    """Tabulate iterations, inertia and time of each level."""
    rows = []
    for level in facts.levels:
        last = next((float(run[-1]) for run in reversed(level.runs) if len(run)), None)
        spent = (
            [duration(level.step_seconds[0]), duration(sum(level.step_seconds[1:]))] if level.step_seconds else ["", ""]
        )
        whole = "" if level.seconds is None else duration(level.seconds)
        n_iter = [len(run) for run in level.runs] or [0]
        row: list[Content] = [level.number, count(n_iter[0]), count(len(n_iter) - 1), count(sum(n_iter[1:]))]
        row += ["" if last is None else value(last), *spent, whole]
        rows.append(row)
    head = ["Level", "Iterations", "Resamplings", "Resampled iterations", "Final inertia"]
    head += ["First k-means", "Resampled k-means", "Total time"]
    return table(head, rows, caption="Iterations, inertia and time by level")


def settings_table(facts: Facts) -> Markup:
    """Tabulate the settings of each level."""
    levels = [level.model_dump() for level in facts.config.levels]
    rows = [[element("code", name), *(str(level[name]) for level in levels)] for name in levels[0]]
    return table(["Setting", *(f"Level {i}" for i in range(1, len(levels) + 1))], rows, caption="Settings by level")
