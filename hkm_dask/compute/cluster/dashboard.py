"""Client side of this package's page in the Dask dashboard: adds the page, and sends the events of a run to it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin
from weakref import WeakSet

from hkm_dask.events import TOPIC, Event, subscribe
from hkm_dask.version import __version__

if TYPE_CHECKING:
    from distributed import Client

#: Seconds between two messages to the scheduler, and for sending the last one.
_SEND_EVERY, _SEND_LAST_WITHIN = 0.4, 10
#: Kinds of events of which only the first of a stage and the newest matter.
_SUPERSEDED = ("seeding", "splitting", "progress")

_sending_for: WeakSet[Client] = WeakSet()
logger = logging.getLogger(__name__)


def add_page(client: Client) -> str | None:
    """Add this package's page to the scheduler's dashboard, unless it is there; returns its URL.

    None if there is no dashboard, or the scheduler lacks this version of the package: no run depends on the page.
    """

    # Nested, so that it is pickled by value, as the scheduler may not have this module.
    def add(version: str, dask_scheduler: Any) -> bool:
        from importlib import import_module

        try:
            if import_module("hkm_dask").__version__ == version:
                return bool(import_module("hkm_dask.view.dashboard").add_to(dask_scheduler))
        except ImportError:
            pass
        return False

    try:
        link = client.dashboard_link
        return urljoin(link, TOPIC) if link and client.run_on_scheduler(add, __version__) else None
    except Exception:  # whatever another version of Dask or Bokeh, or a scheduler that refuses pickles, raises
        logger.info("the dashboard has no page for runs", exc_info=True)
        return None


class EventSender:
    """Sends events of this process to the scheduler, at most a few times a second, until it is closed.

    If there are several for one client, only the first one sends. Nothing waits for it, and failures are ignored.
    """

    def __init__(self, client: Client) -> None:
        from tornado.ioloop import PeriodicCallback

        self._client, self._sends = client, client not in _sending_for
        if not self._sends:
            return
        _sending_for.add(client)
        self._waiting: list[Event] = []
        self._lock, self._sending = threading.Lock(), asyncio.Lock()
        self._subscription = subscribe(self._hear)
        self._subscription.__enter__()
        self._timer = PeriodicCallback(self._send, 1000 * _SEND_EVERY)
        client.loop.add_callback(self._timer.start)  # type: ignore[union-attr]

    def close(self) -> None:
        """Send remaining events, and stop."""
        if not self._sends:
            return
        self._sends = False
        self._subscription.__exit__(None, None, None)
        self._hear(Event("closed", {}, time.time()))
        _sending_for.discard(self._client)
        with suppress(Exception):  # the client or the scheduler may be closed already
            self._client.loop.add_callback(self._timer.stop)  # type: ignore[union-attr]
            self._client.sync(self._send, callback_timeout=_SEND_LAST_WITHIN)

    def _hear(self, event: Event) -> None:
        with self._lock:
            before = self._waiting[-1] if self._waiting else None
            if before and event.kind == before.kind and event.kind in _SUPERSEDED and before.fields["done"] != 0:
                self._waiting.pop()
            self._waiting.append(event)

    async def _send(self) -> None:
        async with self._sending:  # one message at a time, to keep them in order
            with self._lock:
                events, self._waiting = self._waiting, []
            if events:
                message = [[event.kind, event.time, dict(event.fields)] for event in events]
                plain = json.loads(json.dumps(message, default=str))
                with suppress(Exception):  # a lost scheduler is reported where results are awaited
                    await self._client.scheduler.log_event(topic=TOPIC, msg=plain)  # type: ignore[union-attr]
