"""Draws with rules, on the command line."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.cli.results import Result


def test_what_is_left_out_is_not_drawn(
    hkm: Callable[..., Result], pool: Path, small: list[str], tmp_path: Path
) -> None:
    tree, first, second = (tmp_path / name for name in ("tree.zarr", "first.csv", "second.csv"))
    assert hkm("cluster", pool, tree, *small).code == 0
    weights, ids = tmp_path / "weights.csv", tmp_path / "ids.txt"
    weights.write_text("cluster,weight\n2:1,0\n2:2,0.5\n")
    ids.write_text("7\n")
    assert hkm("sample", tree, "--size", 30, "--out", first, "--exclude", "2:0,1:3", "--exclude", "1:4")[:2] == (
        0,
        f"{first}: 30 rows\n",
    )
    drawn = list(csv.DictReader(first.read_text().splitlines()))
    assert not {row["level_1"] for row in drawn} & {"3", "4"}
    assert "0" not in {row["level_2"] for row in drawn}
    words = ["--exclude-ids", first, "--exclude-ids", ids, "--weights", weights, "--only", "2:1,2:2,2:3"]
    code, _, err = hkm("sample", tree, "--size", 12, "--out", second, *words)
    assert code == 0
    assert "of 200 samples" in err
    again = list(csv.DictReader(second.read_text().splitlines()))
    assert {row["level_2"] for row in again} <= {"2", "3"}
    assert not {row["row"] for row in again} & ({row["row"] for row in drawn} | {"7"})


def test_rules_that_cannot_be_are_told_together(
    hkm: Callable[..., Result], pool: Path, small: list[str], tmp_path: Path
) -> None:
    tree, out = tmp_path / "tree.zarr", tmp_path / "out.npy"
    hkm("cluster", pool, tree, *small)
    words = ["--exclude", "2:9, 2-1", "--only", "3:0", "--weights", tmp_path / "no.csv", "--max-per", "url=3"]
    code, _, err = hkm("sample", tree, "--size", 5, "--out", out, *words)
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert code == 1
    assert [line.split(" should")[0].split("=")[0] for line in lines] == [
        *["Error: --exclude"] * 2, "Error: --only", "Error: --weights", "Error: --max-per",
    ]  # fmt: skip
    assert "from 2:0 to 2:4" in err
    assert not out.exists()
    for option in ("--max-per", "--quota"):
        assert hkm("sample", tree, "--size", 5, "--out", out, option, "url").code == 2
        code, _, err = hkm("sample", tree, "--size", 5, "--out", out, option, "url=1", option, "url=2")
        assert code == 2
        assert f"{option} is given twice for the same column" in err
    np.save(tmp_path / "rows.npy", np.arange(150))
    code, _, err = hkm("sample", tree, "--size", 60, "--out", out, "--exclude-ids", tmp_path / "rows.npy")
    assert code == 1
    assert "size=60 should be at most the 50 that the rules leave" in err
