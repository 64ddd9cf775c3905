import errno
import os
from pathlib import Path

import numpy as np
import pytest

from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.errors import StoreError
from hkm_dask.hierarchy.checkpoint import Checkpoints
from hkm_dask.kmeans.fit import Fit
from hkm_dask.kmeans.lloyd import LloydStep


def fit(seed: int) -> Fit:
    rng = np.random.default_rng(seed)
    return Fit(rng.normal(size=(4, 3)).astype("f4"), rng.random(6), 2, 1.5)


def moved(inertia: float, *, n_relocated: int = 0, last: bool = False) -> LloydStep:
    centroids = SharedArray(array=np.full((4, 3), inertia, np.float32))
    return LloydStep(centroids, inertia, n_relocated, 0, False, last)


def equal(one: Fit, other: Fit) -> bool:
    same = np.array_equal(one.centroids, other.centroids) and np.array_equal(one.inertia, other.inertia)
    return same and (one.n_relocated, one.seconds) == (other.n_relocated, other.seconds)


def test_steps_come_back_in_order_level_by_level(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "work")
    assert checkpoints.finished(1) == []
    for step in range(3):
        checkpoints.finish(1, step, fit(step))
    checkpoints.finish(2, 0, fit(9))
    again = Checkpoints(tmp_path / "work")
    assert [equal(found, fit(step)) for step, found in enumerate(again.finished(1))] == [True] * 3
    assert [equal(found, fit(9)) for found in again.finished(2)] == [True]
    assert again.finished(3) == []


def test_an_iteration_comes_back_with_its_history(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=0)
    assert checkpoints.interrupted(1, 0) is None
    for inertia in (9.0, 7.0, 6.5):
        checkpoints.iteration(1, 0, moved(inertia, n_relocated=3))
    again = Checkpoints(tmp_path, every=0)
    found = again.interrupted(1, 0)
    assert found is not None
    assert (found.inertia, found.relocated) == ((9.0, 7.0, 6.5), 3)
    assert (found.centroids == 6.5).all()
    assert again.interrupted(1, 1) is None
    # What comes after is added to what was, and is gone with the step.
    assert again.interrupted(1, 0) is not None
    again.iteration(1, 0, moved(6.0))
    found = Checkpoints(tmp_path).interrupted(1, 0)
    assert found is not None
    assert found.inertia == (9.0, 7.0, 6.5, 6.0)
    again.finish(1, 0, fit(0))
    assert Checkpoints(tmp_path).interrupted(1, 0) is None


def test_the_last_iteration_is_not_kept_or_one_more_would_follow(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=0)
    checkpoints.interrupted(1, 0)
    checkpoints.iteration(1, 0, moved(9.0))
    checkpoints.iteration(1, 0, moved(8.0, last=True))
    found = Checkpoints(tmp_path).interrupted(1, 0)
    assert found is not None
    assert found.inertia == (9.0,)


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
    found = Checkpoints(tmp_path).finished(1)
    assert [equal(step, fit(0)) for step in found] == [True]


@pytest.mark.faults
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", lambda *args, **kwargs: full())
    with pytest.raises(StoreError, match=r"writing .*step_0\.npz: the disk is full"):
        Checkpoints(tmp_path).finish(1, 0, fit(0))
