"""`hkm sample`: draw a balanced subset from a tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.options import PATH, STORE, Clusters, Count, OfColumn, overwrite_option, pool_option
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.option("--size", type=Count(), required=True, metavar="N", help="Number of rows, like 100000 or 100k.")
@click.option("--out", type=STORE, required=True, metavar="FILE", help="Output file: .npy, .parquet, .csv or .txt.")
@click.option(
    "--strategy",
    type=click.Choice(["hierarchical", "flat"]),
    default="hierarchical",
    help="Divide the size evenly at every level, or only among the top-level clusters.",
)
@click.option(
    "--within",
    type=click.Choice(["random", "closest", "furthest", "best"]),
    default="random",
    help="Members of a level-1 cluster to prefer.",
)
@click.option(
    "--by",
    metavar="COLUMN",
    help="With --within best: prefer the largest values, or the smallest with a leading -.",
)
@click.option("--multiplier", type=int, default=1, metavar="N", help="Maximum number of times a row is drawn.")
@click.option("--exclude", type=Clusters(), multiple=True, help="Exclude these clusters, like 2:19,1:7 (LEVEL:NUMBER).")
@click.option("--only", type=Clusters(), multiple=True, help="Draw only from these clusters.")
@click.option(
    "--exclude-ids",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Exclude the rows listed in a .txt, .csv, .parquet or .npy file, such as another subset.",
)
@click.option(
    "--weights", type=PATH, metavar="FILE", help="Scale the shares of clusters: CSV with the header cluster,weight."
)
@click.option(
    "--max-per",
    type=OfColumn("N", int),
    multiple=True,
    help="At most N rows per value of a column, or per cluster: level_1=3.",
)
@click.option(
    "--quota",
    "quotas",
    type=OfColumn("FILE", Path),
    multiple=True,
    help="Rows or shares per value of a column: CSV with the header value,quota.",
)
@click.option("--seed", type=int, default=0, metavar="N", help="Random seed.")
@pool_option
@overwrite_option
@output_option
def sample(
    tree: Location, size: int, out: Location, pool: Location | None, overwrite: bool, output: Output, **options: Any
) -> None:
    """Draw a balanced subset from a tree.

    Rows are sorted, and not repeated unless --multiplier allows it. An .npy file holds row numbers of the pool, .txt
    ids (or row numbers if there are no ids); .parquet and .csv hold both, with the cluster at every level and the
    distance to the level-1 centroid.

    Rules hold exactly, and so does the size: the rows that the rules allow are balanced over the clusters. If they
    are too few, the command fails. --exclude, --only and --exclude-ids can be repeated.
    """
    for name in ("exclude", "only"):
        options[name] = [cluster for clusters in options[name] for cluster in clusters]
    for name in ("max_per", "quotas"):
        given = [item for one in options[name] for item in one.items()]
        options[name] = dict(given)
        if len(options[name]) < len(given):
            raise click.UsageError(f"--{name.replace('_', '-').removesuffix('s')} is given twice for the same column.")
    with output.progress():
        from hkm_dask.hierarchy.sampling import export
        from hkm_dask.hierarchy.sampling.sample import sample as draw
        from hkm_dask.hierarchy.tree.tree import open_hierarchy

        export.check_target(out, overwrite=overwrite)
        opened = open_hierarchy(tree, pool=pool)
        rows = draw(opened, size, **options)
        export.write_subset(out, rows, opened, overwrite=overwrite)
    output.answer({"out": str(out), "n_rows": len(rows)}, f"{out}: {len(rows):,} rows")
