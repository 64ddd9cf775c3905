"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipelines.records import table
from pipelines.simulation.measures import format_spread

#: Rows of the table of Figure 3: names in the table, and in the results.
_METHODS = {
    "the 9000 points": "data",
    "DBSCAN": "DBSCAN",
    "agglomerative, Ward's linkage": "agglomerative, Ward",
    "agglomerative, average linkage": "agglomerative, average",
    "1 level: 300": "1 level",
    "2 levels: 1500, 300": "2 levels",
    "3 levels: 3000, 1000, 300": "3 levels",
    "the same, m = 10, r = 2": "3 levels, m = 10",
    "the same, m = 10, 10, 100": "3 levels, m = 10, 10, 100",
    "the same, m = 0, 0, 100": "3 levels, m = 0, 0, 100",
    "300 uniform points, 200 draws": "300 uniform points",
}
_DRAWS = {
    "random": "random",
    "1 level": "1 level: 300",
    "2 levels": "2 levels: 1000, 300",
    "2 levels, resampled": "the same, m = 10, r = 15, 2",
}
#: Two columns of cases of `gap`, with headings: texts, and the group and the names of the cases.
_LEFT: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("**resampling at the top level**", "", ()),
    *((f"m = 0, 0, {m}", "where to resample", (f"m = 0, 0, {m}",)) for m in (0, 10, 30, 100)),
    ("**resampling below**", "", ()),
    *((f"m = {m}", "where to resample", (f"m = {m}",)) for m in ("10, 0, 0", "10, 10, 10", "10, 10, 100")),
    ("**members taken, m = 10**", "", ()),
    ("r = 2, 2, 2", "members of each cluster", ("r = 2, 2, 2: m = 10",)),
    ("r = 2, 2, 1: every step finds the same", "members of each cluster", ("r = 2, 2, 1: m = 10",)),
    ("r = 2, 2, 3", "members of each cluster", ("r = 2, 2, 3: m = 10",)),
    ("r = 4, 4, 4", "members of each cluster", ("r = 4, 4, 4: m = 10",)),
)
_SEEDED = ("2 levels", "3 levels", "m = 10", "m = 10, 10, 100")
_RIGHT: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("**fewer clusters below, m = 0**", "", ()),
    *(
        (levels, "clusters of each level", (f"{levels}: m = 0",))
        for levels in ("3000, 1000, 300", "2000, 800, 300", "1500, 700, 300", "1000, 550, 300")
    ),
    ("**… and m = 10 at the top only**", "", ()),
    *(
        (levels, "clusters of each level", (f"{levels}: m = 10 at the top",))
        for levels in ("2000, 800, 300", "1500, 700, 300", "2000, 1100, 600, 300")
    ),
    (f"**seeding: {', '.join(_SEEDED)}**", "", ()),
    *(
        (text, "seeding", tuple(f"{init}: {name}" for name in _SEEDED))
        for text, init in (
            ("k-means++", "k-means++"), ("coreset (our default)", "coreset"), ("k-means\\|\\|", "k-means||"),
            ("random", "random"),
        )
    ),
)  # fmt: skip


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    found = {name: run["found"] for name, run in runs.items()}
    return {
        **_toy(found["toy"]),
        "figure2": _figure2(found["figure2"]),
        "entropy-of-p": f"{found['figure2']['entropy_of_laws']['p^(1/1)']:.3f}",
        "figure3": _figure3(found["figure3"]),
        "uniform": f"{found['figure3']['300 uniform points']['kl']['mean']:.3f}",
        **_gap(found["gap"], runs["gap"]["settings"]["seeds"]),
        **_beside(found["beside"], runs["beside"]["settings"]["seeds"]),
        "rings": _rings(found["rings"]),
        **{f"by-hand-{name}": ", ".join(f"{kl:.3f}" for kl in values) for name, values in found["by hand"].items()},
    }


