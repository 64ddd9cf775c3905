"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.records import table


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    run = runs["draws"]
    found, settings = run["found"], run["settings"]
    ways = {
        "uniform": "random",
        "advised": "from a tree with the recommended settings",
        "deduplicated": f"the same after `hkm dedup` ({found['n_removed']:,} rows fewer)",
    }
    rows = [[text, f"{np.mean(found['rows_with_another'][name]):.0f}"] for name, text in ways.items()]
    header = (
        f"draws of {settings['size']:,} from {found['n_rows']:,} nouns, means of {settings['seeds']}",
        f"rows with another at a cosine of {settings['threshold']:g} or more",
    )
    quotes = {"draws": table(header, rows), "draws-command": f"`{run['command']}`, {run['date']}"}
    return quotes | _of_plans(runs.get("plans")) | _of_duplicates(runs.get("duplicates"))


def _of_duplicates(run: Mapping[str, Any] | None) -> dict[str, str]:
    """Compare finding all pairs with finding pairs within the clusters of a k-means."""
    if run is None:
        return {
            "duplicates": "no run of it is recorded.",
            "duplicates-command": "`python -m pipelines.benchmark.duplicates`",
        }
    found = run["found"]
    n_rows, n_features = found["rows"]
    ways = {"hkm dedup": "`hkm dedup`, all pairs", "within clusters": "pairs within clusters of one k-means"}
    rows = [
        [
            text,
            f"{found[way]['recall']:.3f}",
            f"{found[way]['cpu_seconds']:.0f} s",
            f"{found[way].get('peak_mib', '–')}",
        ]
        for way, text in ways.items()
    ]
    header = (
        f"{n_rows:,} rows of {n_features} values, cosine {found['threshold']:g}",
        f"found of {found['n_true_pairs']:,} pairs of {found['sample']:,} rows",
        "processor time",
        f"peak memory, MiB, within {found['memory_limit']}",
    )
    return {"duplicates": table(header, rows), "duplicates-command": f"`{run['command']}`, {run['date']}"}


def _of_plans(run: Mapping[str, Any] | None) -> dict[str, str]:
    """Compare whole runs with their plans."""
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
