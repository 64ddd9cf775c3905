"""What each phase of a build took, told from its events: seconds, processor time, bytes read and written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import psutil

from hkm_dask.events import Event

#: The phase that ends with an event; see `hierarchy.cost.Step`.
_ENDS = {
    "seeding": "seeding", "iteration": "Lloyd", "step_finished": "Lloyd", "assigned": "assign", "splitting": "split",
    "level_finished": "write", "run_started": "start", "level_started": "start",
}  # fmt: skip


@dataclass
class Spent:
    """Seconds, processor seconds, and bytes that went through reads and writes of this process."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    read: int = 0
    written: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))


def spent_so_far() -> Spent:
    """What this process has spent until now; bytes that the page cache serves count as read."""
    process = psutil.Process()
    io, cpu = process.io_counters(), process.cpu_times()
    return Spent(time.perf_counter(), cpu.user + cpu.system, io.read_chars, io.write_chars)


#: A level from 1, whether it was a resampling step, and a phase.
Place = tuple[int, bool, str]


@dataclass
class PhaseClock:
    """Subscriber that adds up what a build spends, by level and phase.

    Attributes
    ----------
    spent : dict
        By level (0 for what belongs to none), whether it belongs to a resampling step, and phase.
    iterations : dict
        Lloyd iterations of each step, by level and whether it is a resampling step.

    Examples
    --------
    >>> now = [Spent(), Spent(seconds=2.0), Spent(seconds=5.0)]
    >>> clock = PhaseClock(iter(now).__next__)
    >>> clock(Event("step_started", {"level": 1, "step": 0}, 0.0))
    >>> clock(Event("iteration", {"level": 1, "step": 0}, 0.0))
    >>> {place: one.seconds for place, one in clock.spent.items()}
    {(1, False, 'start'): 2.0, (1, False, 'Lloyd'): 3.0}
    """

    now: Callable[[], Spent] = spent_so_far
    spent: dict[Place, Spent] = field(default_factory=dict)
    iterations: dict[tuple[int, bool], list[int]] = field(default_factory=dict)
    _level: int = 0
    _resamples: bool = False

    def __post_init__(self) -> None:
        self._last = self.now()

    def __call__(self, event: Event) -> None:
        """Take an event into account."""
        name = event.kind
        if name != "step_started" and name not in _ENDS:
            return
        now, values = self.now(), event.fields
        self._level = int(values.get("level", 0))
        self._resamples = values.get("step", 0) > 0 or (name == "splitting" and self._resamples)
        # Members are gathered between an assignment and the step over them.
        phase = _ENDS.get(name) or ("gather" if self._resamples else "start")
        place = self._level, self._resamples, phase
        self.spent[place] = self.spent.get(place, Spent()) + (now - self._last)
        self._last = now
        if name == "step_finished":
            self.iterations.setdefault((self._level, self._resamples), []).append(int(values["n_iter"]))

    def phases(self) -> dict[str, Spent]:
        """By phase, all levels together."""
        found: dict[str, Spent] = {}
        for (_, _, phase), spent in self.spent.items():
            found[phase] = found.get(phase, Spent()) + spent
        return found
