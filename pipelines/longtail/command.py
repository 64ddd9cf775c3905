"""Measure whether curation helps: tables and plots of draws from trees of labeled pools with a long tail."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines import records
from pipelines.longtail import comparison, studies, variants
from pipelines.longtail.charts import Line, class_sizes, curves, dots
from pipelines.longtail.methods import METHODS
from pipelines.longtail.more_pools import ALL_POOLS, missing
from pipelines.longtail.pools import POOLS
from pipelines.longtail.quotes import folded
from pipelines.longtail.studies import CLUSTERS, MEMBERS, RESAMPLES, Row, Study
from pipelines.longtail.trials import Trials

MEASURES = {
    "entropy": "entropy of the classes drawn, of 1",
    "linear": "accuracy of a linear probe",
    "knn": "accuracy of nearest neighbors",
}
COLUMNS = ("entropy", "kl_to_uniform", "gini", "n_missed", "linear", "knn")
#: Studies that compare methods of drawing.
BESIDE = {"methods": METHODS, "variants": variants.VARIANTS}
#: Plots used by the documentation.
DOCUMENTED = ("levels.png", "class_sizes.png", "resampling.png", "seeding.png", "search.png", "methods.png")
STUDIES = ("levels", "seeding", "resampling", "clusters", "search", "advice", "methods", "variants")
#: Number of settings of the search that are plotted.
BEST = 20


def main() -> None:
    """Run missing measurements, print the tables, and draw the plots."""
    parser = argparse.ArgumentParser("python -m pipelines.longtail", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("longtail"), help="folder for tables, plots and measurements")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--studies", default="levels", help=f"all, or any of {', '.join(STUDIES)}")
    parser.add_argument("--pools", help="for the studies seeding, advice and methods (methods also accepts .npz files)")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="also write the documentation's plots to this folder")
    records.add_option(parser)
    options = parser.parse_args()
    names = STUDIES if options.studies == "all" else tuple(options.studies.split(","))
    known = ALL_POOLS if {"methods", "variants"} & set(names) else POOLS
    pools = tuple(options.pools.split(",") if options.pools else known)
    wrong = [
        *(f"--studies={name} should be one of {', '.join(STUDIES)}" for name in names if name not in STUDIES),
        *filter(None, dict.fromkeys(missing(name, known) for name in pools)),
    ]
    if wrong:
        parser.error("; ".join(wrong))
    options.out.mkdir(parents=True, exist_ok=True)
    trials = Trials(options.out / "trials.jsonl")
    for name in names:
        if name in BESIDE:
            compare(name, options, pools)
            continue
        study = make(name, options.seeds, pools)
        trials.run(study.trials())
        if name == "search":
            study = best_first(study, trials)
        text = table(study, trials)
        print(f"\n{study.question}\n\n{text}", flush=True)
        (options.out / f"{name}.md").write_text(text)
        (options.out / f"{name}.json").write_text(json.dumps(numbers(study, trials), indent=1))
        DRAW[name](study, trials, options.out)
    if options.docs:
        for picture in DOCUMENTED:
            if (options.out / picture).exists():
                shutil.copyfile(options.out / picture, options.docs / f"longtail_{picture}")


def compare(name: str, options: argparse.Namespace, pools: Sequence[str]) -> None:
    """Compare methods of drawing on pools; `--record` keeps all results in the folder for these pools."""
    found = comparison.run(options.out, pools, options.seeds, BESIDE[name], f"{name}.jsonl")
    of_pools = [record for pool in pools for record in found.table() if record["pool"] == pool]
    if name == "methods":
        print(comparison.report(of_pools, options.out))
    else:
        print(variants.table(of_pools, pools))
    settings = {"pools": list(pools)}  # the number of seeds follows from the values of each measure
    records.save("longtail", name, folded(of_pools), out=options.out, settings=settings, record=options.record)


def make(name: str, seeds: int, pools: Sequence[str]) -> Study:
    """Create a study by name."""
    if name in ("seeding", "advice"):
        return {"seeding": studies.seeding, "advice": studies.advice}[name](seeds, pools)
    plain = {
        "levels": studies.levels, "resampling": studies.resampling, "clusters": studies.clusters,
        "search": studies.search,
    }  # fmt: skip
    return plain[name](seeds)


def best_first(study: Study, trials: Trials) -> Study:
    """Sort the rows of a study by decreasing mean entropy."""
    entropy = [-trials.values(row.trials, row.draw, "entropy").mean() for row in study.rows]
    return replace(study, rows=tuple(study.rows[i] for i in np.argsort(entropy, kind="stable")))


def numbers(study: Study, trials: Trials) -> dict[str, dict[str, list[float]]]:
    """Return the values of all seeds, by row and measure."""
    return {row.name: {c: trials.values(row.trials, row.draw, c).tolist() for c in COLUMNS} for row in study.rows}


def table(study: Study, trials: Trials) -> str:
    """Format the mean and standard deviation of every row as Markdown."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in study.rows:
        values = [trials.values(row.trials, row.draw, column) for column in COLUMNS]
        cells = [
            f"{v.mean():.3f} ± {v.std():.3f}" if c != "n_missed" else f"{v.mean():.1f}"
            for c, v in zip(COLUMNS, values, strict=True)
        ]
        name = row.name.replace("|", r"\|")  # k-means||
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _dots(title: str, measures: Sequence[str]) -> Callable[[Study, Trials, Path], None]:
    def draw(study: Study, trials: Trials, out: Path) -> None:
        lines = []
        for row in study.rows:
            group, _, name = row.name.rpartition(": ")
            values = [trials.values(row.trials, row.draw, m) for m in measures]
            lines.append(Line(name, values, row.draw in ("random", "ideal"), group))
        dots(out / f"{study.name}.png", title, lines, [MEASURES[m] for m in measures])

    return draw


