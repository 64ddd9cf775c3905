"""Messages from a running task on a worker of a Dask cluster to the process that waits for its result."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

#: Seconds between two messages to the scheduler.
_SEND_EVERY = 0.1


class Listener:
    """Receives messages of tasks, one task at a time, until it is closed.

    It has a thread of its own, as the receiver may use the client, whose thread would otherwise wait for itself.
    """

    def __init__(self, client: Client) -> None:
        self._client, self._topic = client, f"hkm-told-{uuid.uuid4().hex}"
        self._name, self._hear = "", _ignore
        self._thread = ThreadPoolExecutor(1, "hkm-hear")
        client.subscribe_topic(self._topic, self._receive)

    def close(self) -> None:
        """Stop receiving."""
        with suppress(Exception):  # the client or the scheduler may be closed already
            self._client.unsubscribe_topic(self._topic)
        self._thread.shutdown()

    @contextmanager
    def to(self, task: Callable[..., Any], hear: Callable[..., None]) -> Iterator[Callable[[Any], Any]]:
        """Wrap ``task(item, tell=...)`` as a function of an item, and call `hear` with what it tells.

        The scheduler forwards messages before the result, so all have been received when the context ends.
        """
        self._name, self._hear = uuid.uuid4().hex, hear
        try:
            yield partial(_run_telling, task, self._topic, self._name)
        finally:
            self._thread.submit(lambda: None).result()  # runs after everything queued
            self._name, self._hear = "", _ignore  # a client keeps this listener, which must keep nothing of a run

    def _receive(self, event: tuple[float, Any]) -> None:
        name, messages = event[1]
        if name == self._name:  # not from a worker that was considered dead
            for values in messages:
                self._thread.submit(self._hear, *values)


def _ignore(*values: Any) -> None:
    """Hear nothing."""


def _run_telling(task: Callable[..., Any], topic: str, name: str, item: Any) -> Any:
    """Run a task on a worker; its messages are sent a few times a second."""
    from distributed import get_worker

    worker, waiting, last = get_worker(), list[tuple[Any, ...]](), time.monotonic()

    def tell(*values: Any) -> None:
        nonlocal waiting, last
        waiting.append(values)
        if time.monotonic() - last > _SEND_EVERY:
            worker.log_event(topic, (name, waiting))
            waiting, last = [], time.monotonic()

    try:
        return task(item, tell=tell)
    finally:
        if waiting:
            worker.log_event(topic, (name, waiting))
