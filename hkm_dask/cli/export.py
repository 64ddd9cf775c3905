"""`hkm export`: what is known of every row, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hkm_dask.cli.options import STORE
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("store", type=STORE, metavar="POOL.zarr|TREE.zarr|NEW.zarr")
@click.argument("out", type=STORE, metavar="OUT.parquet")
@click.option("--embeddings", is_flag=True, help="With the embeddings, as a column of vectors.")
@click.option("--xy", is_flag=True, help="With x and y: the first two principal components, for a scatter plot.")
@output_option
def export(store: Location, out: Location, embeddings: bool, xy: bool, output: Output) -> None:
    """Write all rows of a pool, a tree or an assignment as a table.

    Its columns are row, id, the columns of the pool, and of a tree or an assignment the cluster at every level and the
    distance to the level-1 centroid. It is written block by block, so it may be larger than memory.
    """
    with output.progress():
        from hkm_dask.hierarchy.table import export as run_export

        run_export(store, out, embeddings=embeddings, xy=xy)
    import pyarrow.parquet as pq

    with out.open("rb") as opened, pq.ParquetFile(opened) as file:
        n_rows, columns = file.metadata.num_rows, file.schema_arrow.names
    facts = {"out": str(out), "n_rows": n_rows, "columns": columns}
    output.answer(facts, f"{out}: {n_rows:,} rows of {', '.join(columns)}")
