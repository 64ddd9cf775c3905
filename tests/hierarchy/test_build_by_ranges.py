"""A tree built by ranges of clusters has the same bits as one whose workers hold all clusters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed.comm.tcp import TCP

from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.config import Config, Level
from hkm_dask.data.pool import Pool
from hkm_dask.errors import ComputeError
from hkm_dask.hierarchy import level_plans
from hkm_dask.hierarchy.build import build_hierarchy, write_hierarchy
from hkm_dask.ingestion.ingest import ingest
from tests.compute.conftest import two_processes, workers
from tests.hierarchy.test_build import arrays, assert_same, blobs, heard

__all__ = ["two_processes", "workers"]


@pytest.fixture
def shared_out(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that has the clusters of level 1 shared out in ranges, whatever memory there is."""
    return lambda n: monkeypatch.setattr(level_plans, "n_ranges_for", lambda stages_of, k, **_: n if k > 20 else 1)


def levels(k: int, **settings: Any) -> tuple[Level, ...]:
    return Level(n_clusters=k, init="random", max_iter=4, **settings), Level(n_clusters=6, n_resamples=0, max_iter=4)


@pytest.mark.parametrize(
    ("settings", "others", "n_ranges"),
    [
        ({"n_resamples": 2}, {}, 3),
        ({"n_resamples": 1, "resample_strategy": "random"}, {"metric": "cosine"}, 7),
        ({"n_resamples": 0, "n_splits": 4}, {}, 2),
        ({"n_resamples": 1}, {"fit_sample": 500}, 4),
    ],
)
def test_it_has_the_bits_of_a_tree_of_whole_clusters(
    tmp_path: Path, shared_out: Any, settings: dict[str, Any], others: dict[str, Any], n_ranges: int
) -> None:
    rows, config = blobs(900, 6) + 9, Config(levels=levels(60, **settings), **others)
    write_hierarchy(rows, tmp_path / "whole.zarr", config)
    shared_out(n_ranges)
    with heard() as told:
        write_hierarchy(rows, tmp_path / "ranges.zarr", config)
    started = next(event for event in told if event.kind == "run_started")
    assert [level["n_ranges"] for level in started.fields["levels"]] == [n_ranges, 1]
    assert_same(tmp_path / "whole.zarr", tmp_path / "ranges.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranges.zarr", "whole.zarr"]


def test_centroids_of_an_earlier_tree_at_its_place_are_not_taken(tmp_path: Path, shared_out: Any) -> None:
    """They were kept under the same names, which a process knows its arrays by: trees came out of two pools' rows."""
    config = Config(levels=levels(60, n_resamples=1, tol=0.0))
    write_hierarchy(blobs(900, 6) + 9, tmp_path / "whole.zarr", config)
    shared_out(3)
    for rows in (blobs(900, 6, seed=5), blobs(900, 6) + 9):
        write_hierarchy(rows, tmp_path / "tree.zarr", config)
        tree = (tmp_path / "tree.zarr").rename(tmp_path / f"{rows[0, 0]}.zarr")
    assert_same(tmp_path / "whole.zarr", tree)


def test_fewer_distinct_rows_than_clusters(tmp_path: Path, shared_out: Any) -> None:
    rows, config = np.repeat(blobs(35, 4), 10, axis=0), Config(levels=levels(60, n_resamples=0))
    write_hierarchy(rows, tmp_path / "whole.zarr", config)
    shared_out(5)
    with heard() as told:
        write_hierarchy(rows, tmp_path / "ranges.zarr", config)
    assert_same(tmp_path / "whole.zarr", tmp_path / "ranges.zarr")
    unused = int(np.isnan(arrays(tmp_path / "ranges.zarr")["level_1/centroids"][:, 0]).sum())
    warning = next(event.fields["message"] for event in told if event.kind == "warning")
    assert f"{unused} clusters remain unused" in warning


def test_what_does_not_fit_is_shared_out(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(10_500, 192)).astype("f4")
    first, *others = levels(10_000, n_resamples=0)
    config = Config(levels=(first.model_copy(update={"max_iter": 1}), *others))
    with heard() as told:
        tree = build_hierarchy(rows, tmp_path / "tree.zarr", config, memory_limit="420MiB")
    started = next(event for event in told if event.kind == "run_started")
    assert started.fields["levels"][0]["n_ranges"] > 1
    build_hierarchy(rows, tmp_path / "whole.zarr", config, memory_limit="2GiB")
    assert_same(tmp_path / "tree.zarr", tmp_path / "whole.zarr")
    assert tree.hkm.n_clusters == (10_000, 6)


def test_a_seeding_that_needs_all_clusters_is_refused_with_one_that_does_not(tmp_path: Path) -> None:
    rows = np.zeros((50_000, 192), "f4")
    config = Config(levels=(Level(n_clusters=10_000), Level(n_clusters=6)))
    with pytest.raises(ComputeError, match=r"should be at least \d+MiB, .* or levels.1.init=random, which divides"):
        write_hierarchy(rows, tmp_path / "tree.zarr", config, memory_limit="420MiB")
    assert not list(tmp_path.iterdir())


# Last, as a client that is open is where trees are built from then on.
def test_workers_make_the_same_and_no_message_to_the_driver_has_all_centroids(
    tmp_path: Path, shared_out: Any, workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, k = np.random.default_rng(0).normal(size=(3000, 128)).astype("f4"), 1500
    pool: Pool = ingest(rows, tmp_path / "pool.zarr", chunk_mb=0.2)
    config = Config(levels=levels(k, n_resamples=1))
    write_hierarchy(pool, tmp_path / "whole.zarr", config)
    shared_out(12)
    sizes: list[int] = []
    write = TCP.write

    async def weighed(self: TCP, *args: object, **kwargs: object) -> int:
        n_bytes: int = await write(self, *args, **kwargs)  # type: ignore[arg-type]
        sizes.append(n_bytes)
        return n_bytes

    monkeypatch.setattr(TCP, "write", weighed)
    write_hierarchy(pool, tmp_path / "ranges.zarr", config, client=workers.client)
    assert_same(tmp_path / "whole.zarr", tmp_path / "ranges.zarr")
    assert max(sizes) < 4 * k * 128 // 12
    assert not list((tmp_path / "ranges.zarr.work").glob("*"))
