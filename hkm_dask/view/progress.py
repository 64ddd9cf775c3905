"""Console progress: level, step, iteration, inertia and time left, as a live display or plain lines."""

from __future__ import annotations

import json
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hkm_dask.errors import printable
from hkm_dask.events import Event, subscribe
from hkm_dask.view.timeleft import Left, TimeLeft

# Seconds between plain lines, so that the log of a long run stays readable.
PLAIN_INTERVAL = 10.0
# Seconds between checks of whether such a line is due.
TICK = 0.5
BAR_WIDTH = 24
# The time left is shown as a range if it may be this many times as long as expected.
WIDE = 1.5
# Text for each phase of a seeding.
_SEEDING = {
    "draw": "seeding, {done:,} of {total:,} centers",
    "walk": "seeding, {done:,} of {total:,} centers chosen",
    "choose": "seeding, chosen in {done:,} of {total:,} groups",
    "refine": "seeding, refined {done} of {total} times",
}


def duration(seconds: float) -> str:
    """Format a time span for people, to about two digits.

    >>> [duration(seconds) for seconds in (0.4, 42, 200, 5000, 200_000)]
    ['a few seconds', '42 s', '3 min', '1 h 23 min', '2 d 8 h']
    """
    if seconds < 5:
        return "a few seconds"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60 and seconds < 3600:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h"


def stopwatch(seconds: float) -> str:
    """Format elapsed time as h:mm:ss.

    >>> stopwatch(3725.9)
    '1:02:05'
    """
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def about(seconds: float) -> str:
    """Format an estimate of the time left as approximate.

    >>> about(2), about(200)
    ('a few seconds left', 'about 3 min left')
    """
    span = duration(seconds)
    return f"{span} left" if span.startswith("a ") else f"about {span} left"


def time_left(left: Left | None) -> str:
    """Format the time left no more precisely than it is known: as a range if that is wide.

    >>> time_left(Left(expected=200, bound=270))
    'about 3 min left, at most 4 min'
    >>> time_left(Left(expected=200, bound=400, least=100))
    '2 min to 7 min left'
    >>> time_left(None)
    'time left unknown'
    """
    if left is None:
        return "time left unknown"
    span, bound, least = duration(left.expected), duration(left.bound), duration(left.least)
    if left.bound < 10 or span == bound:
        return about(left.expected)
    if left.bound <= WIDE * left.expected:
        return f"{about(left.expected)}, at most {bound}"
    return f"at most {bound} left" if least.startswith("a ") else f"{least} to {bound} left"


