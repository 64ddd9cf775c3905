"""Actions before a run: a prediction from rates that `hkm plan` saved, and GPU kernel checks while workers start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from hkm_dask.compute.memory import limit_mib
from hkm_dask.compute.runner import Runner
from hkm_dask.config import Config
from hkm_dask.data.objects import Location
from hkm_dask.errors import HkmError
from hkm_dask.events import Event, emit, subscribe
from hkm_dask.hierarchy.source import open_source
from hkm_dask.planning.plan import Plan, make_plan
from hkm_dask.planning.processor_rates import kept_calibration
from hkm_dask.planning.tell import short
from hkm_dask.planning.workers import Workers


def kernels_checked(pool: Location, config: Config) -> AbstractContextManager[None]:
    """Return a context that checks kernels on the first GPU of this machine while the workers for it start."""
    from hkm_dask.search.cuda.ahead import checked_ahead

    try:
        rows = open_source(pool, config).rows
    except HkmError:  # left for the run to report
        return nullcontext()
    return checked_ahead(rows.n_features, rows.dtype, config.dtype)


@contextmanager
def plan_told(pool: Location, config: Config, runner: Runner) -> Iterator[None]:
    """Emit a note with the predicted cost of the run inside the context, once it has passed its checks and begins."""

    def tell(event: Event) -> None:
        if event.kind == "run_started":
            try:
                emit("note", message=short(plan_before_run(pool, config, runner)))
            except HkmError:  # left for the run to report
                return

    with subscribe(tell):
        yield


def plan_before_run(pool: Location, config: Config, runner: Runner) -> Plan:
    """Plan a run on existing workers, with the rates that `hkm plan` saved, if any."""
    source = open_source(pool, config)
    limit = round(limit_mib(runner.memory_budget) * 2**20) + 1
    place = Workers(
        runner.n_workers, runner.threads_per_worker, limit, is_cluster=not runner.in_process,
        n_threads_alone=runner.n_threads_alone,
    )  # fmt: skip
    kept = None if runner.n_staged else kept_calibration(source.rows.n_features)
    n_total, n_labeled = source.n_total, source.labeled.n_rows
    return make_plan(config, source.rows, place, n_total=n_total, n_labeled=n_labeled, calibration=kept)
