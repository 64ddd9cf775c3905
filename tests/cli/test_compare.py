"""`hkm compare`: its table, and its JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.cli.results import Result


def test_it_prints_a_table_or_json(hkm: Callable[..., Result], pool: Path, small: list[str]) -> None:
    folder, tree = pool.parent, pool.parent / "tree.zarr"
    assert hkm("cluster", pool, tree, *small).code == 0
    np.save(folder / "a.npy", np.arange(100))
    np.save(folder / "b.npy", np.arange(75, 125))
    words = ["compare", folder / "a.npy", folder / "b.npy", "--tree", tree, "--sample", 100]
    code, out, _ = hkm(*words)
    lines = out.splitlines()
    assert (code, lines[0].split()) == (0, ["pool", "a.npy", "b.npy"])
    assert lines[2].split() == ["of", "which", "in", "the", "other", "25", "(25.0%)", "25", "(50.0%)"]
    assert len({len(line) for line in lines}) == 1
    code, out, _ = hkm(*words, "--json")
    assert (code, json.loads(out)["overlap"]["n_rows"]) == (0, 25)
    code, out, err = hkm("compare", folder / "a.npy", folder / "b.npy")
    assert (code, out) == (1, "")
    assert err.startswith("Error: --tree should be the tree of the rows; give it, or a pool to omit clusters")
