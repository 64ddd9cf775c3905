"""Costs of units of work on processors, as measured by `calibration`: prediction, loading and saving."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hkm_dask.compute.runner import n_processors
from hkm_dask.config import Level
from hkm_dask.errors import InputError
from hkm_dask.planning.processor_work import Course, Part, split_course
from hkm_dask.untrusted import parse_json
from hkm_dask.version import __version__

#: Factor by which iterations may compare more pairs if clusters have more rows than in small trees.
_DENSER = 1.3


@dataclass(frozen=True)
class Seen:
    """Iterations of the k-means of one level in trees of several sizes."""

    #: Mean number of iterations, and the range that a larger k-means may make.
    iterations: float
    fewest: float
    most: float
    share: float  # share of all pairs compared by each iteration after the first


@dataclass(frozen=True)
class Calibration:
    """Costs of units of work on a machine, and the behavior seen on the data of the measurement."""

    machine: str
    n_processors: int  # number of processors used
    costs: dict[str, float]  # seconds of one thread for each unit of `processor_work`
    seen: dict[str, list[Seen]]  # "first" and "resampled" k-means, by level from 1; the last also serves higher levels
    #: Shape of the largest tree that was built.
    n_rows: int
    n_features: int
    seconds: float  # duration of the measurement
    #: Bytes per second of pool reads and writes.
    read: float
    write: float
    software: str = f"hkm_dask {__version__}"

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, made: dict[str, Any]) -> Calibration:
        """Read the output of `to_dict`, or a plan that contains it; raises InputError for anything else."""
        try:
            made = dict(made.get("calibration", made))
            costs = {str(unit): float(cost) for unit, cost in made.pop("costs").items()}
            seen = {str(name): [Seen(**one) for one in levels] for name, levels in made.pop("seen").items()}
            return cls(costs=costs, seen=seen, **made)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"rates should be what `hkm plan --json` prints, {error} is wrong; make it again"
            ) from None

    def course(self, bound: str = "iterations") -> Course:
        """Return a `Course` from what was seen: "iterations" (mean), "fewest" or "most"; see `processor_work`."""

        def goes(number: int, resampled: bool, level: Level) -> tuple[float, float]:
            if not number:
                return split_course(level)
            seen = self.seen.get("resampled" if resampled else "first") or self.seen["first"]
            one = seen[min(number, len(seen)) - 1]
            share = min(1.0, _DENSER * one.share) if bound == "most" else one.share
            return max(1.0, min(float(level.max_iter), getattr(one, bound))), share

        return goes

    def iterations_of(self, number: int, resampled: bool, level: Level) -> int:
        """Return the expected iterations of a k-means of a level; see `planning.cost.Iterations`."""
        return round(self.course()(number, resampled, level)[0])

    def capped(self, number: int, resampled: bool, level: Level) -> tuple[float, float]:
        """Return the maximum iterations of a k-means, and the share of pairs compared; a `Course`."""
        return float(level.max_iter), self.course()(number, resampled, level)[1]

    def seconds_of(self, part: Part) -> float:
        """Predict the seconds of a part on a machine like this one."""
        return sum(amount * self.costs.get(unit, 0.0) for unit, amount in part.units.items())


def rates_file() -> Path:
    """Return the path of the rates last measured on this machine."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hkm-dask" / "rates.json"


def keep(calibration: Calibration) -> None:
    """Save rates for `hkm cluster`; failure to write is ignored."""
    path = rates_file()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(calibration.to_dict()), encoding="utf-8")
        whole.replace(path)


def kept_calibration(n_features: int) -> Calibration | None:
    """Load rates saved on this machine by this version, for a similar number of features; None if there are none."""
    try:
        kept = Calibration.from_dict(parse_json(rates_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, InputError):
        return None
    alike = 0.5 <= kept.n_features / n_features <= 2.0 and kept.n_processors == n_processors()
    return kept if alike and kept.software == f"hkm_dask {__version__}" else None
