"""Planning a run from command-line options: a pool or its shape, settings, workers, saved rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from hkm_dask.config import Config
from hkm_dask.data.objects import Location
from hkm_dask.data.rows import Rows
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.source import ClusterInput, open_source
from hkm_dask.planning.calibration import calibrate, made_rows
from hkm_dask.planning.gpus import find_gpu
from hkm_dask.planning.plan import Plan, make_plan
from hkm_dask.planning.processor_rates import Calibration, keep
from hkm_dask.planning.workers import PlannedRows, Workers
from hkm_dask.untrusted import parse_json, reading

#: Most runs of adjacent rows that a sample of a pool consists of; each reads whole chunks.
_SAMPLE_RUNS = 32
#: Longest time in seconds that counts as the start of a command.
_LONGEST_START = 60.0
Note = Callable[[str], None]


def plan_run(
    of: Location | tuple[int, int, str],
    config: Config,
    *,
    note: Note,
    workers: int | None = None,
    n_threads: int = 1,
    gpu: str | None = None,
    memory: int | None = None,
    rates: Path | None = None,
    seconds: float = 10.0,
) -> Plan:
    """Plan a run over a pool, or over rows of a shape (rows, features, dtype); see `hkm plan --help`.

    `note` gets messages for the user.
    """
    if gpu is not None:
        place = Workers.of_gpus(*find_gpu(gpu), memory)
    else:
        place = Workers.here(memory) if workers is None else Workers.processes(workers, n_threads, memory)
    source: ClusterInput | None = None
    if not isinstance(of, tuple):
        source = open_source(of, config)
        rows, n_total, n_labeled = source.rows, source.n_total, source.labeled.n_rows
    elif config.subset is not None:
        raise InputError("subset needs a pool; give POOL.zarr, or the size of the subset as --n-samples")
    else:
        n_total, n_features, dtype = of
        rows, n_labeled = PlannedRows(min(n_total, config.fit_sample or n_total), n_features, dtype), n_total
    config.check(rows.n_rows)
    calibration = _calibration(config, rows, source, place, rates, seconds, note)
    return make_plan(config, rows, place, n_total=n_total, n_labeled=n_labeled, calibration=calibration)


def _calibration(
    config: Config, rows: Rows, source: ClusterInput | None, place: Workers, rates: Path | None, seconds: float,
    note: Note,
) -> Calibration | None:  # fmt: skip
    """Return rates from a file, or measured on rows of the pool or on synthetic rows; None for GPUs."""
    if rates is not None:
        with reading(f"rates={rates} should be what `hkm plan --json` prints", "make it again"):
            return Calibration.from_dict(parse_json(Path(rates).read_text(encoding="utf-8")))
    if place.gpu is not None or not seconds:
        return None
    what = "synthetic rows" if source is None else "rows of the pool"
    note(f"Measuring this machine for about {seconds:.0f} s, on {what} ...")

    def sample(n: int) -> NDArray[Any]:
        if source is None:
            return made_rows(n, rows.n_features).astype(rows.dtype)
        return sample_rows(rows, n)

    measured = calibrate(config, rows.n_rows, sample, seconds=seconds, started=_started())
    keep(measured)
    return measured


def _started() -> float:
    """Return the seconds since this process began, as `hkm cluster` also loads modules and opens the pool.

    Returns 0 in a process that has run for longer, such as a notebook, where a run begins immediately.
    """
    lived = time.time() - psutil.Process().create_time()
    return lived if lived < _LONGEST_START else 0.0


def sample_rows(rows: Rows, n: int) -> NDArray[Any]:
    """Sample about `n` rows, in runs of adjacent rows spread over the table.

    >>> from hkm_dask.data.rows import ArrayRows
    >>> len(sample_rows(ArrayRows(np.zeros((1000, 2), np.float32)), 100))
    100
    """
    if n >= rows.n_rows:
        return np.asarray(rows.read(0, rows.n_rows))
    n_runs = min(_SAMPLE_RUNS, n)
    cuts = n * np.arange(n_runs + 1) // n_runs
    starts = np.linspace(0, rows.n_rows - n, n_runs).astype(np.int64) + cuts[:-1]
    return np.concatenate([rows.read(int(a), int(a + m)) for a, m in zip(starts, np.diff(cuts), strict=True)])
