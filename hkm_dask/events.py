"""What happened, emitted only: the computation tells, and whoever subscribed listens.

Kinds and their fields:

==================  ==================================================================================================
``run_started``     ``levels`` (list of ``{n, k, d, m, r, max_iter, tol, init, n_splits}``, of the first ``n_labeled``,
                    too, where that is fit on some rows of all), ``dashboard`` (str or None)
``resumed``         ``what`` (str)
``level_started``   ``level``, ``n``, ``k``, ``m``
``step_started``    ``level``, ``step`` (0 the first k-means, 1..m resampling), ``n``, ``k``, ``max_iter``
``seeding``         ``level``, ``step``, ``phase`` (draw, choose, walk, refine), ``done``, ``total``
``iteration``       ``level``, ``step``, ``iteration``, ``inertia``, ``max_iter``, and ``n_members`` (rows that a
                    resampling from the present clusters would have) in a first k-means that resamplings follow
``step_finished``   ``level``, ``step``, ``inertia``, ``n_iter``, ``seconds``
``assigned``        ``level``, ``step``
``splitting``       ``level``, ``done``, ``total`` (clusters)
``level_finished``  ``level``, ``seconds``
``run_finished``    ``seconds``
``progress``        ``stage`` (ingest, sample, ...), ``done``, ``total``, and ``then`` where more follows than that
``compiling``       inner loops are compiled for this processor, which takes seconds: once after each installation
``compiled``        ``seconds`` that one of them took, or to read it where it was kept, if more than a tenth
``connected``       ``dashboard``, ``page`` (addresses; the second may be None)
``note``            ``message``
``warning``         ``message``
``heartbeat``       nothing has happened for ten seconds (of the command line only, with ``--json``)
``error``           ``message`` (of the command line only, where it fails)
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

#: Topic, among the events of a Dask scheduler, of those a run sends there; and the name of our page in its dashboard.
TOPIC = "hkm"


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes
    ----------
    kind : str
        What it is, e.g. ``"iteration"``.
    fields : mapping of str to object
        What goes with it, e.g. ``{"level": 1, "inertia": 12.5}``.
    time : float
        When, in seconds since the epoch.
    """

    kind: str
    fields: Mapping[str, Any]
    time: float


Callback = Callable[[Event], None]
Piece = TypeVar("Piece", bound=Sized)

_subscribers: list[Callback] = []
_lock = threading.Lock()


def emit(kind: str, /, **fields: Any) -> None:
    """Tell every subscriber that something happened.

    What a subscriber raises is logged and goes no further: a broken display must not cost a run of many hours.

    Parameters
    ----------
    kind : str
        What happened.
    **fields : object
        What goes with it.

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
    """Have ``callback(event)`` called on every event while the context is open.

    It is called in the thread that emits, so it should be quick, and safe to call from several threads.

    Parameters
    ----------
    callback : callable
        Takes one `Event`; what it raises is logged and dropped.

    Examples
    --------
    >>> seen = []
    >>> with subscribe(seen.append):
    ...     emit("progress", stage="ingest", done=1, total=4)
    >>> emit("progress", stage="ingest", done=2, total=4)
    >>> [event.fields["done"] for event in seen]
    [1]
    """

    # A wrapper of its own per subscription, so that one callback subscribed twice is removed once at a time.
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
    """Pass pieces of rows on, and tell as progress of a `stage` how many of all are done while there are more to come.

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
