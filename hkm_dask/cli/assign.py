"""`hkm assign`: new samples on the tree of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hkm_dask.cli.options import STORE, Place, place_options
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.argument("pool", type=STORE, metavar="POOL2.zarr")
@click.argument("out", type=STORE, metavar="OUT.zarr")
@click.option("--restart", is_flag=True, help="Begin again, whatever is there of OUT.zarr.")
@output_option
@place_options
def assign(tree: Location, pool: Location, out: Location, restart: bool, place: Place, output: Output) -> None:
    """Give new samples their clusters at every level of a tree.

    OUT.zarr has their clusters as level_1, level_2 and so on, their Euclidean distance to the level-1 centroid, and
    their ids; xarray.open_zarr opens it. The tree stays as it is. Interrupted, the same command resumes.
    """
    with output.run(place) as runner:
        from hkm_dask.hierarchy import assignment

        assignment.assign(tree, pool, out, client=runner.client, memory_limit=place.memory_limit, restart=restart)
    output.describe(out)
