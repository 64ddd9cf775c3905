"""Bytes a step needs: by hand, at sizes no machine has, and refused with the number that would do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute import memory
from hkm_dask.compute.memory import block_bytes, fold_bytes, threads_that_fit, tile_rows
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
    have = 100 * MIB
    with pytest.raises(ComputeError) as caught:
        threads_that_fit(have, 4, 100_000, 1024)
    message = str(caught.value)
    assert "n_clusters=100000 of 1024 features" in message
    assert f"memory_limit={(have + memory.PROCESS_BASE_BYTES) // MIB}MiB" in message
    need = int(message.split("at least ")[1].split("MiB")[0]) * MIB + MIB
    assert threads_that_fit(need - memory.PROCESS_BASE_BYTES, 4, 100_000, 1024) == 1


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
