"""`hkm plan`: what will a run take?"""

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
@click.option("--n-samples", type=Count(1), metavar="N", help="In place of a pool: its rows, like 743M.")
@click.option("--n-features", type=Count(1), metavar="D", help="In place of a pool: values of a row.")
@click.option("--dtype", type=DTYPE, default="float16", help="In place of a pool: how it is stored.")
@settings_options
@click.option("--workers", type=click.IntRange(min=1), metavar="W", help="Plan for W processes.")
@click.option("--threads-per-worker", type=click.IntRange(min=1), default=1, metavar="T", help="Threads of each.")
@click.option("--gpu", metavar="NAME[:N]", help="Plan for N GPUs: h200, h100, a100, a100-40gb, l40s or l4.")
@click.option("--memory", type=Size(), metavar="SIZE", help="What one worker may hold, like 16GiB.")
@click.option(
    "--rates", type=PATH, metavar="FILE", help="Rates that hkm plan --json has measured, on this machine or another."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=10.0,
    metavar="S",
    help="To measure this machine, about; 0: not at all.",
)
@output_option
def plan(
    pool: Location | None, n_samples: int | None, n_features: int | None, dtype: str, workers: int | None,
    threads_per_worker: int, gpu: str | None, memory: int | None, rates: Path | None, seconds: float, output: Output,
    **settings: Any,
) -> None:  # fmt: skip
    """Say what a run of hkm cluster will take, and what would fit.

    Operations, passes, bytes read and written, memory of a worker and time of each level. The time is measured for some
    seconds on this machine, by small trees over rows of the pool, or rows made up where there is none; for GPUs it is
    predicted by their data sheets.
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
        raise click.UsageError("Give POOL.zarr, or --n-samples N and --n-features D in its place.")
    if gpu is not None and workers is not None:
        raise click.UsageError("Give --gpu NAME:N or --workers W, not both.")
    made = plan_run(
        of, read_settings(count, output.note, **settings), note=output.note, workers=workers,
        n_threads=threads_per_worker, gpu=gpu, memory=memory, rates=rates, seconds=seconds,
    )  # fmt: skip
    name = str(pool) if pool is not None else f"{n_samples:,} rows"
    output.answer(to_dict(made), render(made, name))
