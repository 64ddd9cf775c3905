import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data import files
from hkm_dask.errors import StoreError
from hkm_dask.hierarchy import checkpoint
from hkm_dask.hierarchy.checkpoint import Checkpoints, StepHistory
from hkm_dask.kmeans.fit import Fit
from hkm_dask.kmeans.lloyd import LloydStep
from tests.data.stores import Disk


def fit(seed: int) -> Fit:
    rng = np.random.default_rng(seed)
    return Fit(rng.normal(size=(4, 3)).astype("f4"), rng.random(6), 2, seed + 0.5)


def moved(inertia: float, *, n_relocated: int = 0, last: bool = False, near: float | None = None) -> LloydStep:
    centroids = SharedArray(array=np.full((4, 3), inertia, np.float32))
    return LloydStep(centroids, inertia, n_relocated, 0, False, last, near)


def assert_steps(steps: StepHistory, *expected: Fit) -> None:
    assert len(steps) == len(expected)
    for inertia, one in zip(steps.inertia, expected, strict=True):
        np.testing.assert_array_equal(inertia, one.inertia)
    assert steps.seconds == [one.seconds for one in expected]
    np.testing.assert_array_equal(steps.centroids, expected[-1].centroids)
    if len(expected) > 1:
        assert steps.previous is not None
        np.testing.assert_array_equal(steps.previous, expected[-2].centroids)
    else:
        assert steps.previous is None


def test_steps_come_back_in_order_level_by_level(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "work")
    assert len(checkpoints.finished(1)) == 0
    for step in range(3):
        checkpoints.finish(1, step, fit(step))
    checkpoints.finish(2, 0, fit(9))
    again = Checkpoints(tmp_path / "work")
    assert_steps(again.finished(1), *map(fit, range(3)))
    assert_steps(again.finished(2), fit(9))
    assert len(again.finished(3)) == 0


def test_centroids_of_two_steps_are_held_and_no_more(tmp_path: Path) -> None:
    checkpoints, n_steps, mib = Checkpoints(tmp_path), 12, 1 << 20
    for step in range(n_steps):
        checkpoints.finish(1, step, Fit(np.full((1 << 10, 256), step, np.float32), np.ones(3), 0, 1.0))
    tracemalloc.start()
    history = checkpoints.finished(1)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(history) == n_steps
    assert held < 2.5 * mib
    assert peak < 4.5 * mib  # the two before, the one being read, and its copy


def test_an_iteration_comes_back_with_its_history(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=0)
    assert checkpoints.interrupted(1, 0) is None
    for inertia in (9.0, 7.0, 6.5):
        checkpoints.iteration(1, 0, moved(inertia, n_relocated=3))
    again = Checkpoints(tmp_path, every=0)
    progress = again.interrupted(1, 0)
    assert progress is not None
    assert (progress.inertia, progress.relocated) == ((9.0, 7.0, 6.5), 3)
    assert (progress.centroids == 6.5).all()
    assert again.interrupted(1, 1) is None
    # What comes after is added to what was, and is gone with the step.
    assert again.interrupted(1, 0) is not None
    again.iteration(1, 0, moved(6.0))
    progress = Checkpoints(tmp_path).interrupted(1, 0)
    assert progress is not None
    assert progress.inertia == (9.0, 7.0, 6.5, 6.0)
    again.finish(1, 0, fit(0))
    assert Checkpoints(tmp_path).interrupted(1, 0) is None


def test_the_last_iteration_is_not_kept_or_one_more_would_follow(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=0)
    checkpoints.interrupted(1, 0)
    checkpoints.iteration(1, 0, moved(9.0))
    checkpoints.iteration(1, 0, moved(8.0, last=True))
    progress = Checkpoints(tmp_path).interrupted(1, 0)
    assert progress is not None
    assert progress.inertia == (9.0,)


def test_the_inertia_without_far_rows_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=0)
    for near in (None, 0.1):
        checkpoints.iteration(1, 0, moved(9.0, near=near))
        progress = Checkpoints(tmp_path).interrupted(1, 0)
        assert progress is not None
        assert progress.near_inertia == near


def test_written_now_and_then_only(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=1000)
    checkpoints.interrupted(1, 0)
    checkpoints.iteration(1, 0, moved(9.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "foreign", "partial"])
def test_what_is_damaged_is_done_again(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in range(2):
        checkpoints.finish(1, step, fit(step))
    (path,) = tmp_path.glob("*step_1.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    if damage == "partial":
        path.rename(path.with_suffix(".partial"))
    else:
        kept = {"empty": b"", "short": path.read_bytes()[:-200], "flipped": bytes(content), "foreign": b"what"}
        path.write_bytes(kept[damage])
    assert_steps(Checkpoints(tmp_path).finished(1), fit(0))


@pytest.mark.faults
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", lambda *args, **kwargs: full())
    with pytest.raises(StoreError, match=r"writing .*step_0\.npz: the disk is full"):
        Checkpoints(tmp_path).finish(1, 0, fit(0))


@pytest.mark.faults
def test_a_step_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, replace, lost = Disk(monkeypatch), os.replace, []

    def renaming(partial: Path, path: Path) -> None:
        lost.append(disk.lost(Path(partial)))
        replace(partial, path)

    monkeypatch.setattr(os, "replace", renaming)
    Checkpoints(tmp_path, every=0).finish(1, 0, fit(0))
    assert lost == [[]]


@pytest.mark.faults
def test_of_steps_that_come_fast_one_is_synced_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, now = [], [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(files, "sync", lambda path: synced.append(now[0]) if path.suffix else None)
    checkpoints = Checkpoints(tmp_path, every=20.0)
    for step in range(50):
        now[0] += 3.0
        checkpoints.finish(1, step, fit(step))
    assert synced == [121.0, 142.0, 163.0, 184.0, 205.0, 226.0, 247.0]
    assert len(Checkpoints(tmp_path).finished(1)) == 50
