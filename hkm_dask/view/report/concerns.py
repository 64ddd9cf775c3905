"""Where curation looks harmful, or is not needed: rules with their reasons, and the numbers they rest on.

Each looks at what a tree and a draw tell by themselves, without labels, which is a sign and no proof.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hkm_dask.metrics import gini
from hkm_dask.view.report.columns import MISSING, Values
from hkm_dask.view.report.facts import NEAR_SHARE, Facts
from hkm_dask.view.report.markup import Markup, element, join, name, share
from hkm_dask.view.report.near_duplicates import NearDuplicates

#: A pool whose top-level clusters are more even than this is even already: a uniform draw is about as even as a curated
#: one, and keeps the proportions. Points spread evenly over a square have 0.15 to 0.25, the pools of pipelines/longtail
#: 0.5 and more.
EVEN_GINI = 0.3
#: One top-level cluster that holds more than this holds most of the pool, and a balanced draw hardly any of it.
MOST = 0.5
#: Outliers are told of from this share of the draw on. Of a uniform draw they are 1 %, by what is called far.
OUTLIERS = 0.05
#: Near-duplicates are told of from this share of the draw on, where they are twice as many as in a uniform one.
DUPLICATES, TIMES = 0.01, 2.0
#: A draw of more than this share of the pool cannot be even.
LARGE_DRAW = 0.5


def concerns(facts: Facts, near: NearDuplicates | None, classes: Values | None = None) -> list[Markup]:
    """What someone should look at before the draw is used."""
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
            "what the pool is about and not noise, raise its weight, or cluster it by itself.",
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
