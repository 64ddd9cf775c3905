"""The work of a run, divided into pieces: the phases of each k-means and assignment, then splitting and writing."""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hkm_dask.compute.memory import POINTS_PER_CLUSTER, WALK_POINTS
from hkm_dask.view.durations import Kind

#: Phases in their order within a step.
_ORDER = ("draw", "choose", "refine", "iterate", "assign", "gather", "split", "write")
#: Time of an iteration in later resamplings relative to the first one, since clusters are more even by then; and time
#: of a first assignment relative to those that start from its labels.
LATER, FIRST_ASSIGNMENT = 0.87, 1.25
#: Fixed cost of splitting a cluster, in new centroids.
ALONE_SPLITS = 3
#: Fixed cost of comparing a row with a centroid, in features.
ALONE_COMPARES = 100


class Step(NamedTuple):
    """One k-means: the cost of an iteration, the maximum number of iterations, and the cost of assigning the level."""

    iteration_units: float
    max_iter: int
    assign_units: float

    @property
    def units(self) -> float:
        """Cost if all iterations are made."""
        return self.iteration_units * self.max_iter + self.assign_units


def place_of(phase: str) -> int:
    """Return the position of a phase in the order; "clusters" (to be split) has that of "split"."""
    return _ORDER.index("split" if phase == "clusters" else phase)


class Piece(NamedTuple):
    """Work of one kind, in a step of its level, with its amount in units."""

    kind: Kind
    units: float
    step: int

    @property
    def place(self) -> tuple[int, int, int]:
        """Its position in a run."""
        return self.kind.level, self.step, place_of(self.kind.phase)


def steps_of(level: Mapping[str, Any]) -> list[Step]:
    """Plan the k-means of a level from its entry in ``run_started``: the first one, then the resampling steps.

    The entry has ``n`` rows, ``k`` centroids, ``d`` features, ``m`` resampling steps of ``r`` members per cluster, and
    ``max_iter``.

    >>> first, second = steps_of({"n": 1000, "k": 10, "d": 2, "m": 1, "r": 5, "max_iter": 50})
    >>> first.iteration_units, second.iteration_units, second.assign_units
    (20000.0, 1000.0, 20000.0)
    """
    n, k, d, max_iter = float(level["n"]), float(level["k"]), float(level["d"]), int(level["max_iter"])
    resampling = Step(resampled_rows(level) * k * d, max_iter, n * k * d)
    return [Step(n * k * d, max_iter, n * k * d)] + [resampling] * int(level["m"])


def resampled_rows(level: Mapping[str, Any]) -> float:
    """Return the most members that a resampling of a level can have."""
    n, k, r = float(level["n"]), float(level["k"]), level.get("r")
    return min(n, k * (float(r) if isinstance(r, int | float) else max(2.0, n / k / 2)))


def splitting_of(level: Mapping[str, Any]) -> Step | None:
    """Plan the splitting of a level's clusters as a k-means in which every row is compared with ``n_splits`` centroids.

    >>> splitting_of({"n": 1000, "k": 10, "d": 2, "m": 0, "r": 5, "max_iter": 50, "n_splits": 4})
    Step(iteration_units=8000.0, max_iter=50, assign_units=8000.0)
    """
    n_splits = int(level.get("n_splits", 1))
    units = float(level["n"]) * n_splits * float(level["d"])
    return Step(units, int(level["max_iter"]), units) if n_splits > 1 else None


