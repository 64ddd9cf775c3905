"""`hkm dedup`: a pool or a tree without its near-duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkm_dask.cli.options import PATH, STORE, Place, place_options
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("store", type=STORE, metavar="POOL.zarr|TREE.zarr")
@click.option("--threshold", type=float, required=True, metavar="COS", help="Cosine from which rows are duplicates.")
@click.option(
    "--out", type=STORE, required=True, metavar="FILE", help="Where the rows kept go: .npy, .parquet, .csv or .txt."
)
@click.option(
    "--keep",
    type=click.Choice(["closest", "random", "best"]),
    default="closest",
    help="Of each group: the row closest to its centroid, one at random, or the best by a column.",
)
@click.option(
    "--by", metavar="COLUMN", help="With --keep best: the largest value is the best; with - before it, the smallest."
)
@click.option("--subset", type=PATH, metavar="FILE", help="Look at these rows of the pool only.")
@click.option("--removed", type=STORE, metavar="FILE", help="Write the rows removed, in such a file, too.")
@click.option("--groups", type=STORE, metavar="FILE.parquet", help="Write the groups of near-duplicates, too.")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Keys every random number.")
@output_option
@place_options
def dedup(
    store: Location, threshold: float, out: Location, keep: str, by: str | None, subset: Path | None,
    removed: Location | None, groups: Location | None, seed: int, output: Output, place: Place,
) -> None:  # fmt: skip
    """Keep one row of each group of near-duplicates.

    All pairs of rows with a cosine from the threshold on are found; what they connect is a group. --out has the
    rows that are kept, for hkm cluster --subset; of a tree, only rows that it clusters are looked at. --removed is for
    hkm sample --exclude-ids.
    """
    with output.progress():
        from hkm_dask.curation import dedup as curation

        curation.check_targets(out, removed, groups)
    with output.run(place) as runner:
        found = curation.dedup(
            store, threshold, keep=keep, by=by, subset=subset, seed=seed, client=runner.client,
            memory_limit=place.memory_limit,
        )  # fmt: skip
        found.save(out, removed=removed, groups=groups)
    output.answer(found.facts(), f"{out}: {found}")
