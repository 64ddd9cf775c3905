"""`hkm update`: new samples join a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.options import STORE, Place, column_option, ids_file_option, ids_option, place_options
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.argument("pool", type=STORE, metavar="POOL.zarr")
@click.argument("new", type=STORE, nargs=-1, metavar="NEW...")
@ids_option
@ids_file_option
@column_option
@output_option
@place_options
def update(
    tree: Location, pool: Location, new: tuple[Location, ...], place: Place, output: Output, **options: Any
) -> None:
    """Let new samples join a tree and its pool.

    Nothing is clustered anew. NEW are pools, or what hkm ingest takes. Their rows lie below those of the pool, so that
    row numbers and subsets stay valid; each goes to the nearest of all level-1 centroids, which stay where they are.
    TREE.zarr and POOL.zarr are replaced when both are complete. Then renew the draw with hkm sample. Without NEW a tree
    follows its pool that has grown with another tree. Interrupted, the same command resumes.

    --ids, --ids-file and --column tell of those NEW that are no pools. The columns that the pool has are taken from
    them, or from the table of --ids-file.
    """
    with output.run(place) as runner:
        from hkm_dask.data.pool import open_pool
        from hkm_dask.hierarchy.tree.tree import open_hierarchy
        from hkm_dask.ingestion.update import update as run_update

        run_update(tree, pool, *new, client=runner.client, memory_limit=place.memory_limit, **options)
    grown, n_samples = open_hierarchy(tree), open_pool(pool).n_samples
    n_clustered = grown["level_1"].sizes["member_1"]
    updates = grown.attrs.get("updates") or [{"n_samples": n_samples}]
    n_joined = n_samples - int(updates[-1]["n_samples"])
    held = f"{n_samples:,}" if n_clustered == n_samples else f"{n_clustered:,} of the pool's {n_samples:,}"
    text = f"{tree}: {held} samples, of which {n_joined:,} joined in the last update"
    facts = {"tree": str(tree), "n_samples": n_samples, "n_clustered": n_clustered, "n_joined": n_joined}
    output.answer(facts, f"{text}\n  to renew the draw: hkm sample {tree} --size N --out FILE")
