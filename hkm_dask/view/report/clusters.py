"""Table of the largest top-level clusters: shares of the pool and of the draw, and representative samples."""

from __future__ import annotations

import xarray as xr
from numpy.typing import NDArray

from hkm_dask.view.report.facts import Facts
from hkm_dask.view.report.markup import Content, Markup, count, element, name, share, table
from hkm_dask.view.report.samples import Samples

#: Clusters in the table, and representative samples of each: captions, or thumbnails.
N_CLUSTERS, N_CAPTIONS, N_PICTURES = 24, 6, 12


def nearest(tree: xr.DataTree, facts: Facts, *, pictures: bool) -> dict[int, NDArray]:
    """Return the rows closest to the centers of the largest clusters, by cluster number."""
    n = N_PICTURES if pictures else N_CAPTIONS
    largest = facts.top.order[:N_CLUSTERS].tolist()
    return {cluster: tree.hkm.nearest_samples(facts.top.number, cluster, n) for cluster in largest}


def cluster_table(facts: Facts, rows: dict[int, NDArray], samples: Samples) -> Markup:
    """Make the table; `rows` are the representative samples of each cluster."""
    top, head = facts.top, ["Cluster", "Samples", "Share of pool"]
    head += [] if facts.rows is None else ["Share of draw"]
    body = []
    for cluster, of_cluster in rows.items():
        size = int(top.sizes[cluster])
        cells: list[Content] = [name(top.number, cluster), count(size), share(size / facts.n_clustered)]
        if top.drawn is not None:
            cells.append(share(int(top.drawn[cluster]) / max(facts.n_drawn, 1)))
        body.append([*cells, _representatives(of_cluster, samples)])
    caption = f"The {len(rows)} largest top-level clusters" if len(rows) > 1 else "The top-level cluster"
    return table([*head, "Samples closest to its center"], body, caption=caption, words=(len(head),))


def _representatives(rows: NDArray, samples: Samples) -> Content:
    if samples.has_images:
        return element("div", [samples.picture(row) for row in rows], class_="thumbs")
    return "; ".join(samples.caption(row) for row in rows)
