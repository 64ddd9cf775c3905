"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    run = runs["all"]
    results = run["found"]["results"]
    n, n_missed = sum(results.values()), len(run["found"]["survivors"])
    noticed = f"all of {n} mutants were noticed" if not n_missed else f"{n - n_missed} of {n} mutants were noticed"
    hung = (
        f", {results['hung']} of them because the tests did not end within two minutes" if results.get("hung") else ""
    )
    return {"run": f"On {run['date']} {noticed}{hung}"}
