"""`hkm report`: a hierarchy, and a draw from it, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.options import PATH, STORE
from hkm_dask.cli.output import Output, output_option

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.option("--out", type=PATH, required=True, metavar="FILE.html", help="Where to write the report.")
@click.option("--subset", type=PATH, metavar="FILE", help="The draw, a file of `hkm sample`.")
@click.option("--pool", type=STORE, metavar="POOL.zarr", help="Where the pool of the tree lies now.")
@click.option("--labels", metavar="FILE|COLUMN", help="A class of each sample: an .npy of numbers, or a column.")
@click.option("--label-names", type=PATH, metavar="FILE.json", help="Names of the classes.")
@click.option("--captions", metavar="FILE|COLUMN", help="A caption for each sample: a file of texts, or a column.")
@click.option("--images", type=PATH, metavar="FOLDER", help="The images that ids or a column name: a folder or .zip.")
@output_option
def report(tree: Location, out: Path, output: Output, **options: Any) -> None:
    """Report on a tree and on a draw from it, as one HTML file.

    Settings, sizes, inertia and time of each level, a picture of the hierarchy, the draw against the pool by cluster
    and by column, near-duplicates left in the draw, and warnings where curation looks harmful. The file needs no other
    and no network; clusters are named LEVEL:NUMBER, as --exclude of hkm sample takes them.
    """
    with output.progress():
        from hkm_dask.view.report.report import report as write_report

        target = write_report(tree, out, **options)
    size = target.stat().st_size
    output.answer({"out": str(target), "n_bytes": size}, f"{target}: {size / 2**20:.1f} MiB")
