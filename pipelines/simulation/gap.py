"""Which settings bring the top centroids of Figure 3 closer to uniform: one setting is varied at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hkm_dask.events import emit
from pipelines.simulation.figure3 import PAPER, THREE, TWO, hierarchy
from pipelines.simulation.measures import divergence, format_spread, spread
from pipelines.simulation.mixtures import plane_mixture

# Clusters per level, and parameters of `HierarchicalKMeans`.
Case = tuple[tuple[int, ...], dict[str, Any]]

INITS = ("k-means++", "coreset", "k-means||", "random")
MANY_AT_TOP = (10, 10, 100)
BASE: dict[str, Any] = {**PAPER, "n_resamples": 10, "resample_size": 2}


def _cases() -> dict[str, dict[str, Case]]:
    """Return groups of cases; all other settings are as in the paper, with m = 10 and r = 2."""
    seeding: dict[str, Case] = {
        f"{init}: {name}": (levels, {**BASE, "init": init, "n_resamples": m})
        for init in INITS
        for name, levels, m in (
            ("1 level", (300,), 0), ("2 levels", TWO, 0), ("3 levels", THREE, 0), ("m = 10", THREE, 10),
            ("m = 10, 10, 100", THREE, MANY_AT_TOP),
        )
    }  # fmt: skip
    where = (
        (0, 0, 0),
        (10, 0, 0),
        (0, 0, 10),
        (0, 10, 10),
        (10, 10, 10),
        (0, 0, 30),
        (0, 0, 100),
        (0, 10, 100),
        MANY_AT_TOP,
    )
    fewer = (
        TWO, (1000, 300), (3000, 300), THREE, (4500, 1000, 300), (2000, 800, 300), (1500, 700, 300), (3000, 600, 300),
        (1000, 550, 300), (2000, 1100, 600, 300),
    )  # fmt: skip
    clusters: dict[str, Case] = {
        f"{', '.join(map(str, levels))}: {name}": (levels, {**BASE, "n_resamples": (0,) * (len(levels) - 1) + (m,)})
        for levels in fewer
        for name, m in (("m = 0", 0), ("m = 10 at the top", 10), ("m = 100 at the top", 100))
    }
    members: dict[str, Case] = {
        f"r = {', '.join(map(str, r))}: {name}": (THREE, {**BASE, "resample_size": r, "n_resamples": m})
        for r in ((2, 2, 2), (1, 2, 2), (3, 2, 2), (2, 3, 2), (2, 2, 1), (2, 2, 3), (3, 3, 3), (4, 4, 4))
        for name, m in (("m = 10", 10), ("m = 10, 10, 100", MANY_AT_TOP))
    }
    choice: dict[str, Case] = {
        f"{strategy}, {name}": (THREE, {**BASE, "resample_strategy": strategy, "n_resamples": m})
        for strategy in ("closest", "random")
        for name, m in (("m = 10", 10), ("m = 10, 10, 100", MANY_AT_TOP))
    }
    iterations: dict[str, Case] = {
        f"tol = {tol:g}, {init}: {name}": (levels, {**BASE, "tol": tol, "init": init, "n_resamples": m})
        for tol in (0.0, 1e-4)
        for init in INITS[:3]
        for name, levels, m in (("2 levels", TWO, 0), ("3 levels", THREE, 0), ("m = 0, 0, 100", THREE, (0, 0, 100)))
    }
    return {
        "seeding": seeding,
        "where to resample": {f"m = {', '.join(map(str, m))}": (THREE, {**BASE, "n_resamples": m}) for m in where},
        "clusters of each level": clusters,
        "members of each cluster": members,
        "which members": choice,
        "when to stop": iterations,
    }


CASES = _cases()


def run(out: Path, seeds: int, *, cases: Mapping[str, Mapping[str, Case]] = CASES) -> tuple[dict[str, Any], list[Path]]:
    """Measure every case for each seed.

    Parameters
    ----------
    out : Path
        Not used, as there is no plot.
    seeds : int
        Number of seeds, of data and initialization.
    cases : mapping, optional

    Returns
    -------
    numbers : dict
        By group, then case: the divergence from uniform.
    pictures : list of Path
        None.
    """
    points = [plane_mixture(seed) for seed in range(seeds)]
    total, done = sum(map(len, cases.values())), 0
    numbers: dict[str, Any] = {}
    known: dict[str, list[float]] = {}  # a case may be in several groups
    for group, members in cases.items():
        numbers[group] = {}
        for name, (levels, settings) in members.items():
            key = repr((levels, sorted(settings.items())))
            if key not in known:
                find = hierarchy(levels, **settings)
                known[key] = [divergence(find(points[seed], seed)) for seed in range(seeds)]
            numbers[group][name] = spread(known[key])
            done += 1
            emit("progress", stage="gap", done=done, total=total)
    return numbers, []


def summarize(numbers: dict[str, Any]) -> str:
    """Format the numbers as text.

    Parameters
    ----------
    numbers : dict
        From `run`.

    Returns
    -------
    str
    """
    width = 4 + max(len(name) for group in numbers.values() for name in group)
    lines: list[str] = []
    for group, members in numbers.items():
        lines += ["", f"{group}: KL to uniform, mean ± sd, standard error"]
        for name, one in members.items():
            error = one["sd"] / np.sqrt(len(one["values"]))
            lines.append(f"  {name:{width}}{format_spread(one)}   {error:.4f}")
    return "\n".join(lines)
