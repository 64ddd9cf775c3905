"""Memory of steps: computed by hand, at huge sizes, and refused with the memory needed."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute import memory
from hkm_dask.compute.memory import (
    StageBytes,
    TaskPlan,
    block_bytes,
    budget_within,
    check_fits,
    lloyd_stage,
    plan_tasks,
    project_level,
    sum_bytes,
    tile_bytes,
    tile_rows,
)
from hkm_dask.errors import ComputeError

MIB = 1 << 20
sizes = st.integers(1, 10**7)
features = st.integers(1, 4096)


@given(sizes)
def test_a_tile_of_scores_stays_small_and_tall_enough_for_a_product(n_clusters: int) -> None:
    rows = tile_rows(n_clusters)
    assert 256 <= rows <= 2048
    assert rows == 256 or rows * n_clusters <= memory.TILE_SCORES


def test_bytes_of_a_thread_by_hand() -> None:
    # 10 centroids of 6 features: a tile of 2048 rows by 10 scores and 3·6 columns, 4096 rows; sums and counts
    assert tile_bytes(10, 6) == 4 * (2048 * (10 + 18) + 4096 * 6)
    assert sum_bytes(10, 6) == 8 * 10 * 7


def test_bytes_do_not_overflow_at_the_size_of_the_paper() -> None:
    n_clusters, n_features = 10_000_000, 1024
    assert lloyd_stage(10**9, n_clusters, n_features).total() > 48 * n_clusters * n_features > 2**38
    assert isinstance(lloyd_stage(10**9, n_clusters, n_features).total(), int)


@given(sizes, features)
def test_an_iteration_holds_the_centroids_and_their_sums(n_clusters: int, n_features: int) -> None:
    stage = lloyd_stage(1000, n_clusters, n_features)
    assert stage.task >= 8 * n_clusters * n_features
    assert stage.process >= (2 * 4 + 2 * 8) * n_clusters * n_features


@given(st.integers(1, 1 << 45), st.integers(1, 256))
def test_blocks_leave_every_thread_room_for_two(budget: int, n_threads: int) -> None:
    size = block_bytes(budget, n_threads)
    assert MIB <= size <= memory.MAX_BLOCK_BYTES
    assert size == MIB or 2 * n_threads * size <= budget // 4


bytes_ = st.integers(0, 1 << 40)


@given(bytes_, bytes_, st.integers(1, 1 << 42), st.integers(1, 64), st.integers(1, 1 << 26))
def test_what_is_planned_fits(process: int, task: int, budget: int, n_threads: int, least_block: int) -> None:
    stage = StageBytes(process, task)
    plan = plan_tasks(stage, budget, n_threads, least_block=least_block)
    with_blocks = StageBytes(process, task + 2 * max(least_block, MIB))
    if plan is None:
        assert with_blocks.total() > budget
        return
    assert 1 <= plan.n_tasks <= n_threads
    assert plan.n_tasks == n_threads or with_blocks.total(plan.n_tasks + 1) > budget
    assert plan.block_bytes >= least_block
    assert plan.resident_bytes <= budget // 2
    assert stage.total(plan.n_tasks) + 2 * plan.n_tasks * plan.block_bytes + plan.resident_bytes <= budget


def test_blocks_shrink_before_threads_rest() -> None:
    stage = StageBytes(0, 10 << 20)
    plenty, little, least = (plan_tasks(stage, n << 20, 4, least_block=1 << 20) for n in (4096, 80, 30))
    assert plenty == TaskPlan(4, 64 << 20, 2048 << 20)
    assert little is not None
    assert (little.n_tasks, little.block_bytes) == (4, 5 << 19)
    assert least is not None
    assert (least.n_tasks, least.block_bytes) == (2, 5 << 18)


def number_needed(message: str) -> int:
    return int(message.split("at least ")[1].split("MiB")[0])


@pytest.mark.parametrize(
    ("shape", "settings", "stage"),
    [
        ((10**9, 1000, 64), {}, "resampling"),
        ((10**7, 10**6, 1024), {"n_resamples": 0, "init": "random"}, "Lloyd"),
        ((10**6, 1000, 64), {"init": "k-means++"}, "seeding"),
        ((10**6, 2, 64), {"n_resamples": 0, "n_splits": 10**5}, "splitting"),
        ((10**6, 1000, 4096), {"n_resamples": 0, "init": "random"}, "finding directions"),
    ],
)
def test_a_level_is_refused_for_the_stage_that_takes_most(
    shape: tuple[int, int, int], settings: dict[str, Any], stage: str
) -> None:
    stages = project_level(*shape, **{"init": "coreset", "n_resamples": 1, "r": shape[0] // shape[1] // 2, **settings})
    with pytest.raises(ComputeError, match=f", {stage} takes") as caught:
        check_fits(stages, budget_within(512 * MIB), inputs=7 * MIB)
    need = number_needed(str(caught.value))
    check_fits(stages, budget_within(need * MIB), inputs=7 * MIB)
    with pytest.raises(ComputeError):
        check_fits(stages, budget_within((need - 2) * MIB), inputs=7 * MIB)


def test_workers_share_what_belongs_to_rows() -> None:
    one, four = (
        project_level(10**8, 100, 64, init="coreset", n_resamples=1, r=500, n_workers=n)["resampling"].process
        for n in (1, 4)
    )
    assert one / 4 < four < one


def test_workers_do_not_hold_what_the_driver_puts_together() -> None:
    """The first level of the paper's web images, on workers of 20 GiB."""
    settings = {"init": "coreset", "n_resamples": 0, "r": 0, "n_splits": 100}
    stages = project_level(743_000_000, 100_000, 1024, **settings, n_workers=32, with_driver=False)
    check_fits(stages, budget_within(20 << 30))
    own = project_level(743_000_000, 100_000, 1024, **settings)
    assert stages["splitting"].process == 0 < own["splitting"].process
    # Centroids of clusters that were split are in files, whoever drives.
    whole = project_level(743_000_000, 10**7, 1024, init="random", n_resamples=0, r=0)
    assert stages["writing"].total() == own["writing"].total() < whole["writing"].total() / 100


def test_bytes_of_a_level_do_not_overflow() -> None:
    stages = project_level(10**9, 10**7, 1024, init="coreset", n_resamples=10, r=50, n_splits=10)
    assert all(isinstance(stage.total(1000), int) for stage in stages.values())
    assert sorted(stage.total() > 2**34 for stage in stages.values()) == [False] * 3 + [True] * 4


@pytest.mark.parametrize(
    ("text", "expected"), [(str(64 * MIB), 64 * MIB), ("max\n", None), (str(2**62), None), (None, None)]
)
def test_the_limit_of_a_control_group_counts(
    text: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / Path(path).name)
    whole = memory.psutil.virtual_memory().total
    assert memory.machine_memory() == (whole if expected is None else expected)


def test_memory_of_picking_is_half_of_what_it_was() -> None:
    """What was picked was held twice, as a whole: 75 bytes a row of a worker, labels and distances included."""
    n = 100_000_000
    assert memory.resample_stage(n, 1000, 8, n).total() < 37 * n
