"""`hkm verify`: is a store what it says it is?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hkm_dask.cli.options import STORE
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("store", type=STORE, metavar="STORE")
@click.option("--pool", type=STORE, metavar="POOL.zarr", help="Where the pool of it lies now.")
@click.option("--tree", type=STORE, metavar="TREE.zarr", help="Where the tree of an assignment lies now.")
@click.option(
    "--sample", type=click.IntRange(min=0), default=1000, metavar="N", help="Rows per level to measure again."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Draws these rows.")
@output_option
def verify(
    store: Location, pool: Location | None, tree: Location | None, sample: int, seed: int, output: Output
) -> None:
    """Check a pool, a tree or an assignment from end to end.

    Every chunk and its checksum, all metadata, and what must agree: the values of a pool with their statistics, ids and
    fingerprint; labels, distances, members, sizes and inertia of every level of a tree; the clusters of an assignment
    with its tree, and its ids. Some rows of each level are measured again in float64, against all centroids. It goes on
    after a problem; the exit code is 1 where it found any.
    """
    with output.progress():
        from hkm_dask.hierarchy.verify.verify import verify as run_verify

        found = run_verify(store, pool=pool, tree=tree, sample=sample, seed=seed)
    head, *lines = str(found).splitlines()
    output.answer(found.facts(), "\n".join([click.style(head, fg="green" if found.sound else "red"), *lines]))
    if not found.sound:
        click.get_current_context().exit(1)
