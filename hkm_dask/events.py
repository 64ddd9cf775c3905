"""Events of a computation, which emits them without knowing who has subscribed.

Kinds and their fields:

==================  ==================================================================================================
``run_started``     ``levels`` (list of ``{n, k, d, m, r, max_iter, tol, init, n_splits}``; the first also has
                   ``n_labeled`` if it is fit on a sample of the rows), ``dashboard`` (str or None)
``resumed``         ``what`` (str)
``level_started``   ``level``, ``n``, ``k``, ``m``
``step_started``    ``level``, ``step`` (0 the first k-means, 1..m resampling), ``n``, ``k``, ``max_iter``
``seeding``         ``level``, ``step``, ``phase`` (draw, choose, walk, refine), ``done``, ``total``
``iteration``       ``level``, ``step``, ``iteration``, ``inertia``, ``max_iter``, and in a first k-means followed by
                   resampling ``n_members`` (rows that resampling from the current clusters would have)
``step_finished``   ``level``, ``step``, ``inertia``, ``n_iter``, ``seconds``
``assigned``        ``level``, ``step``
``splitting``       ``level``, ``done``, ``total`` (clusters)
``level_finished``  ``level``, ``seconds``
``run_finished``    ``seconds``
``progress``        ``stage`` (ingest, sample, ...), ``done``, ``total``, and ``then`` if other work follows
``compiling``       inner loops are being compiled for this processor, for seconds, once after each installation
``compiled``        ``seconds`` for compiling or loading one of them, if more than 0.1
``connected``       ``dashboard``, ``page`` (URLs; the second may be None)
``note``            ``message``
``warning``         ``message``
``heartbeat``       nothing has happened for ten seconds (only from the command line, with ``--json``)
``error``           ``message`` (only from the command line, when it fails)
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

#: Topic of a run's events among those of a Dask scheduler, and name of this package's page in its dashboard.
TOPIC = "hkm"


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes
    ----------
    kind : str
            Kind of event, such as ``"iteration"``.
        fields : mapping of str to object
            Its data, such as ``{"level": 1, "inertia": 12.5}``.
        time : float
            Time in seconds since the epoch.
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

    Exceptions of subscribers are logged and ignored: a broken display must not end a run of many hours.

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
            logger.warning("a subscriber failed on the event %r; the computation goes on", kind, exc_info=True)


@contextmanager
def subscribe(callback: Callback) -> Iterator[None]:
    """Call ``callback(event)`` for every event while the context is open.

    It is called in the thread that emits the event, so it should be fast and thread-safe.

    Parameters
    ----------
    callback : callable
            Takes one `Event`; its exceptions are logged and ignored.

    Examples
    --------
    >>> seen = []
    >>> with subscribe(seen.append):
    ...     emit("progress", stage="ingest", done=1, total=4)
    >>> emit("progress", stage="ingest", done=2, total=4)
    >>> [event.fields["done"] for event in seen]
    [1]
    """

    # A separate wrapper per subscription, so that a callback subscribed twice is removed one at a time.
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
    """Pass pieces of rows through, emitting the progress of a `stage` while there is more to come.

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