@dataclass
class Status:
    """The current state of a run, from its events.

    `update` returns the lines that are worth keeping; `parts` returns the rest.
    """

    started: float
    name: str = ""  # of the command
    levels: int = 0
    level: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    seeding: Mapping[str, Any] = field(default_factory=dict)
    iteration: Mapping[str, Any] = field(default_factory=dict)
    drop: float | None = None  # relative decrease of the inertia in the last iteration
    splitting: Mapping[str, Any] = field(default_factory=dict)
    inertia: float | None = None  # of the last finished step
    steps_done: int = 0
    stage: Mapping[str, Any] = field(default_factory=dict)
    left: TimeLeft = field(default_factory=TimeLeft)

    def update(self, event: Event) -> list[str]:
        """Process one event and return the lines to keep: a finished level, a resumed run, a warning."""
        self.left.update(event)
        fields = event.fields
        match event.kind:
            case "run_started":
                self.levels = len(fields["levels"])
            case "resumed":
                return [f"resumed: {fields['what']}"]
            case "compiling":
                return ["compiling kernels for this processor (once per installation)"]
            case "note":
                return [printable(str(fields["message"]))]
            case "warning":
                return [f"warning: {printable(str(fields['message']))}"]
            case "level_started":
                self.level, self.steps_done, self.inertia = fields, 0, None
                self.step = self.seeding = self.iteration = self.splitting = self.stage = {}
            case "step_started":
                self.step, self.drop = fields, None
                self.seeding = self.iteration = {}
            case "seeding":
                self.seeding = fields
            case "iteration":
                before = self.iteration.get("inertia")
                self.drop = (before - fields["inertia"]) / before if before else None
                self.iteration = fields
            case "step_finished":
                self.inertia, self.steps_done = fields["inertia"], self.steps_done + 1
                self.step = self.seeding = self.iteration = {}
            case "splitting":
                self.splitting = fields
            case "level_finished":
                told = self._level_done(fields)
                self.level = self.step = {}
                return [told]
            case "run_finished":
                self.level = self.step = self.stage = {}
                return [f"done in {stopwatch(fields['seconds'])}"]
            case "progress":
                self.stage = fields
        return []

    def parts(self, now: float) -> tuple[str, str, float | None, str]:
        """Return what the run is doing: a headline, a detail, the finished share of that detail, and the times.

        Headline and detail are empty if there is nothing to report.
        """
        elapsed = f"{stopwatch(now - self.started)} so far"
        if self.stage:
            done, total = self.stage["done"], self.stage["total"]
            detail, share = f"{done:,} of {total:,}", done / total if total else None
            left = self.left.at(now) if 0 < done < total else None
            rest = [f"then {self.stage['then']}"] if "then" in self.stage else [] if left is None else [time_left(left)]
            return str(self.stage["stage"]), detail, share, ", ".join([elapsed, *rest])
        if not self.level:
            return self.name, "working" if self.name else "", None, elapsed
        detail, share = self._detail()
        times = f"{elapsed}, {time_left(self.left.at(now))}" if self.levels else elapsed
        return self._headline(), detail, share, times

    def _headline(self) -> str:
        number = self.level["level"]
        parts = [f"level {number} of {self.levels}" if self.levels else f"level {number}"]
        if self.step:
            step = self.step["step"]
            parts.append(f"resampling {step} of {self.level['m']}" if step else "first k-means")
            parts.append(f"{self.step['n']:,} rows to {self.step['k']:,} clusters")
        return ", ".join(parts)

    def _detail(self) -> tuple[str, float | None]:
        if self.iteration:
            iteration, cap = self.iteration["iteration"], self.iteration["max_iter"]
            change = "" if self.drop is None else f" ({-100 * self.drop:+.2g} %)"
            inertia = f"inertia {self.iteration['inertia']:.6g}{change}"
            return f"iteration {iteration} of at most {cap}, {inertia}", iteration / cap
        if self.seeding:
            done, total = self.seeding["done"], self.seeding["total"]
            return _SEEDING[self.seeding["phase"]].format(done=done, total=total), done / total if total else None
        if self.step:
            return "seeding", None
        if self.splitting:
            done, total = self.splitting["done"], self.splitting["total"]
            return f"splitting, {done:,} of {total:,} clusters", done / total
        return ("assigning" if self.steps_done else "preparing"), None

    def _level_done(self, fields: Mapping[str, Any]) -> str:
        parts = [f"level {fields['level']} done in {stopwatch(fields['seconds'])}"]
        if self.level:
            parts.append(f"{self.level['n']:,} rows in {self.level['k']:,} clusters")
        if self.steps_done:
            parts.append(f"{self.steps_done} k-means, last inertia {self.inertia:.6g}")
        return ", ".join(parts)


