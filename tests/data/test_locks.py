"""Only one process writes a store; another is told which one."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hkm_dask.data import locks
from hkm_dask.data.locks import lock
from hkm_dask.errors import StoreError
from tests.data.stores import ROOT, Flaky

HOLD = """
import sys
from hkm_dask.data.locks import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.faults
def test_a_second_writer_is_refused_naming_the_first(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "a.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"written by pid {holder.pid} on host {socket.gethostname()}; wait"):
            lock(target).__enter__()
        holder.kill()
    # The dead leave nothing to clean.
    with lock(target):
        assert [path.name for path in target.parent.iterdir()] == [".a.zarr.lock"]
    assert not list(target.parent.iterdir())


def test_locks_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with lock(tmp_path / "a"):
        with pytest.raises(StoreError, match=f"pid {os.getpid()}"):
            lock(tmp_path / "a").__enter__()
        with lock(tmp_path / "b"):
            pass
    with lock(tmp_path / "a"):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever held it before removes the file, maybe after it was opened here and before it is locked."""
    file, flock, removed = tmp_path / ".a.lock", locks.fcntl.flock, []

    def late(fd: int, operation: int) -> None:
        if not removed:
            file.unlink()
            removed.append(True)
        flock(fd, operation)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with lock(tmp_path / "a"):
        assert removed
        with pytest.raises(StoreError, match="being written"):
            lock(tmp_path / "a").__enter__()


@pytest.mark.faults
def test_a_link_planted_after_the_look_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "victim").write_text("precious")
    monkeypatch.setattr(locks, "check_own", lambda path: path.symlink_to(tmp_path / "victim"))
    with pytest.raises(StoreError, match="symbolic links"):
        lock(tmp_path / "a").__enter__()
    assert (tmp_path / "victim").read_text() == "precious"


def test_where_nothing_can_be_written_the_lock_says_so_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written|failed: "):
        lock(tmp_path / "file" / "a.zarr").__enter__()
    monkeypatch.setattr(os, "open", Flaky(os.open, 1, errno.EROFS))
    with pytest.raises(StoreError, match="Read-only file system; check the path and its permissions"):
        lock(tmp_path / "a.zarr").__enter__()


def test_a_file_system_without_locks_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", Flaky(lambda *args: None, 1, errno.ENOSYS))
    with pytest.warns(UserWarning, match="does not support locks"), lock(tmp_path / "a.zarr"):
        pass


@pytest.mark.faults
def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", Flaky(os.pwrite, 9, errno.ENOSPC))
    with lock(tmp_path / "a.zarr"), pytest.raises(StoreError, match="is being written by another process"):
        with lock(tmp_path / "a.zarr"):
            pass
    assert not list(tmp_path.iterdir())
