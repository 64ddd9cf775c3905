"""Recall, time and memory of finding near-duplicates: ``python -m pipelines.benchmark.duplicates``.

Two methods on the same rows; the ground truth is brute force in float64 for a sample of rows:

* *hkm dedup*: the command, in its own process, with `--memory-limit`;
* *within clusters*: semantic deduplication like NeMo Curator's, with its documented settings: rows of unit length, one
  k-means (--n-clusters, 1000 by default there), all cosines within each cluster and none between clusters. Its own code
  needs a GPU, so the k-means is ours, with the same maximum of iterations, and the products are NumPy's, one cluster at
  a time: the recall is that of the method, the time that of this replacement.

Recall is the share of the true pairs of sampled rows whose two rows are in the same group (hkm dedup) or in the same
cluster (within clusters), where that method compares them. The output is JSON; `--record` keeps it for the documents.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.data.pool import open_pool
from hkm_dask.data.row_views import unit_rows
from pipelines import records
from pipelines.benchmark.inputs import RowMaker

Facts = dict[str, Any]

_PIECE = 1 << 16
#: The command, which writes its own peak memory to a file: the system's figure for a child includes its parent's.
_COMMAND = """
import atexit, pathlib, sys
status = pathlib.Path("/proc/self/status")
out = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: out.write_text(status.read_text().partition("VmHWM:")[2].split()[0]))
from hkm_dask.cli import main
main()
"""
#: Share of rows that get a near-duplicate, and its distance, relative to the length of the row.
_SHARE, _APART = 0.05, (0.02, 0.5)


def make_rows(n_rows: int, n_features: int, folder: Path) -> Path:
    """Write rows with a decaying spectrum to an ``.npy`` file; some have a near-duplicate, at various distances."""
    path, rng = folder / "rows.npy", np.random.default_rng(0)
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, n_features))
    for place, piece in RowMaker(np, n_features).pieces(n_rows):
        n_near = int(_SHARE * len(piece))
        noise = rng.normal(size=(n_near, n_features)).astype(np.float32)
        lengths = np.linalg.norm(piece[:n_near], axis=1, keepdims=True) / np.sqrt(n_features)
        piece[-n_near:] = piece[:n_near] + rng.uniform(*_APART, size=(n_near, 1)).astype(np.float32) * lengths * noise
        rows[place] = piece
    rows.flush()
    return path


def true_pairs(pool: Path, threshold: float, n_sample: int) -> NDArray[np.int64]:
    """Return all pairs (2, n) between rows of a random sample and any row of the pool, by cosines in float64."""
    rows = open_pool(pool).rows()
    drawn = np.sort(np.random.default_rng(1).choice(rows.n_rows, min(n_sample, rows.n_rows), replace=False))
    points = _unit(rows.take(drawn))
    found = []
    for low in range(0, rows.n_rows, _PIECE // 8):
        block = rows.read(low, min(low + _PIECE // 8, rows.n_rows))
        i, j = np.nonzero(points @ _unit(block).T >= threshold)
        found.append(np.stack([drawn[i], low + j]))
    pairs = np.concatenate(found, axis=1)
    return pairs[:, pairs[0] != pairs[1]]


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms == 0, 1, norms)


def run_dedup(
    pool: Path, threshold: float, memory_limit: str, folder: Path
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Run the command; return its time and memory, and the group of every row."""
    words = ["dedup", str(pool), "--threshold", str(threshold), "--out", str(folder / "kept.npy"), "--json"]
    words += ["--groups", str(folder / "groups.parquet"), "--memory-limit", memory_limit]
    begin = time.perf_counter()
    with (folder / "dedup.json").open("wb") as out:
        child = subprocess.Popen([sys.executable, "-c", _COMMAND, str(folder / "peak"), *words], stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"hkm dedup ended with status {child.returncode}")
    took = _took(time.perf_counter() - begin, usage.ru_utime + usage.ru_stime)
    groups = np.arange(open_pool(pool).n_samples)
    table = pd.read_parquet(folder / "groups.parquet")
    groups[table["row"]] = table["group"]
    return {
        **took,
        "peak_mib": int((folder / "peak").read_text()) >> 10,
        **json.loads((folder / "dedup.json").read_text()),
    }, groups


