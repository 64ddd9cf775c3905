"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.chaos.command import Build, count
from pipelines.records import table


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    run = runs["chaos"]
    header = ("kind of fault", "faults", "builds", "resumes", "equal", "processes left", "files left")
    lines = count([Build(**build) for build in run["found"]["builds"]])
    return {
        "run": f"On {run['date']}, `{run['command']}` on {run['cores']} cores",
        "kinds": table(header, [map(str, line) for line in lines]),
    }
