"""`hkm ingest`: embeddings that exist into a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.options import (
    DTYPE,
    STORE,
    Names,
    Place,
    column_option,
    ids_file_option,
    ids_option,
    place_options,
)
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("pool", type=STORE, metavar="POOL.zarr")
@click.option("--dtype", type=DTYPE, help="Store as this; the sources' own by default.")
@click.option("--normalize", is_flag=True, help="Scale every row to unit length.")
@ids_option
@ids_file_option
@column_option
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
