"""Resources used by each part of a build, measured between events: time, processor time, bytes, pairs compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import psutil

from hkm_dask.events import Event
from hkm_dask.search.cpu.tally import Tally

#: The phase that ends with each event; see `planning.cost.Step`.
_ENDS = {
    "seeding": "seeding", "iteration": "Lloyd", "step_finished": "Lloyd: kept", "assigned": "assign",
    "splitting": "split", "level_finished": "write", "run_started": "start", "level_started": "start",
}  # fmt: skip


@dataclass
class Spent:
    """Seconds, processor seconds, bytes read and written by this process, and pairs that it compared."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    read: int = 0
    written: int = 0
    pairs: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))


def spent_so_far(tally: Tally | None = None) -> Spent:
    """Return what this process has spent so far; bytes served by the page cache count as read."""
    io = psutil.Process().io_counters()
    n_pairs = 0 if tally is None else tally.pairs
    return Spent(time.perf_counter(), time.process_time(), io.read_chars, io.write_chars, n_pairs)


#: A level from 1, whether it is a resampling step, and a part, whose name begins with the phase.
Place = tuple[int, bool, str]


@dataclass
class PhaseClock:
    """Event subscriber that adds up what a build spends, by level and part.

    >>> now = [Spent(), Spent(seconds=2.0), Spent(seconds=5.0)]
    >>> clock = PhaseClock(iter(now).__next__)
    >>> clock(Event("step_started", {"level": 1, "step": 0}, 0.0))
    >>> clock(Event("iteration", {"level": 1, "step": 0, "iteration": 1}, 0.0))
    >>> {place: one.seconds for place, one in clock.spent.items()}
    {(1, False, 'start'): 2.0, (1, False, 'Lloyd: first'): 3.0}
    """

    now: Callable[[], Spent] = spent_so_far
    #: By level (0 for none), whether it is a resampling step, and part, named as in `processor_work.Part`.
    spent: dict[Place, Spent] = field(default_factory=dict)
    #: Lloyd iterations of each k-means, by level and whether it is a resampling step.
    iterations: dict[tuple[int, bool], list[int]] = field(default_factory=dict)
    #: Called with the level, whether it is a resampling step, and the part, whenever a part ends.
    ended: Callable[[Place], None] | None = None
    _level: int = 0
    _resamples: bool = False

    def __post_init__(self) -> None:
        self._last = self.now()

    def __call__(self, event: Event) -> None:
        """Process an event."""
        name = event.kind
        if name != "step_started" and name not in _ENDS:
            return
        now, values = self.now(), event.fields
        self._level = int(values.get("level", 0))
        self._resamples = values.get("step", 0) > 0 or (name == "splitting" and self._resamples)
        # Members are gathered between an assignment and the k-means over them.
        part = _ENDS.get(name) or ("gather" if self._resamples else "start")
        if name == "seeding":
            # The start of a phase ends the one before.
            before = {} if values["done"] else {"choose": "draw", "refine": "choose"}
            part = f"seeding: {before.get(values['phase'], values['phase'])}"
        if name == "iteration":
            part = "Lloyd: first" if values["iteration"] == 1 else "Lloyd: later"
        place = self._level, self._resamples, part
        self.spent[place] = self.spent.get(place, Spent()) + (now - self._last)
        self._last = now
        if self.ended is not None:
            self.ended(place)
        if name == "step_finished":
            self.iterations.setdefault((self._level, self._resamples), []).append(int(values["n_iter"]))

    def phases(self) -> dict[str, Spent]:
        """Return the totals by phase, over all levels."""
        found: dict[str, Spent] = {}
        for (_, _, part), spent in self.spent.items():
            phase = part.partition(":")[0]
            found[phase] = found.get(phase, Spent()) + spent
        return found
