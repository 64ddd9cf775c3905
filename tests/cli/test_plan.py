"""`hkm plan`: output, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.results import Result
from tests.pages import run_page

HKM = Callable[..., Result]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_plan_over_a_pool_serves_the_run(hkm: HKM, pool: Path, small: list[str], tmp_path: Path) -> None:
    code, out, err = hkm("plan", pool, *small, "--seconds", "0.1", "--json")
    assert code == 0
    assert json.loads(err)["message"] == "Measuring this machine for about 0 s, on rows of the pool ..."
    plan = json.loads(out)
    assert [level["k"] for level in plan["levels"]] == [20, 5]
    assert 0 < plan["seconds"] <= plan["at_most"]
    assert plan["fits"] is True
    (tmp_path / "rates.json").write_text(out)
    code, out, err = hkm("plan", pool, *small, "--rates", tmp_path / "rates.json")
    assert (code, err) == (0, "")
    assert out.startswith(f"Plan of {pool}: ")
    assert "does not fit" not in out
    # What was measured is kept, and told when the run begins.
    code, _, err = hkm("cluster", pool, tmp_path / "tree.zarr", *small)
    assert code == 0
    assert "Plan: 2 levels, " in err
    assert "; about " in err


def test_a_run_says_what_it_takes_where_nothing_was_measured(hkm: HKM, pool: Path, small: list[str]) -> None:
    code, _, err = hkm("cluster", pool, pool.parent / "tree.zarr", *small)
    assert code == 0
    assert "of memory; `hkm plan` estimates the time" in err


def test_no_pool_is_needed(hkm: HKM) -> None:
    shape = ("--n-samples", "743M", "--n-features", "1024", "--n-clusters", "100000,50000,10000")
    code, out, err = hkm("plan", *shape, "--gpu", "a100:128")
    assert (code, err) == (0, "")
    assert "743,000,000 × 1024 float16, 1.4 TiB" in out
    assert "predicted, not measured" in out
    code, out, err = hkm("plan", *shape, "--seconds", "0", "--memory", "4GiB")
    assert (code, err) == (0, "")
    assert "It does not fit: " in out
    assert "\n  --set levels.2.n_clusters=" in out
    assert "no rates are known" in out
    code, out, err = hkm("plan", "--n-samples", "90", "--n-features", "8", "--seconds", "0")
    assert "For 90 rows, recommended: --n-clusters 18,9,3" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "Give POOL.zarr, or --n-samples N and --n-features D instead."),
        (["--n-samples", "9"], 2, "Give POOL.zarr, or --n-samples N and --n-features D instead."),
        (["--n-samples", "9.5", "--n-features", "2"], 2, "'9.5' should be a whole number >= 1; write it like 743M"),
        (["--n-samples", "9", "--n-features", "2", "--gpu", "l4", "--workers", "2"], 2, "not both"),
        (["--n-samples", "9", "--n-features", "2", "--gpu", "h20"], 1, "--gpu='h20' should be NAME or NAME:NUMBER"),
        (["--n-samples", "9", "--n-features", "2", "--subset", "a.npy"], 1, "subset needs a pool"),
        (["--n-samples", "9", "--n-features", "2", "--n-clusters", "10"], 1, "--n-samples=9 should be >= levels.1"),
        (["--n-samples", "9", "--n-features", "2", "--rates", "none.json"], 1, "none.json"),
    ],
)
def test_what_cannot_be_planned_is_refused(hkm: HKM, words: list[str], code: int, message: str) -> None:
    got, out, err = hkm("plan", *words)
    assert (got, out) == (code, "")
    assert message in err


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    run_page("docs/plan.md", tmp_path)
