"""What is varied: levels, seeding, resampling, numbers of clusters, and the advice that came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pools import POOLS
from trials import Init, Metric, Trial

Sizes = tuple[int, ...]
INITS: tuple[Init, ...] = ("random", "k-means||", "k-means++", "coreset")
HIERARCHICAL, FLAT = "hierarchical random", "flat random"


@dataclass(frozen=True)
class Row:
    """One line of a table: the same settings with several seeds, and one way of drawing."""

    name: str
    trials: tuple[Trial, ...]
    draw: str = HIERARCHICAL


@dataclass(frozen=True)
class Study:
    """A table: what it asks, and its lines."""

    name: str
    question: str
    rows: tuple[Row, ...] = field(default_factory=tuple)

    def trials(self) -> Iterator[Trial]:
        """All that has to be measured."""
        for row in self.rows:
            yield from row.trials


def trials(
    pool: str,
    n_clusters: Sizes,
    *,
    m: int | Sizes,
    r: Sequence[int] | None,
    seeds: int,
    init: Init = "coreset",
    metric: Metric = "l2",
) -> tuple[Trial, ...]:
    """One setting with seeds 0, 1, …; `r` of None is the library's own choice."""
    n = len(n_clusters)
    ms = (m,) * n if isinstance(m, int) else m
    auto: Literal["auto"] = "auto"
    sizes: tuple[int | Literal["auto"], ...] = tuple(r or [auto] * n)
    return tuple(Trial(pool, n_clusters, ms, sizes, init, seed, metric) for seed in range(seeds))


def uniform(pool: str, seeds: int) -> tuple[Trial, ...]:
    """Draws without a tree."""
    return tuple(Trial(pool, seed=seed) for seed in range(seeds))


#: The settings of the authors' runs on the nouns, and those with smaller clusters at level 1.
LEVELS: dict[str, tuple[Sizes, Sizes]] = {
    "1 level": ((100,), (2,)),
    "2 levels": ((1000, 100), (8, 5)),
    "3 levels": ((1000, 300, 100), (8, 2, 2)),
    "3 levels, as advised": ((3037, 1012, 303), (3, 2, 2)),
    "4 levels": ((3000, 1000, 300, 100), (3, 2, 2, 2)),
    "5 levels": ((3000, 1000, 400, 150, 50), (3, 2, 2, 2, 2)),
}


#: What did best on the nouns: five samples to a cluster, three clusters to a cluster, and no level beyond the third.
ADVICE = (5, 15, 50)
ADVISED_R = (3, 2, 2)
#: Larger clusters, as one would rather choose for a first try.
LARGER = (15, 50, 150)


def in_proportion(n_samples: int, shares: Sequence[int]) -> Sizes:
    """Numbers of clusters for a pool, from samples per cluster."""
    return tuple(max(2, n_samples // share) for share in shares)


def levels(seeds: int) -> Study:
    """Tables 2 and 3 in small: one to five levels, without resampling, flat, and what is taken from a cluster."""
    three, r3 = LEVELS["3 levels"]
    advised, r = LEVELS["3 levels, as advised"]
    best = trials("nouns", advised, m=10, r=r, seeds=seeds)
    rows = [
        Row("uniform draw", uniform("nouns", seeds), "random"),
        *(
            Row(name, trials("nouns", ks, m=10 if len(ks) > 1 else 0, r=r, seeds=seeds))
            for name, (ks, r) in LEVELS.items()
        ),
        Row("3 levels, not resampled", trials("nouns", three, m=0, r=r3, seeds=seeds)),
        Row("as advised, not resampled", trials("nouns", advised, m=0, r=r, seeds=seeds)),
        Row("3 levels, flat", trials("nouns", three, m=10, r=r3, seeds=seeds), FLAT),
        Row("as advised, flat", best, FLAT),
        Row("as advised, closest to the centroid", best, "hierarchical closest"),
        Row("as advised, furthest from it", best, "hierarchical furthest"),
        Row("even draw, by one who knows the classes", uniform("nouns", seeds), "ideal"),
    ]  # fmt: skip
    return Study("levels", "What do levels and resampling do?", tuple(rows))


def seeding(seeds: int, pools: Sequence[str]) -> Study:
    """Which start balances best, on every pool."""
    rows = []
    for pool in pools:
        n_clusters = in_proportion(len(POOLS[pool]().labels), ADVICE)
        rows.append(Row(f"{pool}: uniform draw", uniform(pool, seeds), "random"))
        for init in INITS:
            tried = trials(pool, n_clusters, m=10, r=ADVISED_R, seeds=seeds, init=init)
            rows.append(Row(f"{pool}: {init}", tried))
    return Study("seeding", "Which seeding balances best?", tuple(rows))


def advice(seeds: int, pools: Sequence[str]) -> Study:
    """The setting that did best on the nouns, on pools that had no say in it."""
    rows = []
    for pool in pools:
        n = len(POOLS[pool]().labels)
        rows += [
            Row(f"{pool}: uniform draw", uniform(pool, seeds), "random"),
            Row(f"{pool}: 1 level", trials(pool, in_proportion(n, LARGER[-1:]), m=0, r=None, seeds=seeds)),
            Row(f"{pool}: larger clusters", trials(pool, in_proportion(n, LARGER), m=10, r=None, seeds=seeds)),
            Row(f"{pool}: as advised", trials(pool, in_proportion(n, ADVICE), m=10, r=ADVISED_R, seeds=seeds)),
            Row(f"{pool}: even draw", uniform(pool, seeds), "ideal"),
        ]
    return Study("advice", "Does the advice hold on other pools?", tuple(rows))


#: Table 3e in small.
RESAMPLES = (0, 1, 3, 10, 30)
#: Table 3d in small: the numbers of clusters, and the members that make as many again.
CLUSTERS: dict[str, tuple[Sizes, Sizes]] = {
    "500-150-50": ((500, 150, 50), (15, 2, 2)),
    "1000-300-100": ((1000, 300, 100), (8, 2, 2)),
    "2000-600-200": ((2000, 600, 200), (4, 2, 2)),
    "4000-1200-400": ((4000, 1200, 400), (2, 2, 2)),
}
#: Members that every level-1 cluster of 1000 gives to resampling.
MEMBERS = (2, 4, 8, 12)


def resampling(seeds: int) -> Study:
    """How many steps, and how many members."""
    ks, r = LEVELS["3 levels"]
    rows = [Row(f"m = {m}", trials("nouns", ks, m=m, r=r, seeds=seeds)) for m in RESAMPLES]
    rows += [Row(f"r = {n}", trials("nouns", ks, m=10, r=(n, 2, 2), seeds=seeds)) for n in MEMBERS]
    return Study("resampling", "How many resamplings, of how many members?", tuple(rows))


def clusters(seeds: int) -> Study:
    """How many clusters."""
    rows = [Row(name, trials("nouns", ks, m=10, r=r, seeds=seeds)) for name, (ks, r) in CLUSTERS.items()]
    return Study("clusters", "How many clusters?", tuple(rows))
