"""Comparison of all methods on all pools: each draw is evaluated once per seed; tables and a plot of the results."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from hkm_dask.metrics import class_balance
from pipelines.longtail.charts import gains
from pipelines.longtail.methods import METHODS, Method, Rows, radii
from pipelines.longtail.more_pools import pool_of
from pipelines.longtail.pools import Pool
from pipelines.longtail.probes import N_NEIGHBORS, linear_probe, nearest_probe
from pipelines.measurements import Facts, Measurements, mean_and_error

#: Quantile of the distance to the 5th neighbor from which rows of the pool are outliers.
OUTLIERS = 0.99
UNIFORM, BALANCED = "uniform", "balanced by labels"
#: Columns of the table over all pools: gains over the uniform draw, and plain numbers.
GAINED = {"linear": "linear probe", "knn": "5-NN probe", "rarest": "rarest third", "entropy": "entropy"}
PLAIN = {"outliers": "outliers", "mean_distance": "mean distance", "max_distance": "largest distance"}


def worth(pool: Pool, rows: Rows) -> Facts:
    """Evaluate a draw: balance, probes, and its distribution in the pool."""
    x, labels = pool.embeddings[rows], pool.labels[rows]
    if len(np.unique(labels)) < 2:
        right = pool.test_labels == labels[0]
        linear, knn = right, right
    else:
        linear = linear_probe().fit(x, labels).predict(pool.test_embeddings) == pool.test_labels
        knn = nearest_probe().fit(x, labels).predict(pool.test_embeddings) == pool.test_labels
    rare = pool.test_labels >= pool.n_classes - pool.n_classes // 3
    fifth = radii(pool)[:, N_NEIGHBORS - 1]
    distances = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(x).kneighbors(pool.embeddings)[0]
    return {
        "entropy": class_balance(labels, pool.n_classes).entropy,
        "linear": float(linear.mean()),
        "knn": float(knn.mean()),
        "rarest": float(linear[rare].mean()),
        "outliers": float((fifth[rows] >= np.quantile(fifth, OUTLIERS)).mean()),
        "mean_distance": float(distances.mean()),
        "max_distance": float(distances.max()),
    }


def run(
    out: Path, pools: Sequence[str], seeds: int, methods: Mapping[str, Method] = METHODS, file: str = "methods.jsonl"
) -> Measurements:
    """Measure what `out` does not have yet, seed by seed, so that results are balanced at any time."""
    found = Measurements(out / file)
    for seed in range(seeds):
        for name in pools:
            keys = [{"method": method, "pool": name, "seed": seed} for method in methods]
            todo = [key for key in keys if key not in found]
            if not todo:
                continue
            pool = pool_of(name)(seed)
            for key in todo:
                method = str(key["method"])
                result = found.get(key, functools.partial(_try, pool, methods[method], seed))
                print(f"seed {seed} {name}: {method} {_said(result)}", flush=True)
    return found


def _try(pool: Pool, method: Method, seed: int) -> Facts:
    radii(pool)  # shared by several methods, so not timed
    begin = time.process_time()
    try:
        rows = method(pool, seed)
    except MemoryError as error:
        return {"refused": str(error)}
    seconds = time.process_time() - begin
    return {**worth(pool, rows), "cpu_seconds": seconds}


def _said(result: Facts) -> str:
    return result.get("refused") or f"linear {result['linear']:.3f}, entropy {result['entropy']:.3f}"


def values(records: Sequence[Facts], name: str) -> dict[tuple[str, str], dict[int, float]]:
    """Return one measure by (pool, method) and seed."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for record in records:
        if name in record:
            found.setdefault((record["pool"], record["method"]), {})[record["seed"]] = record[name]
    return found


def over(records: Sequence[Facts], name: str, base: str = UNIFORM) -> dict[tuple[str, str], list[float]]:
    """Return the differences to a base method on the same pool with the same seed."""
    found = values(records, name)
    return {
        (pool, method): [v - found[pool, base][seed] for seed, v in seeds.items() if seed in found[pool, base]]
        for (pool, method), seeds in found.items()
        if (pool, base) in found
    }


def pool_table(records: Sequence[Facts], name: str = "linear") -> str:
    """Tabulate a measure by pool and method: mean ± standard error over seeds; the best without labels in bold."""
    found = values(records, name)
    pools = list(dict.fromkeys(pool for pool, _ in found))
    methods = [m for m in METHODS if any((pool, m) in found for pool in pools)]
    lines = ["| | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for pool in pools:
        means = {m: mean_and_error(list(found[pool, m].values())) for m in methods if (pool, m) in found}
        best = max((m for m in means if m != BALANCED), key=lambda m: means[m][0])
        cells = [_cell(*means[m], bold=m == best) if m in means else "–" for m in methods]
        lines.append(f"| {pool} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(mean: float, error: float, *, bold: bool = False) -> str:
    text = f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"
    return f"**{text}**" if bold else text


def method_table(records: Sequence[Facts]) -> str:
    """Tabulate the mean gain over the uniform draw and its standard error, over the pools measured for each method.

    Also counts the pools on which the linear probe is better or worse than that of the uniform draw by two standard
    errors.
    """
    gained = {name: over(records, name) for name in GAINED}
    plain = {name: values(records, name) for name in PLAIN}
    head = ["", "pools", *GAINED.values(), "better, worse", *PLAIN.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in METHODS:
        pools = [pool for pool, m in gained["linear"] if m == method]
        if not pools:
            continue
        cells = [method, str(len(pools))]
        for name in GAINED:
            mean, error = mean_and_error([_mean(gained[name][pool, method]) for pool in pools])
            cells.append(f"{mean:+.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}"))
        signs = [sign(gained["linear"][pool, method]) for pool in pools]
        cells.append(f"{signs.count(1)}, {signs.count(-1)}")
        for name in PLAIN:
            of_pools = [_mean(plain[name][pool, method].values()) / _scale(plain, name, pool) for pool in pools]
            cells.append(f"{100 * _mean(of_pools):.1f} %" if name == "outliers" else f"{_mean(of_pools):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _scale(plain: Mapping[str, Mapping[tuple[str, str], Mapping[int, float]]], name: str, pool: str) -> float:
    """Return the scale of a measure: distances are relative to those of the uniform draw."""
    return 1.0 if name == "outliers" else _mean(plain[name][pool, UNIFORM].values())


def _mean(numbers: Any) -> float:
    return float(np.mean(list(numbers)))


def sign(differences: list[float]) -> int:
    """Return 1 if the mean difference is above zero by two standard errors, -1 if below, and 0 otherwise."""
    mean, error = mean_and_error(differences)
    return int(mean > 2 * error) - int(mean < -2 * error)


def report(records: Sequence[Facts], out: Path) -> str:
    """Write tables and plot of the records; return the tables."""
    text = method_table(records) + "\n" + pool_table(records)
    (out / "methods.md").write_text(text, encoding="utf-8")
    draw(records, out / "methods.png")
    return text


def draw(records: Sequence[Facts], path: Path) -> None:
    """Plot the gain of each method on each pool."""
    gained = over(records, "linear")
    pools = list(dict.fromkeys(pool for pool, _ in gained))
    rows = {m: {p: mean_and_error(gained[p, m]) for p in pools if (p, m) in gained} for m in METHODS if m != UNIFORM}
    gains(path, "Accuracy of a linear probe above that of a uniform draw", pools, rows)
