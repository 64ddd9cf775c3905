"""Members chosen of what parts picked, against Python's sort; ties, and clusters that no task may hold."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute.cluster_runner import ClusterRunner
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArrayStore
from hkm_dask.hierarchy import candidates, external_sort
from hkm_dask.hierarchy.candidates import Candidates, choose, choose_together
from hkm_dask.hierarchy.resample import ResampleSet
from tests.compute.conftest import two_processes, workers

__all__ = ["two_processes", "workers"]

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
        of_part = ResampleSet.pick(k, r, keys[rows], labels[rows], rows)
        one = Candidates.put(of_part, store, f"picked-{i}")
        total = one if total is None else total + one
    assert total is not None
    return total


def by_sorting(labels: np.ndarray, keys: np.ndarray, r: int, k: int = 5) -> list[int]:
    groups = [sorted(np.flatnonzero(labels == c).tolist(), key=lambda i: (keys[i], i))[:r] for c in range(k)]
    return sorted(row for group in groups for row in group)


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


def test_workers_choose_the_same_and_leave_nothing(workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (candidates, external_sort):
        monkeypatch.setattr(module, "rows_at_once", lambda runner: 300)
    rng = np.random.default_rng(0)
    labels, keys = rng.integers(-1, 5, 3000).astype(np.int32), rng.integers(0, 40, 3000) / 8
    labels[:1500] = 2
    some = picked(labels, keys, 400, 3, workers.array_store)
    numbers = choose(some, 400, 3000, workers)
    expected = by_sorting(labels, keys, 400)
    assert numbers.read().tolist() == expected
    assert [numbers.position(row) for row in (0, 700, 3000)] == np.searchsorted(expected, [0, 700, 3000]).tolist()
    for scratch in (some, numbers):
        scratch.delete()
    assert not list(Path(str(workers.array_store.folder)).glob("*.npy"))
