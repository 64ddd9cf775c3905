"""One writer per store in an object store: a lock object, written conditionally and renewed while it is held."""

from __future__ import annotations

import errno
import itertools
import json
import socket
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import psutil

from hkm_dask.data.objects import ObjectPath
from hkm_dask.errors import StoreError
from hkm_dask.untrusted import parse_json

#: A lock that was not renewed for this many seconds, by the store's clock, has expired.
LEASE_SECONDS = 60.0
RENEW_SECONDS = LEASE_SECONDS / 4

_held: dict[ObjectPath, _Lease] = {}


class _Lease:
    """A lock object held by this process, and the thread that renews it."""

    def __init__(self, target: ObjectPath) -> None:
        me = psutil.Process()
        self._place, self._target = target.with_name(f".{target.name}.lock"), target
        self._own = {
            "pid": me.pid,
            "started": me.create_time(),
            "host": socket.gethostname(),
            "lease": uuid.uuid4().hex,
        }
        self._count, self._lock, self._done = itertools.count(), threading.Lock(), threading.Event()
        self._e_tag = _acquire(self._place, target, self._content())
        self._thread = threading.Thread(target=self._keep, name="hkm-lock", daemon=True)
        self._thread.start()

    def _content(self) -> bytes:
        """Return the lock's content; it changes with every renewal, as an object's tag depends on it."""
        return json.dumps({**self._own, "renewal": next(self._count)}).encode()

    def _keep(self) -> None:
        while not self._done.wait(RENEW_SECONDS):
            # If the store does not answer now, it may answer next time; completing a store checks the lock again.
            with suppress(StoreError):
                self.renew()

    def renew(self) -> None:
        """Extend the lease; StoreError if another process has taken the lock."""
        with self._lock:
            if self._e_tag is None:
                return
            try:
                self._e_tag = self._write(self._e_tag)
            except (FileExistsError, FileNotFoundError) as error:
                raise StoreError(
                    f"{self._target} was taken over by another process meanwhile; this run ends"
                ) from error

    def _write(self, e_tag: str) -> str:
        try:
            return self._place.write_if(self._content(), e_tag)
        except FileExistsError:
            e_tag, _, holder = _holder(self._place)
            if holder.get("lease") != self._own["lease"]:
                raise
            return self._place.write_if(self._content(), e_tag)  # the response to an earlier renewal was lost

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        with suppress(StoreError, FileNotFoundError):  # otherwise it expires within a minute
            self.renew()
            self._place.unlink()


@contextmanager
def lease(target: ObjectPath) -> Iterator[None]:
    """Keep all other processes from building the same store, by the object ``.NAME.lock`` beside it.

    The lock is renewed while it is held. A lock is taken over if its process has died on this machine, or if it was not
    renewed for `LEASE_SECONDS`. StoreError, with its id and host, if another process holds it.
    """
    held = _held[target] = _Lease(target)
    try:
        yield
    finally:
        del _held[target]
        held.release()


def check_lease(place: ObjectPath) -> None:
    """Refuse, with a StoreError, to complete the store at `place` if this process held its lock but lost it."""
    for target, held in list(_held.items()):
        if place in (target, target.with_name(f"{target.name}.wip")) or target in place.parents:
            held.renew()


def _acquire(place: ObjectPath, target: ObjectPath, content: bytes) -> str | None:
    """Write the lock and return its tag; None if the store does not support conditional writes."""
    for _ in range(3):
        try:
            return place.write_if(content)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            warnings.warn(f"{place.bucket} does not support locks: do not start a second run on {target}", stacklevel=5)
            place.write_bytes(content)
            return None
        try:
            e_tag, age, holder = _holder(place)
        except FileNotFoundError:
            continue
        if holder == parse_json(content):
            return e_tag  # the response to the first attempt was lost, and the library retried
        if not (_is_dead(holder) or age > LEASE_SECONDS):
            break
        with suppress(FileExistsError, FileNotFoundError):  # another process was faster
            return place.write_if(content, e_tag)
    else:
        holder, age = {}, 0.0
    who = f"pid {holder['pid']} on host {holder['host']}" if {"pid", "host"} <= set(holder) else "another process"
    raise StoreError(
        f"{target} is being written by {who}, last active {age:.0f} s ago; wait for it to end, or stop it: "
        f"{LEASE_SECONDS:.0f} s later the store is free"
    )


def _holder(place: ObjectPath) -> tuple[str, float, dict[str, Any]]:
    """Return the tag of the lock, its age by the store's clock, and its holder."""
    state, content = place.state(), place.read_bytes()
    try:
        parsed = parse_json(content)
    except ValueError:
        parsed = {}
    return (
        state["e_tag"],
        (_now(place) - state["last_modified"]).total_seconds(),
        parsed if isinstance(parsed, dict) else {},
    )


def _now(place: ObjectPath) -> datetime:
    """Return the time by the store's clock, which may differ from ours."""
    probe = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    probe.write_bytes(b"")
    try:
        now: datetime = probe.state()["last_modified"]
    finally:
        probe.unlink()
    return now


def _is_dead(holder: dict[str, Any]) -> bool:
    """Tell whether the holder is a process of this machine that has ended."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        started = psutil.Process(holder["pid"]).create_time()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
    return started != holder.get("started")
