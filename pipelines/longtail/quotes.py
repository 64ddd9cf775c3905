"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.longtail import comparison, variants
from pipelines.longtail.comparison import BALANCED, UNIFORM
from pipelines.measurements import Facts, mean_and_error

TREE, K_MEANS, K_CENTER = "tree, as advised", "one k-means", "k-center"
#: Pools that were used to choose the advised settings.
FOUND_ON = ("nouns", "other-nouns")
#: Significant digits of recorded measures.
DIGITS = 4


def folded(records: Sequence[Facts]) -> dict[str, Any]:
    """Group the records of a comparison by pool and method, with a list over seeds 0, 1, … for each measure."""
    found: dict[str, Any] = {record["pool"]: {} for record in records}
    for record in sorted(records, key=lambda r: r["seed"]):
        measures = found[record["pool"]].setdefault(record["method"], {})
        for name, value in record.items():
            if isinstance(value, float):
                measures.setdefault(name, []).append(float(f"{value:.{DIGITS}g}"))
    return found


def unfolded(found: Mapping[str, Any]) -> list[Facts]:
    """Invert `folded`.

    >>> unfolded(folded([{"pool": "a", "method": "x", "seed": 0, "linear": 0.51239}]))
    [{'pool': 'a', 'method': 'x', 'seed': 0, 'linear': 0.5124}]
    """
    return [
        {"pool": pool, "method": method, "seed": seed, **dict(zip(measures, values, strict=True))}
        for pool, methods in found.items()
        for method, measures in methods.items()
        for seed, values in enumerate(zip(*measures.values(), strict=True))
    ]


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    return {
        **(_of_methods(runs["methods"]) if "methods" in runs else {}),
        **(_of_variants(runs["variants"]) if "variants" in runs else {}),
    }


def _of_methods(run: Mapping[str, Any]) -> dict[str, str]:
    methods, pools = unfolded(run["found"]), list(run["found"])
    gained = comparison.over(methods, "linear")
    means = {m: [float(np.mean(gained[pool, m])) for pool in pools] for m in (TREE, K_MEANS, K_CENTER, BALANCED)}
    unseen = [gain for pool, gain in zip(pools, means[TREE], strict=True) if pool not in FOUND_ON]
    return {
        "by-method": comparison.method_table(methods).rstrip(),
        "by-pool": comparison.pool_table(methods).rstrip(),
        "seeds-by-pool": _seeds(methods, pools),
        "date": run["date"],
        "n-pools": str(len(pools)),
        **{f"gain-{_slug(m)}": _gain(means[m]) for m in means},
        "gain-tree-unseen": _gain(unseen),
        "n-unseen": str(len(unseen)),
        "tree-outliers": f"{100 * _mean(methods, TREE, 'outliers'):.0f} %",
        "uniform-outliers": f"{100 * _mean(methods, UNIFORM, 'outliers'):.0f} %",
        "tree-better": _where(gained, pools, TREE, 1),
        "tree-worse": _where(gained, pools, TREE, -1),
    }


def _of_variants(run: Mapping[str, Any]) -> dict[str, str]:
    pools = list(run["found"])
    return {"variants": variants.table(unfolded(run["found"]), pools).rstrip(), "n-variant-pools": str(len(pools))}


def _gain(of_pools: list[float]) -> str:
    return "{:+.3f} ± {:.3f}".format(*mean_and_error(of_pools))


def _slug(method: str) -> str:
    return {TREE: "tree", BALANCED: "balanced"}.get(method, method.replace(" ", "-"))


def _mean(records: Sequence[Facts], method: str, name: str) -> float:
    by_pool = comparison.values(records, name)
    return float(np.mean([np.mean(list(v.values())) for (_, m), v in by_pool.items() if m == method]))


def _where(gained: Mapping[tuple[str, str], list[float]], pools: Sequence[str], method: str, sign: int) -> str:
    """List pools where a method is above (1) or below (-1) the uniform draw by two standard errors over seeds."""
    found = [f"`{pool}` ({np.mean(gained[pool, method]):+.3f})" for pool in pools
             if comparison.sign(gained[pool, method]) == sign]  # fmt: skip
    return ", ".join(found) or "none"


def _seeds(records: Sequence[Facts], pools: Sequence[str]) -> str:
    counts: dict[int, list[str]] = {}
    for pool in pools:
        n = len({r["seed"] for r in records if r["pool"] == pool})
        counts.setdefault(n, []).append(pool)
    if len(counts) == 1:
        return f"{next(iter(counts))} on each"
    return "; ".join(f"{n} on {', '.join(names)}" for n, names in sorted(counts.items(), reverse=True))
