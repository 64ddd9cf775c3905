"""Child process of ``--against``: runs tasks, one line of JSON each, with the hkm_dask on its path.

It must work with checkouts of any age, so it uses only the public interface.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hkm_dask as hkm

_WARM_ROWS = 2048


@cache
def _load(path: str) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.load(path), np.float32)


def _fit(rows: NDArray[np.float32], n_clusters: int, **settings: Any) -> tuple[float, NDArray[Any]]:
    kmeans = hkm.KMeans(n_clusters, tol=0.0, **settings)
    begin = time.perf_counter()
    kmeans.fit(rows)
    return time.perf_counter() - begin, np.asarray(kmeans.cluster_centers_)


def _lloyd(rows: NDArray[np.float32], task: dict[str, Any]) -> tuple[float, list[NDArray[Any]]]:
    """Return the time of many iterations minus that of few."""
    k = task["k"]
    start = rows[np.random.default_rng(0).choice(len(rows), k, replace=False)]
    few, _ = _fit(rows, k, init=start, max_iter=task["few"])
    many, centroids = _fit(rows, k, init=start, max_iter=task["many"])
    return many - few, [centroids]


def _seeding(rows: NDArray[np.float32], task: dict[str, Any]) -> tuple[float, list[NDArray[Any]]]:
    seconds, centroids = _fit(rows, task["k"], init=task["init"], max_iter=1, random_state=task["seed"])
    return seconds, [centroids]


def _method(rows: NDArray[np.float32], task: dict[str, Any]) -> tuple[float, list[NDArray[Any]]]:
    levels = tuple(
        hkm.Level(n_clusters=k, n_resamples=task["n_resamples"], resample_size=r, max_iter=task["max_iter"], tol=0.0)
        for k, r in zip(task["levels"], task["sizes"], strict=True)
    )
    config = hkm.Config(seed=task["seed"], levels=levels)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        tree = hkm.build_hierarchy(rows, Path(folder, "tree.zarr"), config)
        seconds = time.perf_counter() - begin
        names = ("labels", "centroids")
        return seconds, [tree[f"level_{t}"][name].to_numpy() for t in range(1, len(levels) + 1) for name in names]


_SUITES = {"lloyd": _lloyd, "seeding": _seeding, "method": _method}


def _do(task: dict[str, Any]) -> tuple[float, str]:
    """Run a task; a warm-up uses few rows and few clusters."""
    rows = _load(task["rows"])
    if task.get("warm"):
        rows = rows[:_WARM_ROWS]
        least = max(1, len(rows) // 64)
        task = {**task, "k": least, "levels": [least, max(1, least // 4)], "sizes": [2, 2], "n_resamples": 1}
    seconds, arrays = _SUITES[task["suite"]](rows, task)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    return seconds, digest.hexdigest()


def main() -> None:
    """Print the path of hkm_dask, then answer each line with seconds and a fingerprint of the result."""
    print(json.dumps(hkm.__file__), flush=True)
    for line in sys.stdin:
        print(json.dumps(_do(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
