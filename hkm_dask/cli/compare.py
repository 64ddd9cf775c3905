"""`hkm compare`: two subsets of a pool side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hkm_dask.cli.options import STORE, Size
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("a", type=STORE, metavar="A")
@click.argument("b", type=STORE, metavar="B")
@click.option("--tree", type=STORE, metavar="TREE.zarr", help="The tree whose clusters are counted.")
@click.option("--pool", type=STORE, metavar="POOL.zarr", help="The pool, where there is no tree.")
@click.option("--threshold", type=float, default=0.95, metavar="COS", help="Cosine from which rows are duplicates.")
@click.option(
    "--sample", type=click.IntRange(min=0), default=1000, metavar="N", help="Rows of the pool to measure distances of."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Draws these rows.")
@click.option("--memory-limit", type=Size(), metavar="SIZE", help="What this process may hold, like 4GiB.")
@output_option
def compare(
    a: Location, b: Location, tree: Location | None, pool: Location | None, threshold: float, sample: int, seed: int,
    memory_limit: int | None, output: Output,
) -> None:  # fmt: skip
    """Compare two subsets of a pool.

    A and B are files that hkm sample or hkm dedup wrote (.npy, .parquet, .csv or .txt), the pool itself, or a tree for
    the rows it clusters. Told are sizes, overlap, clusters covered and how evenly at every level, how far the pool is
    from each, near-duplicates within each, and the pool's columns.
    """
    with output.progress():
        from hkm_dask.curation import compare as curation

        found = curation.compare(
            a, b, tree=tree, pool=pool, threshold=threshold, sample=sample, seed=seed, memory_limit=memory_limit
        )
    output.answer(found.facts, str(found))
