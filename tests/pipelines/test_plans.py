"""Plans are compared with runs phase by phase, and the results are quoted."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.benchmark import quotes
from pipelines.benchmark.plans import SHAPES, compare, compare_in_turns

PLAN = {
    "levels": [{"seconds": {"Lloyd": 4.0, "gather": 0.1}, "files": {"Lloyd": {"read": 8 << 20, "written": 0}}}],
    "other": {"start": 1.0}, "seconds": 5.1, "at_least": 4.0, "likely_at_most": 7.0, "memory": {"peak": 1000},
}  # fmt: skip


def test_ratios_are_of_what_came_over_what_was_planned() -> None:
    spent = {
        "Lloyd": {"seconds": 6.0, "read": 4 << 20, "written": 0},
        "start": {"seconds": 1.0, "read": 0, "written": 0},
    }
    found = compare(PLAN, {"seconds": 7.0, "peak": 1500, "phases": spent})
    assert found["seconds"]["ratio"] == pytest.approx(7.0 / 5.1)
    assert found["peak"]["ratio"] == 1.5
    assert found["phases"]["Lloyd"]["seconds"]["ratio"] == 1.5
    assert found["phases"]["Lloyd"]["read"]["ratio"] == 0.5
    assert "gather" not in found["phases"]  # too little to tell anything
    quoted = quotes._of_plans(
        {"found": {SHAPES[0].name: found | {"median": 1.3}}, "settings": {"words": {SHAPES[0].name: "--x"}},
         "command": "python", "date": "today", "cores": 2}
    )  # fmt: skip
    assert "| 5 s (4-7) | 7 s | 1.30 | 1.50 | 0.50 |" in quoted["plans"]


@pytest.mark.slow
def test_a_run_is_compared_with_its_plan(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 32)).astype(np.float16)
    found = compare_in_turns(rows, ["--n-clusters", "100,10"], limit="", repeats=1, seconds=0.1)
    assert found["seconds"]["came"] > found["phases"]["start"]["seconds"]["came"] > 0.5
    assert found["range"][0] <= found["seconds"]["planned"] <= found["range"][1]
