"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.cluster.projection import RUNS
from pipelines.records import table

#: Hours and GPUs of each level, as the authors report them (arXiv:2405.15613, appendix).
REPORTED = {"1": "8 h on 128", "2": "15 h on 16", "3": "1.5 h on 8", "4": "< 1 h on 8"}


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the projected hours as tables."""
    found = runs["project"]["found"]
    levels = {str(t): f"level {t}" for t in range(1, 5)}
    lines = []
    for name, sizes in found.items():
        for n, one in sizes.items():
            hours = [f"{one['hours'][t]:.2f} h" if t in one["hours"] else "" for t in levels]
            lines.append([RUNS[name][3], n, *hours, f"{one['total']:.1f} h"])
    reported = ["web images, as reported", "", *REPORTED.values(), ""]
    needs = [[RUNS[name][3], n, *_needs(one)] for name, sizes in found.items() for n, one in sizes.items()]
    columns = ("memory a worker", "rows that stay", "between workers", "price of a loss", "expected")
    return {
        "hours": table(("run", "A100s", *levels.values(), "all"), [*lines, reported]),
        "needs": table(("run", "A100s", *columns), needs),
    }


def _needs(one: Mapping[str, Any]) -> list[str]:
    return [
        f"{one['need'] / 2**30:.0f} GiB", f"{one['resident']:.0%}", f"{one['network'] / 1e12:.1f} TB",
        f"{one['price_of_a_loss']:.0f} s", f"{one['expected_losses']:.3f}",
    ]  # fmt: skip
