"""`hkm verify`: output, and exit codes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.results import Result

HKM = Callable[..., Result]


@pytest.fixture
def tree(hkm: HKM, pool: Path, small: list[str]) -> Path:
    path = pool.parent / "tree.zarr"
    assert hkm("cluster", pool, path, *small).code == 0
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_sound_stores_are_told_so(hkm: HKM, pool: Path, tree: Path) -> None:
    code, out, err = hkm("verify", pool)
    assert (code, out.splitlines()[0], err) == (0, f"{pool}: a sound pool", "")
    code, out, err = hkm("verify", tree)
    assert (code, out.splitlines()[0], err) == (0, f"{tree}: a sound tree", "")
    words = " ".join(out.split())
    assert "200 of level 1, 20 of level 2 recomputed in float64: distances and nearest centroids are correct" in words
    assert max(map(len, out.splitlines()[1:])) < 80
    assert "\x1b" not in out


def test_problems_are_told_one_by_one_with_a_remedy(hkm: HKM, pool: Path, tree: Path) -> None:
    cut(tree / "level_1/labels/c/0")
    cut(tree / "level_2/sizes/c/0")
    code, out, err = hkm("verify", tree)
    assert (code, out.splitlines()[0], err) == (1, f"{tree}: a tree with 2 problems", "")
    assert "  level_1/labels: chunk 0 (rows 0:200) has 803 bytes instead of 804\n" in out
    assert "  level_2/sizes: chunk 0 (rows 0:5) has 43 bytes instead of 44\n" in out
    assert "to fix it\n  make it again from its pool with `hkm cluster --restart`\n" in out


def test_an_assignment_with_a_problem_is_called_one(hkm: HKM, pool: Path, tree: Path) -> None:
    assigned = pool.parent / "assigned.zarr"
    assert hkm("assign", tree, pool, assigned).code == 0
    cut(assigned / "level_1/c/0")
    assert hkm("verify", assigned).out.startswith(f"{assigned}: an assignment with 1 problem\n")


def test_machines_get_one_json_object(hkm: HKM, pool: Path) -> None:
    code, out, _ = hkm("verify", pool, "--json")
    facts = json.loads(out)
    assert (code, facts["sound"], facts["kind"], facts["problems"]) == (0, True, "pool", [])
    (pool / "mean/c/0").unlink()
    code, out, _ = hkm("verify", pool, "--json")
    facts = json.loads(out)
    assert (code, facts["sound"], facts["n_problems"]) == (1, False, 1)
    assert facts["problems"] == [
        {
            "where": "mean",
            "what": "chunk 0 (rows 0:4) is missing",
            "remedy": "make it again from its sources with `hkm ingest` or `hkm embed`",
        }
    ]


def test_a_pool_that_moved_is_looked_for_where_it_is_said_to_be(hkm: HKM, pool: Path, tree: Path) -> None:
    moved = shutil.move(pool, pool.parent / "moved.zarr")
    code, out, _ = hkm("verify", tree)
    assert code == 0
    assert f"its pool {pool} is not there: no samples were recomputed; give its path with --pool" in out
    code, out, _ = hkm("verify", tree, "--pool", moved, "--sample", 10, "--seed", 3)
    assert code == 0
    assert "10 of level 1, 10 of level 2 recomputed in float64" in out
    code, out, err = hkm("verify", tree, "--pool", pool)
    assert (code, out, err) == (1, "", f"Error: {pool} is missing; make it with `hkm ingest`\n")


def test_what_is_no_store_is_refused_in_one_line(hkm: HKM, tmp_path: Path) -> None:
    code, out, err = hkm("verify", tmp_path)
    fact = f"{tmp_path} should be a pool, tree or assignment of hkm, but there is no zarr.json"
    assert (code, out, err) == (1, "", f"Error: {fact}; give the path of one, or make it again\n")
