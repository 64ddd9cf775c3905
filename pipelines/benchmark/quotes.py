"""What documents quote of this pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.records import table


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Write the figures of recorded runs as texts."""
    run = runs["draws"]
    found, settings = run["found"], run["settings"]
    ways = {
        "uniform": "at random",
        "advised": "from the advised tree",
        "deduplicated": f"from that of what `hkm dedup` keeps ({found['n_removed']:,} rows fewer)",
    }
    rows = [[text, f"{np.mean(found['rows_with_another'][name]):.0f}"] for name, text in ways.items()]
    header = (
        f"draws of {settings['size']:,} from {found['n_rows']:,} nouns, means of {settings['seeds']}",
        f"rows with another from a cosine of {settings['threshold']:g} on",
    )
    quotes = {"draws": table(header, rows), "draws-command": f"`{run['command']}`, {run['date']}"}
    return quotes | _of_plans(runs.get("plans"))


def _of_plans(run: Mapping[str, Any] | None) -> dict[str, str]:
    """Whole runs beside their plans."""
    rows: list[list[str]] = []
    if run is None:
        return {"plans": "no run of it is recorded.", "plans-command": "`python -m pipelines.benchmark.plans shapes`"}
    for name, one in run["found"].items():
        seconds, (low, high) = one["seconds"], one["range"]
        ratios = [f"{one['median']:.2f}", *(f"{one[kind]['ratio']:.2f}" for kind in ("peak", "read", "written"))]
        told = [f"{seconds['planned']:.0f} s ({low:.0f}-{high:.0f})", f"{seconds['came']:.0f} s"]
        rows.append([f"{name}: `{run['settings']['words'][name]}`", *told, *ratios])
    header = ("rows and settings", "planned", "took", "ratio", "peak memory", "read", "written")
    return {"plans": table(header, rows), "plans-command": f"`{run['command']}`, {run['date']}, {run['cores']} cores"}
