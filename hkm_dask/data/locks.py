"""One writer per store: a lock on a file beside it, which is released when the process that holds it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hkm_dask.data.files import careful, check_own, make_folder
from hkm_dask.data.leases import check_lease, lease
from hkm_dask.data.objects import Location, ObjectPath, location
from hkm_dask.errors import StoreError

_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
# Errors of file systems without flock, such as some network mounts.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep all other processes from building the same store.

    The lock is a ``flock`` on a hidden file beside `path`, whose folder is created if missing; it is released when the
    process ends, however it ends. For object stores see `leases.lease`. StoreError, with its
    id and host, if another process holds the lock.
    """
    target = location(path).absolute()
    if isinstance(target, ObjectPath):
        with lease(target):
            yield
        return
    file = target.with_name(f".{target.name}.lock")
    try:
        make_folder(file.parent)
        fd = _acquire(file, target)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}; give a path in a folder") from error
    try:
        yield
    finally:
        # Unlinked while still held: a process that opened it before finds its file gone, and opens it again.
        file.unlink(missing_ok=True)
        os.close(fd)


def check_lock(place: Location) -> None:
    """Refuse, with a StoreError, to complete a store whose lock was lost, as can happen in an object store."""
    if isinstance(place, ObjectPath):
        check_lease(place)


def _acquire(file: Path, target: Path) -> int:
    while True:
        check_own(file)
        fd = careful(lambda: os.open(file, _OPEN, 0o666), f"locking {target}")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 300, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise StoreError(f"{target} is being written by {holder}; wait for it to end, or stop it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                raise StoreError(f"locking {target} failed: {error.strerror}; check the disk") from error
            warnings.warn(f"{file.parent} does not support locks: do not start a second run on {target}", stacklevel=4)
        try:
            if os.fstat(fd).st_ino == file.stat().st_ino:
                with suppress(OSError):  # on a full disk, the holder is not recorded
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"pid {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)