class Display:
    """Shows a run's `Status` on a console: a few live lines on a terminal, plain lines elsewhere.

    Plain lines of the same level are at least `interval` seconds apart. The `name` of the command is shown until there
    is more to report. Times count from `started`, in seconds since the epoch, by default from now.
    """

    def __init__(
        self, console: Console, *, interval: float = PLAIN_INTERVAL, name: str = "", started: float | None = None
    ) -> None:
        self.console = console
        self.interval = interval
        self.live = console.is_terminal and not console.is_dumb_terminal
        self._status = Status(clock.time() if started is None else started, name)
        self._lock = threading.Lock()
        self._last_line = -float("inf")

    def __call__(self, event: Event) -> None:
        """Process one event; called in the thread that emits it."""
        # Printed after the lock is released: the live display's thread acquires the console first, then this lock.
        with self._lock:
            lines = self._status.update(event)
            if not self.live:
                is_due = event.time - self._last_line >= self.interval
                is_due |= event.kind == "progress" and event.fields["done"] == event.fields["total"]
                lines = self._timed(lines or (self._plain(event.time) if is_due else []), event.time)
        for line in lines:
            style = "yellow" if line.startswith("warning") else "green" if " done in " in line else ""
            self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=not self.live)

    def tick(self) -> None:
        """Write a plain line if the last one is `interval` seconds old, even if nothing has happened since."""
        with self._lock:
            now = clock.time()
            silent = now - max(self._last_line, self._status.started)
            lines = self._timed(self._plain(now) if silent >= self.interval else [], now)
        for line in lines:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _plain(self, now: float) -> list[str]:
        headline, detail, _, times = self._status.parts(now)
        told = [part for part in (headline, detail, times.partition(", ")[2]) if part]
        return [", ".join(told)] if told else []

    def _timed(self, lines: list[str], now: float) -> list[str]:
        if lines:
            self._last_line = now
        return [f"[{stopwatch(now - self._status.started)}] {line}" for line in lines]

    def __rich__(self) -> RenderableType:
        """Render the live lines."""
        with self._lock:
            headline, detail, share, times = self._status.parts(clock.time())
        if not headline:
            return Text("")
        second: RenderableType = Text(detail)
        if share is not None:
            bar = ProgressBar(total=1.0, completed=share, width=min(BAR_WIDTH, self.console.width // 5))
            second = Table.grid(padding=(0, 1))
            second.add_row(bar, Text(detail, no_wrap=True, overflow="ellipsis"))
        return Group(
            Text(headline, style="bold", no_wrap=True, overflow="ellipsis"),
            second,
            Text(times, style="dim", no_wrap=True, overflow="ellipsis"),
        )


class JsonLines:
    """Writes each event as a line of JSON, with the estimated seconds left if available.

    After `interval` seconds without an event, `tick` writes a ``heartbeat`` line.

    >>> import sys
    >>> JsonLines(sys.stdout)(Event("assigned", {"level": 1, "step": 0}, 7.5))
    {"event": "assigned", "time": 7.5, "level": 1, "step": 0}
    """

    def __init__(self, stream: IO[str], *, interval: float = PLAIN_INTERVAL) -> None:
        self._stream, self._interval = stream, interval
        self._left = TimeLeft()
        self._lock = threading.Lock()
        self._last_line = clock.time()

    def __call__(self, event: Event) -> None:
        """Write one event; called in the thread that emits it."""
        with self._lock:
            self._left.update(event)
            self._write(event)

    def tick(self) -> None:
        """Write a heartbeat if the last line is `interval` seconds old."""
        with self._lock:
            if clock.time() - self._last_line >= self._interval:
                self._write(Event("heartbeat", {}, clock.time()))

    def _write(self, event: Event) -> None:
        line = {"event": event.kind, "time": event.time, **event.fields}
        if (left := self._left.at(event.time)) is not None:
            named = {"": left.expected, "_at_least": left.least, "_at_most": left.bound}
            line |= {f"seconds_left{name}": round(seconds, 3) for name, seconds in named.items()}
        self._stream.write(json.dumps(line, default=str) + "\n")
        self._stream.flush()
        self._last_line = clock.time()


@contextmanager
def _repeated(function: Callable[[], None]) -> Iterator[None]:
    """Call a function repeatedly, in a separate thread, until the context closes."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(TICK):
            function()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def show_progress(
    console: Console | None = None, *, interval: float = PLAIN_INTERVAL, as_json: bool = False, name: str = "",
    started: float | None = None,
) -> Iterator[None]:  # fmt: skip
    """Show the progress of the computation inside the context on a console, by default on stderr.

    Lines are live on a terminal, otherwise plain and at least `interval` seconds apart; the `name` of the command is
    shown until there is more to report, and times count from `started`. With `as_json`, every event is a line, with
    heartbeats during silence.

    >>> import sys
    >>> from hkm_dask.events import emit
    >>> with show_progress(Console(file=sys.stdout)):
    ...     emit("progress", stage="ingest", done=4, total=4)
    [0:00:00] ingest, 4 of 4
    """
    console = console or Console(stderr=True)
    if as_json:
        lines = JsonLines(console.file, interval=interval)
        with subscribe(lines), _repeated(lines.tick):
            yield
        return
    display = Display(console, interval=interval, name=name, started=started)
    with subscribe(display):
        if not display.live:
            with _repeated(display.tick):
                yield
            return
        # Results go to stdout, which the live display must not redirect.
        with Live(display, console=console, refresh_per_second=4, transient=True, redirect_stdout=False):
            yield
