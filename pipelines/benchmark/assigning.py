"""Compare the time of `hkm.assign` with that of `KMeans.predict` for level 1 of the tree: same rows, in turns.

    python -m pipelines.benchmark.assigning --data embeddings.npy --k 2000

Rows are read from a pool, and from the `.npy` file itself, which `assign` also has to fingerprint.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import hkm_dask as hkm
from pipelines.benchmark.inputs import load_rows, make_rows
from pipelines.benchmark.measure import clock

#: Rows per level-1 cluster in the tree's pool.
_ROWS_PER_CLUSTER = 20


def main(words: Sequence[str] | None = None) -> None:
    """Time both, and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, metavar="NPY", help="rows; default: 500,000 synthetic rows of 384 features")
    add("--k", type=int, default=2000, help="clusters of level 1; level 2 has a tenth; default: 2000")
    add("--repeats", type=int, default=5, help="runs of each; default: 5")
    given = parser.parse_args(words)
    rows = (make_rows(500_000, 384) if given.data is None else load_rows(given.data)).rows
    table = Table("rows from", "predict (s)", "assign (s)", "predict / assign, median of pairs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "rows.npy", rows)
        pool = hkm.ingest(folder / "rows.npy", folder / "pool.zarr").path
        config = hkm.Config.from_flags((given.k, max(1, given.k // 10)), n_resamples=0, max_iter=5)
        tree = hkm.build_hierarchy(rows[: _ROWS_PER_CLUSTER * given.k], folder / "tree.zarr", config)
        centroids = tree["level_1"].to_dataset()["centroids"].values
        model = hkm.KMeans(n_clusters=given.k, init=centroids, max_iter=1).fit(rows[: _ROWS_PER_CLUSTER * given.k])
        place = tree.encoding["source"], model, folder / "new.zarr", given.repeats
        for label, source in (("pool", pool), (".npy", folder / "rows.npy")):
            table.add_row(label, *_compared(str(source), *place))
    console = Console(width=100)
    console.print(f"{len(rows):,} x {rows.shape[1]} {rows.dtype}, {given.k:,} clusters")
    console.print(table)


def _compared(source: str, tree: str, model: hkm.KMeans, out: Path, repeats: int) -> list[str]:
    """Return the median seconds of both and the median ratio, without the first run of each."""

    def assign() -> object:
        shutil.rmtree(out, ignore_errors=True)
        return hkm.assign(tree, source, out)

    runs: dict[str, Callable[[], object]] = {"predict": lambda: model.predict(source), "assign": assign}
    took: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            seconds, _ = clock(runs[name])
            took[name] += [seconds] * (turn > 0)
    ratios = [one / other for one, other in zip(*took.values(), strict=True)]
    return [f"{statistics.median(values):.2f}" for values in (*took.values(), ratios)]


if __name__ == "__main__":
    main()
