"""`hkm ingest`: embeddings that exist into a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.options import DTYPE, PATH, STORE, Names, Place, place_options
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("pool", type=STORE, metavar="POOL.zarr")
@click.option("--dtype", type=DTYPE, help="Store as this; the sources' own by default.")
@click.option("--normalize", is_flag=True, help="Scale every row to unit length.")
@click.option("--ids", metavar="COLUMN", help="The column that has the ids.")
@click.option(
    "--ids-file",
    type=PATH,
    metavar="FILE",
    help="The ids in a file: .npy, .txt, or a .csv, .tsv, .parquet or .arrow whose columns --ids and --keep name.",
)
@click.option("--column", metavar="NAME", help="The column or array that has the embeddings.")
@click.option(
    "--keep",
    type=Names(),
    default=(),
    show_default=False,
    metavar="COLUMN,...",
    help="Further columns to carry to the subsets.",
)
@click.option("--drop-nonfinite", is_flag=True, help="Leave out rows with NaN or Inf instead of refusing them.")
@click.option("--chunk-mb", type=float, metavar="N", help="Size of a storage chunk in MiB.")
@output_option
@place_options
def ingest(sources: tuple[str, ...], pool: Location, place: Place, output: Output, **options: Any) -> None:
    """Turn embeddings into a pool.

    A pool is one Zarr store with checksums. SOURCE is an .npy, .npz, .parquet, .arrow or .safetensors file, a folder of
    such shards, of clip-retrieval or of Hugging Face's save_to_disk, or a Zarr array or group; several are put one
    after the other.
    """
    with output.run(place) as runner:
        from hkm_dask.ingestion.ingest import ingest as run_ingest

        run_ingest(list(sources), pool, client=runner.client, **options)
    output.describe(pool)