def within_clusters(
    pool: Path, threshold: float, n_clusters: int, max_iter: int
) -> tuple[dict[str, Any], NDArray[np.int32]]:
    """Run semantic deduplication as other tools do; return its time, and the cluster of every row."""
    begin, cpu = time.perf_counter(), time.process_time()
    rows = open_pool(pool).rows()
    units = np.concatenate(
        [unit_rows(rows.read(low, min(low + _PIECE, rows.n_rows))) for low in range(0, rows.n_rows, _PIECE)]
    )
    labels = hkm.KMeans(n_clusters, init="k-means||", max_iter=max_iter, random_state=0).fit(units).labels_
    order = np.argsort(labels, kind="stable")
    n_pairs, removed = 0, 0
    for members in np.split(order, np.cumsum(np.bincount(labels, minlength=n_clusters))[:-1]):
        members.sort()
        for low in range(0, len(members), 4096):
            near = np.triu(units[members] @ units[members[low : low + 4096]].T >= threshold, 1 - low)
            n_pairs += int(near.sum())
            removed += int(near.any(axis=0).sum())
    took = _took(time.perf_counter() - begin, time.process_time() - cpu)
    return {**took, "n_clusters": n_clusters, "n_pairs": n_pairs, "n_removed": removed}, labels


def _took(seconds: float, cpu: float) -> dict[str, float]:
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}


def recall(pairs: NDArray[np.int64], names: NDArray[Any]) -> float | None:
    """Return the share of pairs whose two rows have the same name."""
    return float((names[pairs[0]] == names[pairs[1]]).mean()) if pairs.shape[1] else None


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all methods, with files in `folder`."""
    source = given.data or make_rows(given.n, given.d, folder)
    pool = hkm.ingest([source], folder / "pool.zarr")
    ours, groups = run_dedup(Path(pool.path), given.threshold, given.memory_limit, folder)
    theirs, clusters = within_clusters(Path(pool.path), given.threshold, given.n_clusters, given.max_iter)
    pairs = true_pairs(Path(pool.path), given.threshold, given.sample)
    return {
        "rows": [pool.n_samples, pool.n_features], "threshold": given.threshold, "memory_limit": given.memory_limit,
        "cores": len(os.sched_getaffinity(0)), "sample": given.sample, "n_true_pairs": pairs.shape[1],
        "hkm dedup": {"recall": recall(pairs, groups), **ours},
        "within clusters": {"recall": recall(pairs, clusters), **theirs},
    }  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.benchmark.duplicates", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--data", type=Path, metavar="NPY", help="rows; default: synthetic rows")
    add("--n", type=int, default=1_000_000, help="number of synthetic rows; default: 1000000")
    add("--d", type=int, default=384, help="features of synthetic rows; default: 384")
    add("--threshold", type=float, default=0.95, help="cosine; default: 0.95")
    add("--memory-limit", default="1GiB", help="for hkm dedup; default: 1GiB")
    add("--n-clusters", type=int, default=1000, help="for the k-means of the other method; default: 1000")
    add("--max-iter", type=int, default=100, help="maximum iterations of that k-means; default: 100")
    add("--sample", type=int, default=2000, help="rows whose pairs are found by brute force; default: 2000")
    add("--scratch", type=Path, help="folder for the pool; default: the temporary folder")
    records.add_option(parser)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        found = measure(given, Path(folder))
        settings = {"n": given.n, "d": given.d, "data": None if given.data is None else given.data.name}
        records.save(
            "benchmark", "duplicates", found, out=Path(folder), settings=settings, record=given.record,
            program="-m pipelines.benchmark.duplicates",
        )  # fmt: skip
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
