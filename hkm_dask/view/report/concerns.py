"""Warnings about possibly harmful or unnecessary curation: rules, their reasons, and their thresholds.

Each uses only the tree and the draw, without labels, and so is an indication, not proof.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hkm_dask.metrics import gini
from hkm_dask.view.report.columns import MISSING, Values
from hkm_dask.view.report.facts import NEAR_SHARE, Facts
from hkm_dask.view.report.markup import Markup, element, join, name, share
from hkm_dask.view.report.near_duplicates import NearDuplicates

#: Below this Gini, the top-level clusters of a pool are already even: a uniform draw is about as even as a curated one,
#: and keeps the proportions. Points spread evenly over a square have 0.15 to 0.25, the pools of pipelines/longtail 0.5
#: and more.
EVEN_GINI = 0.3
#: A top-level cluster with more than this share holds most of the pool, and a balanced draw contains little of it.
MOST = 0.5
#: Share of the draw from which outliers are reported. In a uniform draw it is 1 %, by definition of an outlier.
OUTLIERS = 0.05
#: Near-duplicates are reported from this share of the draw, if they are this many times as many as in a uniform draw.
DUPLICATES, TIMES = 0.01, 2.0
#: A draw with more than this share of the pool cannot be even.
LARGE_DRAW = 0.5


def concerns(facts: Facts, near: NearDuplicates | None, classes: Values | None = None) -> list[Markup]:
    """List the warnings that someone should read before using the draw."""
    found = [*_tree_warnings(facts), *(_draw_warnings(facts) if facts.n_drawn else [])]
    if classes is not None:
        found += _class_warnings(classes)
    if near is not None:
        found += _near_duplicate_warnings(near)
    return found


def _warning(head: str, *body: object) -> Markup:
    return join(element("b", head), " ", *body)


def _tree_warnings(facts: Facts) -> Iterator[Markup]:
    top = facts.top
    if top.gini < EVEN_GINI and len(top.filled) > 1:
        yield _warning(
            "The pool is already even.",
            f"Its top-level clusters have similar sizes (Gini {top.gini:.2f}; 0 is perfectly even, and this warning "
            f"appears below {EVEN_GINI}). A uniform draw is nearly as even as a curated one, and keeps the "
            "proportions of the pool.",
        )
    largest = int(top.sizes.argmax())
    part = float(top.sizes[largest] / facts.n_clustered)
    if part > MOST and len(top.filled) > 1:
        yield _warning(
            "One cluster holds most of the pool.", "Cluster ", name(top.number, largest),
            f" holds {share(part)} of the pool. A balanced draw takes about as much from it as from any other cluster. "
            "If it is the main content of the pool rather than noise, raise its weight or cluster it separately.",
        )  # fmt: skip
    asked = zip(facts.levels, facts.config.levels, strict=True)
    stopped = [level.number for level, of in asked if any(len(run) >= of.max_iter for run in level.runs)]
    if stopped:
        levels = f"level{'s' if len(stopped) > 1 else ''} {', '.join(map(str, stopped))}"
        yield _warning(
            "Not all k-means converged.",
            f"At {levels}, some stopped at max_iter while the inertia was still falling.",
        )


def _draw_warnings(facts: Facts) -> Iterator[Markup]:
    head, over = "The draw is no more even than the pool.", "top-level clusters"
    yield from _balance_warnings(head, over, facts.top.gini, facts.top.drawn_gini)
    if facts.far is not None and facts.far[1] >= OUTLIERS:
        pool, draw = facts.far
        yield _warning(
            "The draw contains outliers.",
            f"{share(draw)} of the draw is farther from its centroids than {100 * NEAR_SHARE:.0f} % of the pool "
            f"({share(pool)} of the pool is). These may be rare content or noise; inspect some of them.",
        )
    part = facts.n_drawn / facts.n_clustered
    if part > LARGE_DRAW:
        body = f"It takes {share(part)} of the pool, so large clusters have to make up for small ones."
        yield _warning("The draw is too large to be even.", body)


def _class_warnings(classes: Values) -> Iterator[Markup]:
    known = np.array([name != MISSING for name in classes.names])
    if classes.draw is not None and classes.draw[known].any():
        head, over = "The classes are no more even in the draw than in the pool.", f"{known.sum()} classes"
        yield from _balance_warnings(head, over, gini(classes.pool[known]), gini(classes.draw[known]))


def _balance_warnings(head: str, over: str, pool: float, draw: float) -> Iterator[Markup]:
    if draw >= pool:
        yield _warning(
            head, f"The draw's Gini over the {over} is {draw:.2f}, the pool's {pool:.2f}; 0 is perfectly even."
        )


def _near_duplicate_warnings(near: NearDuplicates) -> Iterator[Markup]:
    for threshold, drawn in near.drawn.items():
        part = drawn / near.n_rows
        if part >= DUPLICATES and drawn >= TIMES * near.uniform[threshold]:
            yield _warning(
                "The draw contains near-duplicates.",
                f"{share(part)} of its samples have another one at a cosine of {threshold} or more; in a uniform draw "
                f"of that size, {share(near.uniform[threshold] / near.n_rows)} have. Remove them from the pool with ",
                element("code", f"hkm dedup --threshold {threshold}"), ", then cluster the remaining samples.",
            )  # fmt: skip
            return
