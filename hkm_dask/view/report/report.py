"""`report`: a self-contained HTML file on a hierarchy and on the effect of a draw from it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.data.files import make_folder, write_file
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.export import check_target
from hkm_dask.hierarchy.sampling.subset_files import read_rows
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.view.report import columns, icicle, near_duplicates, ribbons
from hkm_dask.view.report.clusters import nearest
from hkm_dask.view.report.facts import find_pool, gather
from hkm_dask.view.report.labels import classes_of_clusters, open_labels
from hkm_dask.view.report.page import Contents, page
from hkm_dask.view.report.samples import open_samples

_Path = str | os.PathLike[str]


def report(
    tree: xr.DataTree | _Path,
    out: _Path,
    *,
    pool: _Path | None = None,
    subset: _Path | NDArray[np.integer] | None = None,
    labels: _Path | None = None,
    label_names: _Path | None = None,
    captions: _Path | None = None,
    images: _Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a self-contained HTML report on a hierarchy and on a draw from it.

    It has the settings, the cluster sizes of each level and how even they are, the inertia of every k-means, a chart of
    the hierarchy, the composition of the draw by cluster and by the values of the pool's columns, the near-duplicates
    left in the draw, and warnings about possibly harmful curation. The page loads no other files and needs no network.

    Parameters
    ----------
    tree : DataTree or path
        A tree on disk.
    out : path
        The ``.html`` file to write; must not exist yet unless `overwrite` is true.
    pool : path, optional
        The pool of the tree, if it was moved. If no pool is found, the parts that need it are left out.
    subset : path or array of int, shape (n,), optional
        The draw: a file written by `hkm sample`, or row numbers of the pool.
    labels : path or str, optional
        Class labels of the samples, not used by the tree: an ``.npy`` file of integers, or a column of the pool.
    label_names : path, optional
        Names of the labels: a JSON list, or an object by label.
    captions : path or str, optional
        A file with one text per row of the pool, or the name of one of its columns; by default column ``caption``,
        ``text`` or ``title``, otherwise the ids.
    images : path, optional
        The folder or ``.zip`` of images, named by the pool's ids or its column ``path``.
    overwrite : bool, default False
        Replace an existing file.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        If captions, images or the draw do not fit the tree, or the file exists.
    StoreError
        If the tree cannot be read, or the pool is not that of the tree.

    Examples
    --------
    >>> import tempfile, hkm_dask as hkm
    >>> x = np.random.default_rng(0).normal(size=(300, 2)).astype("float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = hkm.Config.from_flags((30, 6), n_resamples=1)
    ...     tree = hkm.build_hierarchy(x, f"{folder}/tree.zarr", config)
    ...     page = report(tree, f"{folder}/report.html", subset=hkm.sample(tree, 60))
    ...     "60 drawn" in page.read_text()
    True
    """
    target = check_target(out, (".html", ".htm"), overwrite=overwrite)
    opened = tree if isinstance(tree, xr.DataTree) else open_hierarchy(tree)
    where = str(opened.encoding.get("source") or "a tree in memory")
    of_tree = find_pool(opened.attrs, pool)
    n_samples = opened.hkm.n_samples
    rows = None if subset is None else _rows(subset, n_samples, of_tree)
    samples = open_samples(of_tree, n_samples, captions=captions, images=images)
    classes = None if labels is None else open_labels(labels, label_names, of_tree, n_samples)
    facts = gather(opened, where, of_tree, rows)
    drawn = facts.rows if facts.n_drawn else None
    cells = icicle.layout(opened, facts, pictures=samples.has_images)
    bands = ribbons.ribbons_of(opened, facts) if drawn is not None else []
    near = near_duplicates.find(opened, of_tree, drawn) if of_tree is not None and drawn is not None else None
    largest = nearest(opened, facts, pictures=samples.has_images)
    compared = {} if of_tree is None else {c.name: columns.compare(c, drawn) for c in columns.pool_columns(of_tree)}
    pairs = near.closest if near is not None else []
    if classes is not None:
        compared[classes.name] = columns.compare(classes, drawn)
    of_levels = [] if classes is None else classes_of_clusters(opened, classes)
    samples.load(
        int(row)
        for some in (
            *(band.samples for band in bands), *largest.values(), *((i, j) for i, j, _ in pairs),
            *(cell.samples for cell in sorted(cells, key=lambda cell: -cell.size)),
        )
        for row in some
    )  # fmt: skip
    labeled = None if classes is None else classes.name
    contents = Contents(facts, samples, cells, bands, near, largest, compared, labeled, of_levels)
    make_folder(target.parent)
    write_file(target, page(contents).encode())
    return Path(target)


def _rows(subset: _Path | NDArray[np.integer], n_samples: int, pool: Pool | None) -> NDArray[np.int64]:
    if isinstance(subset, str | os.PathLike):
        return read_rows(subset, n_samples, pool=pool)
    rows = np.asarray(subset)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows) or rows.min() < 0 or rows.max() >= n_samples:
        rule = f"row numbers of the pool, from 0 to {n_samples - 1}; give what `sample` returned"
        raise InputError(f"subset=array of {rows.dtype} {rows.shape} should be {rule}")
    return np.sort(rows.astype(np.int64))
