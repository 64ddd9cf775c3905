"""One writer for one store: a lock on a file beside it, which ends with the process that holds it."""

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
# What a file system answers that knows no flock: some network mounts.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep every other process from building the same store meanwhile.

    It is a ``flock`` on a hidden file beside `path`, whose folder is made where it is missing: it ends with the process
    that holds it, however that ends. For an object store see `leases.lease`. StoreError where another process holds it,
    naming its id and host.
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
        # Unlinked while still held: whoever opened it before sees that its file is gone, and opens it again.
        file.unlink(missing_ok=True)
        os.close(fd)


def check_lock(place: Location) -> None:
    """Refuse, with a StoreError, to complete a store whose lock was lost; that of a disk cannot be."""
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
            warnings.warn(f"{file.parent} knows no locks: start no second run on {target}", stacklevel=4)
        try:
            if os.fstat(fd).st_ino == file.stat().st_ino:
                with suppress(OSError):  # on a full disk nobody is told who holds it
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"pid {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)
