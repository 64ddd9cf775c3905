"""Bytes a step needs: by hand, at sizes no machine has, and refused with the number that would do."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute import memory
from hkm_dask.compute.memory import (
    block_bytes,
    budget_within,
    check_fits,
    fold_bytes,
    project_level,
    threads_that_fit,
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


def test_fold_bytes_by_hand() -> None:
    # 10 centroids of 6 features: operand 10·8 twice, a tile of 2048 rows by 10 scores and 3·6 columns, sums and counts
    assert fold_bytes(10, 6) == 4 * (2 * 80 + 2048 * (10 + 18)) + 8 * 10 * 7
    assert fold_bytes(10, 6) - fold_bytes(10, 6, with_sums=False) == 8 * 10 * 7


def test_bytes_do_not_overflow_at_the_size_of_the_paper() -> None:
    n_clusters, n_features = 10_000_000, 1024
    assert fold_bytes(n_clusters, n_features) > 16 * n_clusters * n_features > 2**37
    assert isinstance(fold_bytes(n_clusters, n_features), int)


@given(sizes, features)
def test_a_fold_holds_the_centroids_and_their_sums(n_clusters: int, n_features: int) -> None:
    assert fold_bytes(n_clusters, n_features) >= 12 * n_clusters * n_features
    assert fold_bytes(n_clusters + 1, n_features + 1) > fold_bytes(n_clusters, n_features, with_sums=False)


@given(st.integers(1, 1 << 45), st.integers(1, 256))
def test_blocks_leave_every_thread_room_for_two(budget: int, n_threads: int) -> None:
    size = block_bytes(budget, n_threads)
    assert MIB <= size <= memory.MAX_BLOCK_BYTES
    assert size == MIB or 2 * n_threads * size <= budget // 4


@given(st.integers(1, 1 << 42), st.integers(1, 64), sizes, features)
def test_the_threads_that_fit_fit(budget: int, n_threads: int, n_clusters: int, n_features: int) -> None:
    one = fold_bytes(n_clusters, n_features)
    if 0.75 * budget < one:
        with pytest.raises(ComputeError, match="memory_limit="):
            threads_that_fit(budget, n_threads, n_clusters, n_features)
        return
    fit = threads_that_fit(budget, n_threads, n_clusters, n_features)
    assert 1 <= fit <= n_threads
    assert fit * one <= 0.75 * budget
    assert fit == n_threads or (fit + 1) * one > 0.75 * budget


def test_too_little_memory_is_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(ComputeError) as caught:
        threads_that_fit(budget_within(400 * MIB), 4, 100_000, 1024)
    message = str(caught.value)
    assert message.startswith("memory_limit=400MiB should be at least ")
    assert "n_clusters=100000 of 1024 features" in message
    need = number_needed(message)
    assert threads_that_fit(budget_within(need * MIB), 4, 100_000, 1024) == 1
    with pytest.raises(ComputeError):
        threads_that_fit(budget_within((need - 2) * MIB), 4, 100_000, 1024)


def number_needed(message: str) -> int:
    return int(message.split("at least ")[1].split("MiB")[0])


@pytest.mark.parametrize(
    ("shape", "settings", "stage"),
    [
        ((10**9, 1000, 64), {}, "resampling"),
        ((10**9, 1000, 64), {"n_resamples": 0}, "assigning"),
        ((10**7, 10**6, 1024), {"n_resamples": 0, "init": "random"}, "Lloyd"),
        ((10**6, 1000, 64), {"init": "k-means++"}, "seeding"),
        ((10**8, 100, 64), {"n_resamples": 0, "n_splits": 100}, "splitting"),
    ],
)
def test_a_level_is_refused_for_the_stage_that_takes_most(
    shape: tuple[int, int, int], settings: dict[str, Any], stage: str
) -> None:
    stages = project_level(*shape, **{"init": "coreset", "n_resamples": 1, "r": shape[0] // shape[1] // 2, **settings})
    with pytest.raises(ComputeError, match=f"for level 3, {stage} takes") as caught:
        check_fits(stages, budget_within(512 * MIB), "level 3")
    need = number_needed(str(caught.value))
    check_fits(stages, budget_within(need * MIB), "level 3")
    with pytest.raises(ComputeError):
        check_fits(stages, budget_within((need - 2) * MIB), "level 3")


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
    check_fits(stages, budget_within(20 << 30), "level 1")
    with pytest.raises(ComputeError, match="splitting takes"):
        check_fits(project_level(743_000_000, 100_000, 1024, **settings), budget_within(20 << 30), "level 1")


def test_bytes_of_a_level_do_not_overflow() -> None:
    stages = project_level(10**9, 10**7, 1024, init="coreset", n_resamples=10, r=50, n_splits=10)
    assert all(isinstance(stage.total(1000), int) and stage.total() > 2**34 for stage in stages.values())


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
