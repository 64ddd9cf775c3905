"""Events: the computation only emits them, to whoever has subscribed.

Kinds and their fields:

==================  ==================================================================================================
``run_started``     ``levels`` (list of ``{n, k, d, m, r, max_iter, tol, init, n_splits}``; the first also has
                    ``n_labeled`` if it is fit on a part of all rows), ``dashboard`` (str or None)
``resumed``         ``what`` (str)
``level_started``   ``level``, ``n``, ``k``, ``m``
``step_started``    ``level``, ``step`` (0 the first k-means, 1..m resampling), ``n``, ``k``, ``max_iter``
``seeding``         ``level``, ``step``, ``phase`` (draw, choose, walk, refine), ``done``, ``total``
``iteration``       ``level``, ``step``, ``iteration``, ``inertia``, ``max_iter``, and ``n_members`` (rows that a
                    resampling from the current clusters would have) in a first k-means followed by resamplings
``step_finished``   ``level``, ``step``, ``inertia``, ``n_iter``, ``seconds``
``assigned``        ``level``, ``step``
``splitting``       ``level``, ``done``, ``total`` (clusters)
``level_finished``  ``level``, ``seconds``
``run_finished``    ``seconds``
``progress``        ``stage`` (ingest, sample, ...), ``done``, ``total``, and ``then`` if another stage follows
``compiling``       inner loops are being compiled for this processor, which takes seconds, once per installation
``compiled``        ``seconds`` that compiling one of them took, or loading it from the cache if more than a tenth
``connected``       ``dashboard``, ``page`` (addresses; the second may be None)
``note``            ``message``
``warning``         ``message``
``heartbeat``       nothing has happened for ten seconds (only from the command line, with ``--json``)
``error``           ``message`` (only from the command line, on failure)
==================  ==================================================================================================
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

#: Topic of a run's events on the Dask scheduler, and name of our page in its dashboard.
TOPIC = "hkm"


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes
    ----------
    kind : str
        Kind of event, e.g. ``"iteration"``.
    fields : mapping of str to object
        Its data, e.g. ``{"level": 1, "inertia": 12.5}``.
    time : float
        Time of the event, in seconds since the epoch.
    """

    kind: str
    fields: Mapping[str, Any]
    time: float


Callback = Callable[[Event], None]
Piece = TypeVar("Piece", bound=Sized)

_subscribers: list[Callback] = []
_lock = threading.Lock()


def emit(kind: str, /, **fields: Any) -> None:
    """Send an event to every subscriber.

    Exceptions of subscribers are logged and suppressed: a broken display must not end a run of many hours.

    Parameters
    ----------
    kind : str
        Kind of event.
    **fields : object
        Its data.

    Examples
    --------
    >>> with subscribe(lambda event: print(event.kind, dict(event.fields))):
    ...     emit("assigned", level=1, step=0)
    assigned {'level': 1, 'step': 0}
    """
    with _lock:
        callbacks = tuple(_subscribers)
    if not callbacks:
        return
    event = Event(kind, fields, clock.time())
    for callback in callbacks:
        try:
            callback(event)
        except Exception:
            logger.warning("a subscriber failed on the event %r; the computation continues", kind, exc_info=True)


@contextmanager
def subscribe(callback: Callback) -> Iterator[None]:
    """Call ``callback(event)`` on every event while the context is open.

    The callback runs in the thread that emits, so it should be fast and thread-safe.

    Parameters
    ----------
    callback : callable
        Takes one `Event`; its exceptions are logged and suppressed.

    Examples
    --------
    >>> seen = []
    >>> with subscribe(seen.append):
    ...     emit("progress", stage="ingest", done=1, total=4)
    >>> emit("progress", stage="ingest", done=2, total=4)
    >>> [event.fields["done"] for event in seen]
    [1]
    """

    # One wrapper per subscription, so that a callback subscribed twice is removed one subscription at a time.
    def entry(event: Event) -> None:
        callback(event)

    with _lock:
        _subscribers.append(entry)
    try:
        yield
    finally:
        with _lock:
            _subscribers.remove(entry)


def counted(pieces: Iterable[Piece], stage: str, total: int) -> Iterator[Piece]:
    """Yield the pieces of rows unchanged, emitting the progress of a `stage` while there are more to come.

    >>> seen = []
    >>> with subscribe(seen.append):
    ...     pieces = [len(piece) for piece in counted([[1, 2], [3], [4, 5]], "ids", 5)]
    >>> [event.fields["done"] for event in seen]
    [2, 3]
    """
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        if done < total:
            emit("progress", stage=stage, done=done, total=total)
