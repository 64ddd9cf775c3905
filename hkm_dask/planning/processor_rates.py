"""Rates of processors as they were measured, read and kept; `calibration` measures them."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hkm_dask.compute.runner import n_processors
from hkm_dask.config import Level
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.cost import NOW, Step
from hkm_dask.hierarchy.rates import Rates
from hkm_dask.untrusted import parse_json
from hkm_dask.version import __version__

#: Of what takes no time that could be told.
NO_LIMIT = float("inf")
#: How work is done on processors: there are no kernels to check.
PROCESSORS = replace(NOW, check_seconds=0.0)


@dataclass(frozen=True)
class Calibration:
    """Rates of a machine, one set for each phase, and what was seen of the data they were measured on.

    Attributes
    ----------
    machine : str
    n_processors : int
        That worked.
    rates : dict
        By phase, as `hierarchy.cost.Step` has them.
    iterations : dict
        Mean iterations of a k-means: "first" and "resampled", by level from 1; the last level's serves those above.
    n_rows, n_features : int
        Of the largest tree that was built.
    seconds : float
        It took to measure.
    read, write : float
        Bytes of a pool a second.
    software : str
    """

    machine: str
    n_processors: int
    rates: dict[str, Rates]
    iterations: dict[str, list[float]]
    n_rows: int
    n_features: int
    seconds: float
    read: float
    write: float
    software: str = f"hkm_dask {__version__}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; what a phase has no rate for is None."""
        made = asdict(self)
        made["rates"] = {
            phase: {"product": rates.product, "measured": rates.measured, "round": rates.round, "store": rates.store}
            for phase, rates in self.rates.items()
        }
        for rates in made["rates"].values():
            rates.update({name: None for name, rate in rates.items() if rate == NO_LIMIT})
        return made

    @classmethod
    def from_dict(cls, made: dict[str, Any]) -> Calibration:
        """Read what `to_dict` gave, or a plan that has it; InputError where it is neither."""
        try:
            made = dict(made.get("calibration", made))
            rates = {
                phase: processor_rates(**{name: NO_LIMIT if rate is None else rate for name, rate in of_phase.items()})
                for phase, of_phase in made.pop("rates").items()
            }
            return cls(rates=rates, **made)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"rates should be what `hkm plan --json` prints, {error} is amiss; make it again"
            ) from None

    def seconds_of(self, step: Step, n_features: int) -> float:
        """Seconds of a step on a machine like this one."""
        return self.rates[step.phase].seconds(step.work, n_features) if step.phase in self.rates else 0.0

    def iterations_of(self, number: int, resampled: bool, level: Level) -> int:
        """Iterations that a k-means of a level makes, as many as were seen; see `hierarchy.cost.Iterations`."""
        seen = self.iterations.get("resampled" if resampled else "first") or [level.max_iter]
        return max(1, min(level.max_iter, round(seen[min(number, len(seen)) - 1])))


def processor_rates(product: float, measured: float, round: float, store: float) -> Rates:
    """Rates of processors: operations and measured values a second, seconds a round, bytes a second in stores."""
    return Rates(
        product=product, search_share=((1, 1.0),), measured=measured, memory=NO_LIMIT, link=NO_LIMIT, launch=0.0,
        synchronization=0.0, round=round, store=store, thread_product=product, thread_measured=measured,
        thread_bytes=NO_LIMIT, thread_items=NO_LIMIT, n_processors=1,
    )  # fmt: skip


def rates_file() -> Path:
    """Where the rates measured last on this machine are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hkm-dask" / "rates.json"


def keep(calibration: Calibration) -> None:
    """Keep rates for `hkm cluster` to tell by; no loss where that cannot be."""
    path = rates_file()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(calibration.to_dict()), encoding="utf-8")
        whole.replace(path)


def kept_calibration(n_features: int) -> Calibration | None:
    """Rates kept on this machine by this version, for rows of about as many features; None where there are none."""
    try:
        kept = Calibration.from_dict(parse_json(rates_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, InputError):
        return None
    alike = 0.5 <= kept.n_features / n_features <= 2.0 and kept.n_processors == n_processors()
    return kept if alike and kept.software == f"hkm_dask {__version__}" else None
