"""Figures of this pipeline that documents quote: a table per study, and the gain of each draw over a uniform one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.longtail.charts import gains
from pipelines.measurements import Facts, mean_and_error
from pipelines.training.draws import ALL, DRAWS

RAW = "raw"
#: Draws that documents compare with the uniform one.
QUOTED = ("tree", "k-center", "inverse density", "balanced by labels")
#: Measures: study, key, title, and whether it is an accuracy, for which more is better.
JUDGED = (
    ("images", "linear", "images, linear probe", True),
    ("labeled", "accuracy", "labeled images", True),
    ("labeled", "rarest", "their rarest third", True),
    ("text", "balanced", "text, perplexity", False),
    ("text", "fortunes", "a domain left out", False),
    ("satellite", "lit_error", "lit land, error", False),
)
#: Significant digits of recorded measures.
DIGITS = 4


def folded(records: Sequence[Facts]) -> dict[str, dict[str, list[float]]]:
    """Group the records of a study by draw, with a list over seeds for each measure.

    >>> folded([{"draw": "raw", "seed": 1, "linear": 0.5}, {"draw": "raw", "seed": 0, "linear": 0.41239}])
    {'raw': {'linear': [0.4124, 0.5]}}
    """
    found: dict[str, dict[str, list[float]]] = {draw: {} for draw in (*DRAWS, ALL)}
    for record in sorted(records, key=lambda r: r["seed"]):
        for name, value in record.items():
            if isinstance(value, float):
                found[record["draw"]].setdefault(name, []).append(float(f"{value:.{DIGITS}g}"))
    return {draw: measures for draw, measures in found.items() if measures}


def table(found: Mapping[str, Mapping[str, list[float]]], columns: Sequence[str]) -> str:
    """Tabulate mean and standard error over seeds, with a row per draw."""
    lines = ["| | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for draw, measures in found.items():
        n_seeds = len(measures[columns[0]])
        moments = [mean_and_error(measures[column]) for column in columns]
        digits = [3 if mean < 10 else 0 for mean, _ in moments]
        cells = [
            f"{mean:.{n}f}" if n_seeds == 1 else f"{mean:.{n}f} ± {error:.{n}f}"
            for n, (mean, error) in zip(digits, moments, strict=True)
        ]
        lines.append("| " + " | ".join([draw, str(n_seeds), *cells]) + " |")
    return "\n".join(lines) + "\n"


def gained(found: Mapping[str, Mapping[str, list[float]]], measure: str, *, more: bool) -> dict[str, list[float]]:
    """Return the gain of each draw over the uniform one, seed by seed: points of accuracy, or percent of the loss.

    >>> gained({"raw": {"error": [2.0, 4.0]}, "tree": {"error": [1.0]}}, "error", more=False)
    {'tree': [50.0]}
    """
    return {
        draw: [
            100 * (value - raw) if more else 100 * (1 - value / raw)
            for value, raw in zip(measures[measure], found[RAW][measure], strict=False)
        ]
        for draw, measures in found.items()
        if draw != RAW
    }


def draw(runs: Mapping[str, Any], path: Path) -> None:
    """Plot the gain of each draw over the uniform one, with a panel per measure."""
    panels = {
        name: gained(runs[study]["found"], measure, more=more) for study, measure, name, more in JUDGED if study in runs
    }
    rows = {
        name: {panel: mean_and_error(of_draws[name]) for panel, of_draws in panels.items() if name in of_draws}
        for name in (*DRAWS, ALL)
        if name != RAW
    }
    title = "Better than on a uniform draw, in points or percent"
    gains(path, title, list(panels), rows)


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    texts = {}
    for study, run in runs.items():
        texts[f"{study}-table"] = table(run["found"], run["settings"]["columns"]).rstrip()
        texts[f"{study}-date"] = run["date"]
        texts[f"{study}-seeds"] = str(len(run["found"][RAW][run["settings"]["columns"][0]]))
    for study, measure, _, more in JUDGED:
        if study in runs:
            better = gained(runs[study]["found"], measure, more=more)
            for name in filter(better.__contains__, QUOTED):
                mean, error = mean_and_error(better[name])
                texts[f"{study}-{measure}-{name.replace(' ', '-')}"] = f"{mean:+.1f} ± {error:.1f}"
    return texts
