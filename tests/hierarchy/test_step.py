from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import get_task_stream
from hypothesis import given
from hypothesis import strategies as st

import hkm_dask as hkm
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.compute.runner import Runner
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.hierarchy.step import enough_members
from hkm_dask.hierarchy.tree.tree import open_hierarchy

LEVELS = [
    hkm.Level(n_clusters=30, n_resamples=2, max_iter=4),
    hkm.Level(n_clusters=6, n_resamples=1, max_iter=4, resample_strategy="random"),
]
TOLD = ("step_started", "iteration", "step_finished", "assigned", "level_finished")


def build(pool: Path, tree: Path, runner: Runner) -> tuple[dict[str, np.ndarray], list[tuple[Any, ...]]]:
    """Arrays of a tree, and what was told of its steps."""
    events: list[Event] = []
    with subscribe(events.append):
        write_hierarchy(pool, tree, hkm.Config(levels=LEVELS, seed=3), client=runner.client)
    opened = open_hierarchy(tree)
    arrays = {f"{node.path}/{name}": node[name].values for node in opened.subtree for name in node.data_vars}
    names = "level", "step", "n", "iteration", "inertia", "n_members"
    return arrays, [(one.kind, *map(one.fields.get, names)) for one in events if one.kind in TOLD]


def phases(stream: Any) -> set[str]:
    """What tasks of workers were for."""
    return {str(task["key"]).strip("(_'").split("-")[1] for task in stream.data if "hkm-" in str(task["key"])}


def test_on_workers_a_resampling_step_is_one_task_where_passes_are_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1500, 70)) + 4 * rng.integers(0, 5, (1500, 1))
    pool = Path(hkm.ingest(rows.astype("f4"), tmp_path / "pool.zarr").path)
    with Runner(n_threads=2) as threads:
        expected, told = build(pool, tmp_path / "threads.zarr", threads)
    with connect(workers=2) as workers:
        with get_task_stream() as few:
            arrays, heard = build(pool, tmp_path / "one.zarr", workers)
        monkeypatch.setattr(ClusterRunner, "fits_one_task", lambda *_: False)
        with get_task_stream() as many:
            others, _ = build(pool, tmp_path / "many.zarr", workers)
    assert heard == told
    assert list(arrays) == list(others) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)
        np.testing.assert_array_equal(others[name], values)
    assert {"gather", "lloyd"}.isdisjoint(phases(few))
    assert {"gather", "lloyd"} <= phases(many)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 10), st.integers(1, 40))
def test_raised_to_the_first_number_that_brings_enough_together(sizes: list[int], r: int, n_clusters: int) -> None:
    tried = range(r, max([*sizes, r]) + 1)
    brings = [sum(min(size, n) for size in sizes) >= n_clusters for n in tried]
    expected = tried[brings.index(True)] if any(brings) else tried[-1]
    assert enough_members(np.array(sizes), r, n_clusters) == expected
