"""Streams and events. What a stream is told to do happens at once, but what was not told to wait is found out.

Every stream and event carries a vector clock: how far it knows each stream to have come. Two operations on the same
bytes of device memory, one of them a write, should be ordered by these clocks, or a GPU might run them in either order.
Copies from and to pinned memory are put off until something waits for them, so that a buffer used too early shows.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Self

Clock = dict[int, int]


class StreamRaceError(RuntimeError):
    """Two streams use the same memory without one waiting for the other."""


class Access(NamedTuple):
    """One use of some bytes of an allocation, by what a stream did as its operation number `tick`."""

    low: int
    high: int
    stream: int
    tick: int
    writes: bool


_lock = threading.RLock()
_numbers = itertools.count()
_streams: dict[int, Stream] = {}
_host: Clock = {}  # what is known to be over


def _merge(into: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        into[stream] = max(into.get(stream, 0), tick)


class Event:
    """A point in a stream."""

    def __init__(self, block: bool = True, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.clock: Clock | None = None
        self.time = 0.0

    @property
    def done(self) -> bool:
        return self.clock is None or all(_host.get(stream, 0) >= tick for stream, tick in self.clock.items())

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or get_current_stream()
        with _lock:
            stream.begin()
            self.clock = dict(stream.clock)
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        if self.clock is not None:
            _arrive(self.clock)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return the milliseconds between two recorded events."""
    return 1e3 * (end_event.time - start_event.time)


class Stream:
    """A queue of work."""

    null: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int = 0) -> None:
        self.ptr = next(_numbers)
        self.non_blocking = non_blocking
        self.device_id = 0
        self.clock: Clock = {}
        self.pending: list[tuple[int, Callable[[], None]]] = []
        _streams[self.ptr] = self

    def __enter__(self) -> Self:
        return self.use()

    def __exit__(self, *error: object) -> None:
        _entered.streams.pop()

    def use(self) -> Self:
        _entered.streams.append(self)
        return self

    def begin(self) -> int:
        """Begin an operation after what the host knows, and what a null stream orders, and return its number."""
        self.clock[self.ptr] = self.clock.get(self.ptr, 0) + 1
        _merge(self.clock, _host)
        if self is Stream.null:
            for other in list(_streams.values()):
                if not other.non_blocking:
                    _merge(self.clock, other.clock)
        elif not self.non_blocking:
            _merge(self.clock, Stream.null.clock)
        return self.clock[self.ptr]

    def put_off(self, tick: int, work: Callable[[], None]) -> None:
        self.pending.append((tick, work))

    def catch_up(self, tick: int) -> None:
        """Do what was put off, up to an operation."""
        while self.pending and self.pending[0][0] <= tick:
            self.pending.pop(0)[1]()

    @property
    def done(self) -> bool:
        return not self.pending

    def synchronize(self) -> None:
        with _lock:
            self.begin()
            _arrive(self.clock)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if event.clock is None:
            raise ValueError("the event should be recorded before a stream waits for it: CUDA would not wait at all")
        with _lock:
            _catch_up(event.clock)
            _merge(self.clock, event.clock)


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
        _streams[stream].catch_up(tick)


def _arrive(clock: Clock) -> None:
    """Let the host know that all of a clock is over."""
    with _lock:
        _catch_up(clock)
        _merge(_host, clock)


def synchronize_device() -> None:
    """Wait for all streams."""
    for stream in list(_streams.values()):
        stream.synchronize()


def operate(
    uses: list[tuple[Any, int, int, bool]], stream: Stream | None = None, work: Callable[[], None] | None = None
) -> None:
    """Note an operation on a stream, the current one by default.

    Parameters
    ----------
    uses : list of (Memory, int, int, bool)
        Allocation, first address, address after the last, whether it is written to.
    stream : Stream, optional
    work : callable, optional
        Put off until something waits for the operation; by default the caller does the work at once.

    Raises
    ------
    StreamRaceError
        Another stream uses the memory and is not waited for.
    """
    with _lock:
        stream = stream or get_current_stream()
        tick = stream.begin()
        if work is None:
            _catch_up(stream.clock)
        else:
            stream.put_off(tick, work)
        for memory, low, high, writes in uses:
            kept = []
            for one in memory.accesses:
                apart = one.high <= low or high <= one.low
                ordered = stream.clock.get(one.stream, 0) >= one.tick
                if not (apart or ordered) and (writes or one.writes):
                    raise StreamRaceError(
                        f"stream {stream.ptr} {'writes' if writes else 'reads'} memory that stream {one.stream} "
                        f"{'writes' if one.writes else 'reads'}, and does not wait for it"
                    )
                covered = low <= one.low and one.high <= high
                if not (covered and ordered and (writes or not one.writes)):
                    kept.append(one)
            memory.accesses = [*kept, Access(low, high, stream.ptr, tick, writes)]
