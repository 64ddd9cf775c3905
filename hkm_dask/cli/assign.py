"""`hkm assign`: new samples on the tree of others."""

from __future__ import annotations

from pathlib import Path

import click

from hkm_dask.cli.options import PATH, Place, place_options


@click.argument("tree", type=PATH, metavar="TREE.zarr")
@click.argument("pool", type=PATH, metavar="POOL2.zarr")
@click.argument("out", type=PATH, metavar="OUT.zarr")
@click.option("--restart", is_flag=True, help="Begin again, whatever is there of OUT.zarr.")
@place_options
def assign(tree: Path, pool: Path, out: Path, restart: bool, place: Place) -> None:
    """Give new samples their clusters at every level of a tree.

    OUT.zarr has their clusters as level_1, level_2 and so on, their Euclidean distance to the level-1 centroid, and
    their ids; xarray.open_zarr opens it. The tree stays as it is. Interrupted, the same command resumes.
    """
    from hkm_dask.hierarchy import assignment
    from hkm_dask.view import info
    from hkm_dask.view.progress import show_progress

    with show_progress(), place.connect() as runner:
        assignment.assign(tree, pool, out, client=runner.client, memory_limit=place.memory_limit, restart=restart)
    click.echo(info.render(info.describe(out)))