def k_means_pieces(level: Mapping[str, Any], number: int, step: int, n: float) -> list[Piece]:
    """List the phases of a k-means of n rows, for the level with the given number.

    >>> level = {"n": 1000, "k": 10, "d": 2, "m": 0, "max_iter": 50, "init": "coreset"}
    >>> [(piece.kind.phase, piece.units) for piece in k_means_pieces(level, 1, 0, 1000)]
    [('draw', 1020000.0), ('choose', 150600.0), ('refine', 30600.0), ('iterate', 1020000.0)]
    """
    k, d, init = float(level["k"]), float(level["d"]), level.get("init", "coreset")
    points = min(n, POINTS_PER_CLUSTER.get(init, math.inf) * k)
    is_drawn = points < n and init != "random"
    size = points if init == "k-means++" else min(points, WALK_POINTS)
    compared = k * (d + ALONE_COMPARES)
    units = {
        "draw": n * compared if is_drawn else 0.0,
        "choose": k * size * (d + 500) if init != "random" else 0.0,
        "refine": points * compared if is_drawn and init == "coreset" else 0.0,
        "iterate": n * compared * (LATER if step > 1 else 1),
    }
    what = "resampling" if step else "first"
    return [Piece(Kind(number, what, phase), amount, step) for phase, amount in units.items() if amount]


def level_pieces(level: Mapping[str, Any], number: int) -> list[Piece]:
    """List all work of a level in order.

    If a level is fit on a sample, all its ``n_labeled`` rows are assigned at the end.
    """
    n, k, d, m = float(level["n"]), float(level["k"]), float(level["d"]), int(level["m"])
    resampled, split, pieces = resampled_rows(level), splitting_of(level), list[Piece]()
    n_labeled = float(level.get("n_labeled", n))
    for step in range(m + 1):
        pieces += k_means_pieces(level, number, step, resampled if step else n)
        n_assigned = n_labeled if step == m and split is None else n
        units = n_assigned * k * (d + ALONE_COMPARES) * (1 if step else FIRST_ASSIGNMENT)
        pieces.append(Piece(Kind(number, "resampling" if step else "first", "assign"), units, step))
        if step < m:
            pieces.append(Piece(Kind(number, "level", "gather"), n + resampled * d, step))
    if split is not None:
        pieces.append(Piece(Kind(number, "level", "split"), split.iteration_units, m))
        pieces.append(Piece(Kind(number, "level", "clusters"), k * (int(level["n_splits"]) + ALONE_SPLITS), m))
        if n_labeled > n:
            m += 1
            pieces.append(
                Piece(
                    Kind(number, "resampling", "assign"),
                    n_labeled * k * int(level["n_splits"]) * (d + ALONE_COMPARES),
                    m,
                )
            )
    return [*pieces, Piece(Kind(number, "level", "write"), n_labeled, m)]


class Agenda:
    """Pieces that have not begun, in order.

    `counts` has the number of pieces of each kind and units, so that predictions cost as much as there are kinds,
    however many pieces there are.
    """

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self._pieces = deque(pieces)
        self.counts = Counter((piece.kind, piece.units) for piece in self._pieces)

    def take(self, last: tuple[int, int, int]) -> list[Piece]:
        """Remove and return the pieces up to and including a position."""
        taken = list(itertools.takewhile(lambda piece: piece.place <= last, self._pieces))
        for piece in taken:
            self._pieces.popleft()
            self.counts[piece.kind, piece.units] -= 1
            if not self.counts[piece.kind, piece.units]:
                del self.counts[piece.kind, piece.units]
        return taken

    def renewed(self, pieces: Sequence[Piece]) -> Agenda:
        """Return a copy in which these phases of k-means replace all that were planned for the same steps."""
        steps, last = {piece.place[:2] for piece in pieces}, place_of("iterate")
        kept = (piece for piece in self._pieces if piece.place[:2] not in steps or piece.place[2] > last)
        return Agenda(sorted([*kept, *pieces], key=lambda piece: piece.place))

    def of_step(self, level: int, step: int) -> list[Piece]:
        """List the pieces of a step of a level."""
        upto = itertools.takewhile(lambda piece: piece.place[:2] <= (level, step), self._pieces)
        return [piece for piece in upto if piece.place[:2] == (level, step)]

    def first_after(self, place: tuple[int, int, int]) -> Piece | None:
        """Return the next piece after a position."""
        return next((piece for piece in self._pieces if piece.place > place), None)
