"""Rules for when curation looks harmful or unnecessary, with the reasons and numbers behind them.

They use only the tree and the draw, without labels, so they are indications, not proof.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hkm_dask.metrics import gini
from hkm_dask.view.report.columns import MISSING, Values
from hkm_dask.view.report.facts import NEAR_SHARE, Facts
from hkm_dask.view.report.markup import Markup, element, join, name, share
from hkm_dask.view.report.near_duplicates import NearDuplicates

#: A pool whose top-level clusters have a lower Gini coefficient is already even: a uniform draw is about as even as a
#: curated one, and keeps the proportions. Points spread evenly over a square have 0.15 to 0.25, the pools of
#: pipelines/longtail 0.5 and more.
EVEN_GINI = 0.3
#: A top-level cluster with more than this share has most of the pool, but hardly any of a balanced draw.
MOST = 0.5
#: Share of outliers in the draw from which on they are reported. In a uniform draw it is 1 %, by the definition of far.
OUTLIERS = 0.05
#: Share of near-duplicates in the draw from which on they are reported, if it is also twice that in a uniform draw.
DUPLICATES, TIMES = 0.01, 2.0
#: A draw with more than this share of the pool cannot be even.
LARGE_DRAW = 0.5


def concerns(facts: Facts, near: NearDuplicates | None, classes: Values | None = None) -> list[Markup]:
    """Return what should be checked before the draw is used."""
    found = [*_of_the_tree(facts), *(_of_the_draw(facts) if facts.n_drawn else [])]
    if classes is not None:
        found += _of_classes(classes)
    if near is not None:
        found += _near(near)
    return found


def _said(head: str, *body: object) -> Markup:
    return join(element("b", head), " ", *body)


def _of_the_tree(facts: Facts) -> Iterator[Markup]:
    top = facts.top
    if top.gini < EVEN_GINI and len(top.filled) > 1:
        yield _said(
            "The pool is even already.",
            f"Its top-level clusters are about equally large (Gini {top.gini:.2f}; 0 is equal, {EVEN_GINI} the limit "
            "of this warning): a uniform draw is nearly as even as a curated one, and keeps the proportions of the "
            "pool.",
        )
    largest = int(top.sizes.argmax())
    part = float(top.sizes[largest] / facts.n_clustered)
    if part > MOST and len(top.filled) > 1:
        yield _said(
            "One cluster holds most.", "Cluster ", name(top.number, largest),
            f" holds {share(part)} of the pool. A balanced draw gives it about as much as any other cluster: if it is "
            "what the pool is about, and no noise, raise its weight, or cluster it by itself.",
        )  # fmt: skip
    asked = zip(facts.levels, facts.config.levels, strict=True)
    stopped = [level.number for level, of in asked if any(len(run) >= of.max_iter for run in level.runs)]
    if stopped:
        levels = ", ".join(map(str, stopped))
        yield _said(
            "Not all k-means converged.", f"At level {levels} some stopped at max_iter while the inertia still fell."
        )


def _of_the_draw(facts: Facts) -> Iterator[Markup]:
    head, over = "The draw is no more even than the pool.", "top-level clusters"
    yield from _no_more_even(head, over, facts.top.gini, facts.top.drawn_gini)
    if facts.far is not None and facts.far[1] >= OUTLIERS:
        pool, draw = facts.far
        yield _said(
            "Outliers are drawn.",
            f"{share(draw)} of the draw lie farther from their centroids than {100 * NEAR_SHARE:.0f} % of the pool "
            f"({share(pool)} of the pool do). These may be rare things, or rubbish: look at some of them.",
        )
    part = facts.n_drawn / facts.n_clustered
    if part > LARGE_DRAW:
        body = f"It takes {share(part)} of the pool, so that large clusters fill what small ones cannot give."
        yield _said("The draw is too large to be even.", body)


def _of_classes(classes: Values) -> Iterator[Markup]:
    known = np.array([name != MISSING for name in classes.names])
    if classes.draw is not None and classes.draw[known].any():
        head, over = "The classes are no more even in the draw than in the pool.", f"{known.sum()} classes"
        yield from _no_more_even(head, over, gini(classes.pool[known]), gini(classes.draw[known]))


def _no_more_even(head: str, over: str, pool: float, draw: float) -> Iterator[Markup]:
    if draw >= pool:
        yield _said(head, f"Over the {over} its Gini is {draw:.2f}, that of the pool {pool:.2f}; 0 is even.")


def _near(near: NearDuplicates) -> Iterator[Markup]:
    for threshold, drawn in near.drawn.items():
        part = drawn / near.n_rows
        if part >= DUPLICATES and drawn >= TIMES * near.uniform[threshold]:
            yield _said(
                "Near-duplicates are drawn.",
                f"{share(part)} of the draw have another sample in it at a cosine of {threshold} or more; of a uniform "
                f"draw of that size, {share(near.uniform[threshold] / near.n_rows)}. Leave them out of the pool with ",
                element("code", f"hkm dedup --threshold {threshold}"), ", then cluster what is left.",
            )  # fmt: skip
            return
