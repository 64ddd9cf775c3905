"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    run = runs["fuzz"]
    parsers = run["found"]["parsers"].values()
    worked, refused, defects = (sum(counts[kind] for counts in parsers) for kind in ("worked", "refused", "defect"))
    counts = (
        f"{worked:,} inputs were accepted, {refused:,} refused in one line, and {defects or 'none'} did anything else"
    )
    return {"run": f"On {run['date']}, `{run['command']}`", "counts": counts}
