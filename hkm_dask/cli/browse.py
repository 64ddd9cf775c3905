"""`hkm browse`: a page to walk a tree, see what its clusters hold, and mark what the next draw should take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.options import PATH, STORE

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.option("--captions", metavar="FILE|COLUMN", help="A line of text for each row, or a column of the pool.")
@click.option("--images", type=PATH, metavar="FOLDER|ZIP", help="Where the images are that the pool's ids name.")
@click.option("--subset", type=PATH, metavar="FILE", help="A draw to see beside the pool, a file of `hkm sample`.")
@click.option(
    "--out", type=PATH, metavar="FILE", default=Path("weights.csv"), help="Where marks are saved, and read again."
)
@click.option("--pool", type=STORE, metavar="POOL.zarr", help="Where the pool of the tree lies now.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="0 takes one that is free.")
@click.option(
    "--host", default="127.0.0.1", metavar="ADDRESS", help="Let other machines in: not on a network you share."
)
@click.option("--open", "opens", is_flag=True, help="Open the page in the web browser.")
def browse(tree: Location, opens: bool, **options: Any) -> None:
    """Walk a tree in the web browser.

    From the top down: sizes, samples in the middle and at the border of each cluster, search by caption, id or
    embedding. Clusters can be marked to be left out or reweighed; `hkm sample --weights` takes the file that is saved.
    The page is for this machine only, at the address that is printed, until Ctrl-C.
    """
    from hkm_dask.browsing.browse import browse as run_browse
    from hkm_dask.view.progress import show_progress

    with show_progress():
        browser = run_browse(tree, **options)
    with browser:
        try:
            click.echo(browser.url)
            click.echo("Ctrl-C ends it. On another machine, forward the port: ssh -L PORT:127.0.0.1:PORT", err=True)
            if opens:
                click.launch(browser.url)
            browser.wait()
        except KeyboardInterrupt:
            if n := browser.n_unsaved:
                what = "1 mark was" if n == 1 else f"{n} marks were"
                click.echo(f"\n{what} not saved to {options['out']}", err=True)