def _toy(found: Mapping[str, Any]) -> dict[str, str]:
    ways, ends = found["ways"], found["ends"]
    optimum = f"{ways['k-means, optimum']['distortion']:.2f}"
    usual, n_usual = max(ends.items(), key=lambda end: end[1])
    return {
        "toy-wanted": f"{ways['one for each heap']['distortion']:.2f}",
        "toy-optimum": optimum,
        "toy-ends": f"{ends.get(optimum, 0)} of {sum(ends.values())} cases, and in {n_usual}",
        "toy-usual": usual,
    }


def _figure2(found: Mapping[str, Any]) -> str:
    rows = []
    for s, one in found["starts"]["k-means++"].items():
        law = found["entropy_of_laws"][f"p^(1/{1 + int(s)})"]
        rows.append([f"s = {s}", *_spreads(one), f"{law:.4f}"])
    rows.append(["s = 2, from numbers drawn at random", *_spreads(found["starts"]["random"]["2"]), ""])
    header = ["5000 centroids of 243,000 numbers", "total variation to p^(1/3)", "to p^(1/(1+s))"]
    return table([*header, "entropy of the histogram", "of the law"], rows)


def _spreads(one: Mapping[str, Any]) -> Iterable[str]:
    return (format_spread(one[name]) for name in ("tv_to_cube_root", "tv_to_own_law", "entropy"))


def _figure3(found: Mapping[str, Any]) -> str:
    def cells(name: str) -> list[str]:
        one = found[name]
        digits = 4 if one["kl"]["mean"] < 0.06 else 3
        published, law = one["published"], one["law"]
        return [
            format_spread(one["kl"], digits),
            "" if published is None else f"{published:.3f}" if published > 0.042 else f"{published:.4f}",
            "" if law is None else f"{law:.3f}",
        ]

    rows = [[text, *cells(name)] for text, name in _METHODS.items()]
    return table(["KL to uniform", "here", "published, one run", "law"], rows)


def _gap(found: Mapping[str, Any], n_seeds: int) -> dict[str, str]:
    def cells(text: str, group: str, names: tuple[str, ...]) -> list[str]:
        digits = 3 if len(names) > 1 else 4
        return [text, ", ".join(f"{found[group][name]['mean']:.{digits}f}" for name in names)]

    def mean(group: str, case: str, digits: int = 3) -> str:
        return f"{found[group][case]['mean']:.{digits}f}"

    rows = [cells(*left) + cells(*right) for left, right in zip(_LEFT, _RIGHT, strict=True)]
    best, levels = found["where to resample"]["m = 0, 0, 100"], "clusters of each level"
    return {
        "gap": table(["", "KL", "", "KL"], rows),
        "gap-error": f"{best['sd'] / np.sqrt(n_seeds):.4f}",
        "gap-steps": ", ".join(mean("where to resample", f"m = 0, 0, {m}") for m in (0, 10, 30, 100)),
        "gap-550": mean(levels, "1000, 550, 300: m = 0"),
        "gap-two": ", ".join(mean(levels, f"{k}, 300: m = 0") for k in (1000, 1500, 3000)),
        "gap-random": mean("which members", "random, m = 10", 4),
        "gap-random-more": mean("which members", "random, m = 10, 10, 100", 4),
    }


def _beside(found: Mapping[str, Any], n_seeds: int) -> dict[str, str]:
    rows = []
    for levels, one in found.items():
        difference = one["difference"]
        error = difference["sd"] / np.sqrt(n_seeds)
        both = (format_spread(one[who], 3) for who in ("ours", "scikit-learn"))
        rows.append([levels, *both, f"{difference['mean']:+.4f}, {error:.4f}"])
    header = ["", "ours", "scikit-learn's", "ours less scikit-learn's, and its standard error"]
    two = found["1500, 300"]
    text = table(header, rows)
    return {"beside": text, "beside-two": f"{(two['ours']['mean'] + two['scikit-learn']['mean']) / 2:.3f}"}


def _rings(found: Mapping[str, Any]) -> str:
    rows = [
        [_DRAWS[name], *(f"{n:.0f}" for n in one["per_ring"]), f"{one['entropy']['mean']:.3f}"]
        for name, one in found["draws"].items()
    ]
    return table(["points per ring, from within", *(f"{n:,}" for n in found["pool"]), "entropy, of 1"], rows)