def _draw_search(study: Study, trials: Trials, out: Path) -> None:
    title = f"The best {BEST} of {len(study.rows)} settings: samples to a cluster, resamplings, members"
    _dots(title, ("entropy", "linear"))(replace(study, rows=study.rows[:BEST]), trials, out)


def _draw_levels(study: Study, trials: Trials, out: Path) -> None:
    _dots("Nouns with a long tail: draws of 1000 from 15,186", list(MEASURES))(study, trials, out)
    draw_class_sizes(study.rows, trials, out / "class_sizes.png")


def draw_class_sizes(rows: Sequence[Row], trials: Trials, path: Path) -> None:
    """Draw Fig. 4 for the trees of the rows with one to four levels."""
    pool = POOLS["nouns"](0)
    sizes = np.bincount(pool.labels, minlength=pool.n_classes)
    shown = []
    for row in rows:
        if row.name not in ("1 level", "2 levels", "3 levels", "4 levels"):
            continue
        top = [trials.results[trial.key]["top"] for trial in row.trials]
        counts = np.array([level["n_clusters"] for level in top], dtype=float)
        samples = counts * np.array([[s or 0.0 for s in level["mean_size"]] for level in top])
        n, total = counts.sum(axis=0), samples.sum(axis=0)
        mean = np.divide(total, n, out=np.zeros_like(total), where=n > 0)
        shown.append((row.name, n / n.sum(), mean * n.sum() / total.sum()))
    class_sizes(path, sizes, shown)


def _draw_curves(study: Study, trials: Trials, out: Path) -> None:
    def values(rows: Sequence[Row], measure: str) -> np.ndarray:
        return np.array([trials.values(row.trials, row.draw, measure) for row in rows])

    groups: list[tuple[str, tuple, Sequence[Row]]]
    if study.name == "resampling":
        n = len(RESAMPLES)
        groups = [
            ("resamplings m of every level", RESAMPLES, study.rows[:n]),
            ("members r of a level-1 cluster", MEMBERS, study.rows[n:]),
        ]
        title = "Resampling (1000, 300, 100 clusters)"
    else:
        groups = [("numbers of clusters", tuple(name.replace("-", "\n") for name in CLUSTERS), study.rows)]
        title = "Numbers of clusters"
    panels = []
    for label, x, rows in groups:
        panels.append((MEASURES["entropy"], label, [("", x, values(rows, "entropy"))]))
        panels.append(
            (
                "accuracy",
                label,
                [("linear probe", x, values(rows, "linear")), ("nearest neighbors", x, values(rows, "knn"))],
            )
        )
    curves(out / f"{study.name}.png", title, panels)


DRAW: dict[str, Callable[[Study, Trials, Path], None]] = {
    "levels": _draw_levels,
    "seeding": _dots("Where k-means starts", ("entropy", "linear")),
    "resampling": _draw_curves,
    "clusters": _draw_curves,
    "search": _draw_search,
    "advice": _dots("Five, ten, thirty samples to a cluster, resampled once", ("entropy", "linear")),
}
