"""`hkm sample`: a balanced subset of a tree, by rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.options import PATH, STORE, Clusters, Count, OfColumn, overwrite_option, pool_option
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.option("--size", type=Count(), required=True, metavar="N", help="How many rows, like 100000 or 100k.")
@click.option("--out", type=STORE, required=True, metavar="FILE", help="An .npy, .parquet, .csv or .txt file to write.")
@click.option(
    "--strategy",
    type=click.Choice(["hierarchical", "flat"]),
    default="hierarchical",
    help="Share the rows out at every level, or once among the clusters of the top one.",
)
@click.option(
    "--within",
    type=click.Choice(["random", "closest", "furthest", "best"]),
    default="random",
    help="Which members of a level-1 cluster come first.",
)
@click.option(
    "--by",
    metavar="COLUMN",
    help="With --within best: the largest values are the best; with - before it, the smallest.",
)
@click.option("--multiplier", type=int, default=1, metavar="N", help="How often a row may be taken.")
@click.option(
    "--exclude", type=Clusters(), multiple=True, help="Draw nothing from these clusters, like 2:19,1:7 (LEVEL:NUMBER)."
)
@click.option("--only", type=Clusters(), multiple=True, help="Draw from these clusters only.")
@click.option(
    "--exclude-ids",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Draw no row that is listed in this .txt, .csv, .parquet or .npy file, such as another subset.",
)
@click.option(
    "--weights", type=PATH, metavar="FILE", help="Scale what clusters give: CSV with cluster,weight in its first line."
)
@click.option(
    "--max-per",
    type=OfColumn("N", int),
    multiple=True,
    help="At most N rows of each value of a column, or of each cluster: level_1=3.",
)
@click.option(
    "--quota",
    "quotas",
    type=OfColumn("FILE", Path),
    multiple=True,
    help="Rows, or shares, of values of a column: CSV with value,quota in its first line.",
)
@click.option("--seed", type=int, default=0, metavar="N", help="Keys every random number.")
@pool_option
@overwrite_option
@output_option
def sample(
    tree: Location, size: int, out: Location, pool: Location | None, overwrite: bool, output: Output, **options: Any
) -> None:
    """Draw a balanced subset from a tree.

    The rows are sorted, and none comes twice unless --multiplier allows it. An .npy file has their numbers in the
    pool, .txt their ids (or numbers); .parquet and .csv have both, with the cluster at every level and the distance
    to the level-1 centroid.

    Rules hold exactly, and so does the size: what the rules leave is shared out evenly among the clusters. A size
    beyond it is refused. --exclude, --only and --exclude-ids may be given several times.
    """
    for name in ("exclude", "only"):
        options[name] = [cluster for clusters in options[name] for cluster in clusters]
    for name in ("max_per", "quotas"):
        given = [item for one in options[name] for item in one.items()]
        options[name] = dict(given)
        if len(options[name]) < len(given):
            raise click.UsageError(f"--{name.replace('_', '-').removesuffix('s')} is given twice for one column.")
    with output.progress():
        from hkm_dask.hierarchy.sampling import export
        from hkm_dask.hierarchy.sampling.sample import sample as draw
        from hkm_dask.hierarchy.tree.tree import open_hierarchy

        export.check_target(out, overwrite=overwrite)
        opened = open_hierarchy(tree, pool=pool)
        rows = draw(opened, size, **options)
        export.write_subset(out, rows, opened, overwrite=overwrite)
    output.answer({"out": str(out), "n_rows": len(rows)}, f"{out}: {len(rows):,} rows")
