"""`browse`: opens a tree with its pool, captions and images, and serves the page."""

from __future__ import annotations

import errno
import html
import os

import xarray as xr

from hkm_dask.browsing.answers import Answers
from hkm_dask.browsing.clusters import Clusters, Subset
from hkm_dask.browsing.marks import Marks
from hkm_dask.browsing.samples import Samples
from hkm_dask.browsing.server import Server
from hkm_dask.data.objects import location
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.hierarchy.sampling.subset_files import read_rows
from hkm_dask.hierarchy.tree.pools import pool_is_gone, pool_of_tree
from hkm_dask.hierarchy.tree.tree import open_hierarchy


class Browser:
    """A page that is served until `close` or the end of the process; also a context manager.

    Attributes
    ----------
    url : str
        Address of the page. Anyone on this machine who knows it can see what the page shows.
    answers : Answers
        Answers to the requests of the page.
    """

    def __init__(self, answers: Answers, host: str, port: int) -> None:
        self.answers = answers
        try:
            self._server = Server(answers, host, port)
        except OSError as error:
            what = f"host={host} should be an address of this machine; leave --host out"
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                what = f"port={port} should be free and allowed; leave --port out"
            raise InputError(f"{what} ({error.strerror or error})") from error
        self.url = self._server.url
        if self._server.anywhere:
            emit(
                "warning",
                message="other machines can reach this page: anyone with its address can see all of it, unencrypted",
            )
        answers.warm()
        self._server.start()

    @property
    def n_unsaved(self) -> int:
        """Number of marks that differ from the saved file."""
        marks = self.answers.marks
        return len(set(marks.weights.items()) ^ set(marks.saved.items()))

    def wait(self) -> None:
        """Wait until the page is closed."""
        self._server.wait()

    def close(self) -> None:
        """Stop serving the page."""
        self._server.close()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Browser {self.url}>"

    def _repr_html_(self) -> str:
        url = html.escape(self.url)
        return f'<a href="{url}" target="_blank" rel="noreferrer">Browse {html.escape(self.answers.name)}</a>'


def browse(
    tree: xr.DataTree | str | os.PathLike[str],
    *,
    pool: str | os.PathLike[str] | None = None,
    captions: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    subset: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "weights.csv",
    host: str = "127.0.0.1",
    port: int = 0,
) -> Browser:
    """Serve a web page to explore a tree from the top and look into its clusters.

    Parameters
    ----------
    tree : xarray.DataTree or path
        From `open_hierarchy`, or its path.
    pool : path, optional
        The pool of the tree, if it was moved since the tree was built.
    captions : path, optional
        A text file with one line per row of the pool, a ``.jsonl`` or ``.parquet`` file with a ``text``, or the name of
        a column of the pool; by default a column ``caption``, ``text`` or ``title``.
    images : path, optional
        A folder or a ``.zip`` of images, named by the ids of the pool, as ``hkm embed image`` makes them, or by a
        column ``image_path``, ``file_name`` or similar.
    subset : path, optional
        ``.npy``, ``.parquet`` or ``.csv`` of ``hkm sample``, to be compared with the pool.
    out : path, default "weights.csv"
        Where marks are saved, for ``hkm sample --weights``; marks in an existing file are loaded.
    host : str, default "127.0.0.1"
        Address to listen on. With one that other machines can reach, anyone who knows the page's address can see it,
        and so can anyone on the network path, since it is not encrypted.
    port : int, default 0
        0 chooses a free port.

    Returns
    -------
    Browser
        Has the `url` of the page; notebooks show it as a link. The page is served by threads of this process.

    Raises
    ------
    InputError
        If captions, images, a subset or marks do not belong to the tree, or the port is in use.
    StoreError
        If the tree or the pool is missing or damaged, or the pool is not that of the tree.

    Examples
    --------
    >>> import tempfile, numpy as np, hkm_dask as hkm
    >>> x = np.random.default_rng(0).normal(size=(100, 2)).astype("float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = hkm.build_hierarchy(x, f"{folder}/tree.zarr", hkm.Config.from_flags((10, 3), n_resamples=0))
    ...     with hkm.browse(tree, out=f"{folder}/weights.csv") as browser:
    ...         print(browser.url)
    http://127.0.0.1:.../.../
    """
    opened = tree if isinstance(tree, xr.DataTree) else open_hierarchy(tree)
    clusters = Clusters(opened)
    found: Pool | None = None
    if pool is None and pool_is_gone(opened.attrs):
        what = f"{opened.attrs['pool']} no longer exists; only row numbers are shown, or give --pool"
        emit("warning", message=what)
    else:
        found = pool_of_tree(opened.attrs, "" if pool else ", or give --pool", pool)
    samples = Samples(
        clusters.n_rows, found, None if captions is None else str(captions), None if images is None else str(images)
    )
    marks = Marks(clusters, out)
    beside = None if subset is None else Subset(read_rows(subset, clusters.n_rows, pool=found), clusters)
    tree_path = location(opened.encoding.get("source") or "tree.zarr").absolute()
    return Browser(Answers(clusters, samples, marks, tree_path=tree_path, subset=beside), host, port)
