"""Near-duplicates that are left in a draw, compared with a uniform draw of the same size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.curation.near_pairs import Pairs, near_pairs
from hkm_dask.data.pool import Pool
from hkm_dask.errors import ComputeError
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.view.report.markup import Content, Markup, count, element, share, table
from hkm_dask.view.report.samples import Samples

#: Cosines at or above which rows are near-duplicates.
THRESHOLDS = (0.99, 0.95, 0.9)
#: Most rows of a draw for which all pairs are compared, as their number is quadratic.
MAX_ROWS = 100_000
_N_SHOWN = 12


@dataclass(frozen=True)
class NearDuplicates:
    """Number of rows of a draw that have a near-duplicate in it, by threshold."""

    n_rows: int  # distinct rows in the draw
    #: By threshold, in the draw and in a uniform draw.
    drawn: dict[float, int]
    uniform: dict[float, int]
    closest: list[tuple[int, int, float]]  # closest pairs of the draw: two rows and their cosine


def find(tree: xr.DataTree, pool: Pool, rows: NDArray[np.int64]) -> NearDuplicates | None:
    """Compare all pairs of a draw; None if there are too many."""
    unique = np.unique(rows)
    if len(unique) > MAX_ROWS:
        return None
    uniform = _uniform(tree, len(unique))
    for i, lowest in reversed(list(enumerate(THRESHOLDS))):
        try:
            found, others = (near_pairs(pool, some, lowest) for some in (unique, uniform))
        except ComputeError:  # more pairs than fit in memory
            continue
        asked = THRESHOLDS[: i + 1]
        order = np.argsort(-found.cosine, kind="stable")[:_N_SHOWN]
        closest = [(int(found.i[k]), int(found.j[k]), float(found.cosine[k])) for k in order]
        return NearDuplicates(
            len(unique), {t: _n_rows(found, t) for t in asked}, {t: _n_rows(others, t) for t in asked}, closest
        )
    return None


def _uniform(tree: xr.DataTree, n: int) -> NDArray[np.int64]:
    """Draw uniformly from the samples that were clustered."""
    arrays = TreeArrays(tree)
    n_rows, rng = arrays.n_rows(1), np.random.default_rng(0)
    n_clustered = int(arrays.read(1, "sizes").sum())
    some = rng.choice(n_rows, min(n_rows, int(1.2 * n * n_rows / n_clustered) + 1000), replace=False)
    return np.sort(some[arrays.take(1, "labels", some) >= 0][:n])


def _n_rows(pairs: Pairs, threshold: float) -> int:
    near = pairs.cosine >= threshold
    return len(np.union1d(pairs.i[near], pairs.j[near]))


def draw_near_duplicates(near: NearDuplicates, samples: Samples) -> list[Markup]:
    """Make the tables of their numbers and of the closest pairs."""
    rows = [
        [f"{threshold} or more", f"{count(n)} ({share(n / near.n_rows)})", count(near.uniform[threshold])]
        for threshold, n in near.drawn.items()
    ]
    head = ["Cosine to another sample", "Samples of the draw", "In a uniform draw of the same size"]
    made = [table(head, rows, caption="Samples of the draw with a near-duplicate in it")]
    if near.closest:
        pairs: list[list[Content]] = [
            [f"{cosine:.3f}", _sample_cell(i, samples), _sample_cell(j, samples)] for i, j, cosine in near.closest
        ]
        made.append(
            table(["Cosine", "Sample", "Other sample"], pairs, caption="Closest pairs of the draw", words=(1, 2))
        )
    return made


def _sample_cell(row: int, samples: Samples) -> list[Content]:
    return [samples.picture(row), " ", element("span", samples.caption(row))]
