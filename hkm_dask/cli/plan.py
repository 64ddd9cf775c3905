"""`hkm plan`: estimate a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.options import DTYPE, PATH, STORE, Count, Size, read_settings, settings_options
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("pool", type=STORE, metavar="[POOL.zarr]", required=False)
@click.option("--n-samples", type=Count(1), metavar="N", help="Number of rows, like 743M, without a pool.")
@click.option("--n-features", type=Count(1), metavar="D", help="Number of features, without a pool.")
@click.option("--dtype", type=DTYPE, default="float16", help="Storage type, without a pool.")
@settings_options
@click.option("--workers", type=click.IntRange(min=1), metavar="W", help="Plan for W worker processes.")
@click.option("--threads-per-worker", type=click.IntRange(min=1), default=1, metavar="T", help="Threads per process.")
@click.option("--gpu", metavar="NAME[:N]", help="Plan for N GPUs: h200, h100, a100, a100-40gb, l40s or l4.")
@click.option("--memory", type=Size(), metavar="SIZE", help="Memory limit of one worker, like 16GiB.")
@click.option(
    "--rates", type=PATH, metavar="FILE", help="Output of hkm plan --json, from this machine or another, for its rates."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=10.0,
    metavar="S",
    help="Approximate seconds to measure this machine; 0 to skip.",
)
@output_option
def plan(
    pool: Location | None, n_samples: int | None, n_features: int | None, dtype: str, workers: int | None,
    threads_per_worker: int, gpu: str | None, memory: int | None, rates: Path | None, seconds: float, output: Output,
    **settings: Any,
) -> None:  # fmt: skip
    """Estimate what a run of hkm cluster will take.

    Shows operations, passes, bytes read and written, memory per worker and time for each level, and settings that fit
    if these do not. Times come from small trees built for some seconds on this machine, from rows of the pool or
    synthetic rows; for GPUs they are predicted from data sheets.
    """
    from hkm_dask.hierarchy.source import n_clustered
    from hkm_dask.planning.command import plan_run
    from hkm_dask.planning.tell import render, to_dict

    of: Location | tuple[int, int, str]
    count: Callable[[str | None, int | None], int]
    if pool is not None and n_samples is None and n_features is None:
        of, count = pool, partial(n_clustered, pool)
    elif pool is None and n_samples is not None and n_features is not None:
        of, count = (n_samples, n_features, dtype), lambda _, fit_sample: min(n_samples, fit_sample or n_samples)
    else:
        raise click.UsageError("Give POOL.zarr, or --n-samples N and --n-features D instead.")
    if gpu is not None and workers is not None:
        raise click.UsageError("Give --gpu NAME:N or --workers W, not both.")
    made = plan_run(
        of, read_settings(count, output.note, **settings), note=output.note, workers=workers,
        n_threads=threads_per_worker, gpu=gpu, memory=memory, rates=rates, seconds=seconds,
    )  # fmt: skip
    name = str(pool) if pool is not None else f"{n_samples:,} rows"
    output.answer(to_dict(made), render(made, name))
