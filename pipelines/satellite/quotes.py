"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.records import table


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    cells, hog = (runs[model]["found"]["shares"] for model in ("cells", "hog"))
    columns = {"pool": cells["pool"], "random draw": cells["random"], "curated draw": cells["curated"]}
    columns["curated draw, by `hog`"] = hog["curated"]
    rows = [[kind, *(f"{100 * shares[kind]:.1f} %" for shares in columns.values())] for kind in cells["pool"]]
    return {
        "n-patches": f"{runs['cells']['found']['n_patches']:,}",
        "plain": f"{100 * (cells['pool']['open sea'] + cells['pool']['ice and snow']):.0f} %",
        "shares": table(["share of", *columns], rows),
    }
