"""Streams and events. Operations run at once, but missing synchronization is detected.

Every stream and event has a vector clock: the progress of each stream that it knows of. Two operations on the same
bytes of device memory, one of them a write, must be ordered by these clocks; otherwise a GPU might run them in either
order. Copies from and to pinned memory are deferred until something waits for them, to reveal buffers used too early.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from tests.emulated import costs

Clock = dict[int, int]


class StreamRaceError(RuntimeError):
    """Two streams used the same memory without synchronization."""


class Access(NamedTuple):
    """One use of some bytes of an allocation, by operation number `tick` of a stream."""

    low: int
    high: int
    stream: int
    tick: int
    writes: bool


_lock = threading.RLock()
_numbers = itertools.count()
_streams: dict[int, Stream] = {}
_host: Clock = {}  # operations known to be complete
#: Whether a failing kernel destroys the context, as on a device; and the error of all later calls.
loses_context = False
lost: Exception | None = None


def raise_if_lost() -> None:
    """Raise the error that every call to a lost context gives."""
    if lost is not None:
        raise lost


def _merge(into: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        into[stream] = max(into.get(stream, 0), tick)


class Event:
    """A point in a stream."""

    def __init__(self, block: bool = True, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._clock: Clock | None = None
        self._of_null = False
        self._time = 0.0

    @property
    def done(self) -> bool:
        return self._clock is None or all(_host.get(stream, 0) >= tick for stream, tick in self._clock.items())

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or get_current_stream()
        with _lock:
            stream._begin()
            self._clock = dict(stream._clock)
            self._of_null = stream is Stream.null
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        if self._clock is not None:
            if self._of_null:
                costs.synchronized()
            _arrive(self._clock)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return the milliseconds between two recorded events."""
    return 1e3 * (end_event._time - start_event._time)


class Stream:
    """A queue of work."""

    null: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int = 0) -> None:
        self._number = next(_numbers)
        self._non_blocking = non_blocking
        self._clock: Clock = {}
        self._pending: list[tuple[int, Callable[[], None]]] = []
        _streams[self._number] = self

    def __enter__(self) -> Self:
        return self.use()

    def __exit__(self, *error: object) -> None:
        _entered.streams.pop()

    def use(self) -> Self:
        _entered.streams.append(self)
        return self

    def _begin(self) -> int:
        """Begin an operation after those the host knows of, and those ordered by a null stream; return its number."""
        self._clock[self._number] = self._clock.get(self._number, 0) + 1
        _merge(self._clock, _host)
        if self is Stream.null:
            for other in list(_streams.values()):
                if not other._non_blocking:
                    _merge(self._clock, other._clock)
        elif not self._non_blocking:
            _merge(self._clock, Stream.null._clock)
        return self._clock[self._number]

    def _put_off(self, tick: int, work: Callable[[], None]) -> None:
        self._pending.append((tick, work))

    def _catch_up(self, tick: int) -> None:
        """Run deferred work up to an operation."""
        while self._pending and self._pending[0][0] <= tick:
            self._pending.pop(0)[1]()

    @property
    def done(self) -> bool:
        return not self._pending

    def synchronize(self) -> None:
        if self is Stream.null:  # other streams are awaited by separate threads, or at the end of a pass
            costs.synchronized()
        with _lock:
            self._begin()
            _arrive(self._clock)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if event._clock is None:
            raise ValueError("the event should be recorded before a stream waits for it: CUDA would not wait at all")
        with _lock:
            _catch_up(event._clock)
            _merge(self._clock, event._clock)


class _Entered(threading.local):
    """The streams each thread has made current."""

    def __init__(self) -> None:
        self.streams = [Stream.null]


Stream.null = Stream(null=True)
_entered = _Entered()


def get_current_stream(device_id: int = -1) -> Stream:
    return _entered.streams[-1]


def _catch_up(clock: Clock) -> None:
    for stream, tick in clock.items():
        _streams[stream]._catch_up(tick)


def _arrive(clock: Clock) -> None:
    """Record for the host that all operations of a clock are complete."""
    with _lock:
        _catch_up(clock)
        _merge(_host, clock)


def synchronize_device() -> None:
    """Wait for all streams."""
    raise_if_lost()
    for stream in list(_streams.values()):
        stream.synchronize()


def operate(
    uses: list[tuple[Any, int, int, bool]], stream: Stream | None = None, work: Callable[[], None] | None = None
) -> None:
    """Record an operation on a stream, by default the current one.

    Parameters
    ----------
    uses : list of (Memory, int, int, bool)
        Allocation, first address, end address, and whether it is written to.
    stream : Stream, optional
    work : callable, optional
        Work deferred until something waits for the operation; by default the caller does the work at once.

    Raises
    ------
    StreamRaceError
        If another stream uses the memory without synchronization.
    """
    raise_if_lost()
    with _lock:
        stream = stream or get_current_stream()
        tick = stream._begin()
        if work is None:
            _catch_up(stream._clock)
        else:
            stream._put_off(tick, work)
        for memory, low, high, writes in uses:
            kept = []
            for one in memory.accesses:
                apart = one.high <= low or high <= one.low
                ordered = stream._clock.get(one.stream, 0) >= one.tick
                if not (apart or ordered) and (writes or one.writes):
                    raise StreamRaceError(
                        f"stream {stream._number} {'writes' if writes else 'reads'} memory that stream {one.stream} "
                        f"{'writes' if one.writes else 'reads'}, and does not wait for it"
                    )
                covered = low <= one.low and one.high <= high
                if not (covered and ordered and (writes or not one.writes)):
                    kept.append(one)
            memory.accesses = [*kept, Access(low, high, stream._number, tick, writes)]
