"""Members chosen from those of all parts, against Python's sort; with ties, and clusters too large for a task."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArrayStore
from hkm_dask.hierarchy import candidates
from hkm_dask.hierarchy.candidates import Candidates, choose, choose_together, pick
from hkm_dask.hierarchy.sorting import external_sort

MEMBERS = st.lists(
    st.tuples(st.sampled_from([-1, 0, 1, 1, 1, 1, 2, 4]), st.sampled_from([0.0, 0.1, 0.1, 7.0, 1e-300])),
    min_size=1, max_size=80,
)  # fmt: skip


def picked(
    labels: np.ndarray, keys: np.ndarray, r: int, n_parts: int, store: SharedArrayStore, k: int = 5
) -> Candidates:
    """What `n_parts` parts of the rows pick."""
    total = None
    for i, rows in enumerate(np.array_split(np.arange(len(labels)), n_parts)):
        (of_part,) = pick(k, r, keys[rows], labels[rows], range(rows[0] if len(rows) else 0, len(labels)))
        one = Candidates.put(of_part, k, store, f"picked-{i}")
        total = one if total is None else total + one
    assert total is not None
    return total


def by_sorting(labels: np.ndarray, keys: np.ndarray, r: int, k: int = 5) -> list[int]:
    groups = [sorted(np.flatnonzero(labels == c).tolist(), key=lambda i: (keys[i], i))[:r] for c in range(k)]
    return sorted(row for group in groups for row in group)


@given(MEMBERS, st.integers(1, 4), st.sampled_from([1, 7, 100]))
def test_the_smallest_of_a_part_are_picked_piece_by_piece(members: list[tuple[int, float]], r: int, step: int) -> None:
    labels, keys = np.array([label for label, _ in members], np.int32), np.array([key for _, key in members])
    pieces = list(pick(5, r, keys, labels, range(30, 30 + len(labels)), step))
    assert len(pieces) == -(-len(labels) // step)
    rows = np.concatenate([piece.rows for piece in pieces]) - 30
    assert rows.tolist() == by_sorting(labels, keys, r)
    np.testing.assert_array_equal(np.concatenate([piece.keys for piece in pieces]).view(np.float64), keys[rows])
    np.testing.assert_array_equal(np.concatenate([piece.labels for piece in pieces]), labels[rows])


def test_members_take_as_much_room_as_there_are_however_many_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    n, k = 50_000, 2000
    labels, keys = rng.integers(0, k, n).astype(np.int32), rng.random(n)
    tracemalloc.start()
    (picked,) = pick(k, 20_000, keys, labels, range(n))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(picked.rows) == n
    assert peak < 100 * n  # 16 * k * r would be 640 MB


@example([(0, 0.0)] * 4, 4, 1, 3)  # no task may hold the one cluster, of which all are chosen
@example([(0, 0.0)] * 6, 2, 4, 3)  # or not all
@given(MEMBERS, st.integers(1, 30), st.integers(1, 4), st.sampled_from([3, 10, 1000]))
def test_the_smallest_of_each_cluster_are_chosen(
    members: list[tuple[int, float]], r: int, n_parts: int, at_once: int
) -> None:
    labels, keys = np.array([label for label, _ in members], np.int32), np.array([key for _, key in members])
    expected, store = by_sorting(labels, keys, r), SharedArrayStore()
    some = picked(labels, keys, r, n_parts, store)
    assert choose_together(some, r, store, "numbers").read().tolist() == expected
    if not some.n_rows:
        return
    with Runner(n_threads=2) as runner, pytest.MonkeyPatch.context() as patch:
        for module in (candidates, external_sort):
            patch.setattr(module, "rows_at_once", lambda runner: at_once)
        assert choose(some, r, len(labels), runner).read().tolist() == expected
