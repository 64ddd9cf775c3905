"""Studies of levels, seeding, resampling and numbers of clusters; a search, and a test of the settings it advised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipelines.longtail.pools import POOLS
from pipelines.longtail.trials import Init, Metric, Trial

Sizes = tuple[int, ...]
INITS: tuple[Init, ...] = ("random", "k-means||", "k-means++", "coreset")
HIERARCHICAL, FLAT = "hierarchical random", "flat random"


@dataclass(frozen=True)
class Row:
    """A row of a table: the same settings with several seeds, and one way of drawing."""

    name: str
    trials: tuple[Trial, ...]
    draw: str = HIERARCHICAL


@dataclass(frozen=True)
class Study:
    """A table: its question, and its rows."""

    name: str
    question: str
    rows: tuple[Row, ...] = field(default_factory=tuple)

    def trials(self) -> Iterator[Trial]:
        """Yield all trials to be measured."""
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
    """Return trials of one setting with seeds 0, 1, …; with `r` None, the library chooses it."""
    n = len(n_clusters)
    ms = (m,) * n if isinstance(m, int) else m
    auto: Literal["auto"] = "auto"
    sizes: tuple[int | Literal["auto"], ...] = tuple(r or [auto] * n)
    return tuple(Trial(pool, n_clusters, ms, sizes, init, seed, metric) for seed in range(seeds))


def uniform(pool: str, seeds: int) -> tuple[Trial, ...]:
    """Return trials without a tree."""
    return tuple(Trial(pool, seed=seed) for seed in range(seeds))


#: Clusters, resamplings and members: the settings of the authors' runs, the advice, and one and two levels more.
LEVELS: dict[str, tuple[Sizes, int, Sizes]] = {
    "1 level": ((100,), 0, (2,)),
    "2 levels": ((1000, 100), 10, (8, 5)),
    "3 levels": ((1000, 300, 100), 10, (8, 2, 2)),
    "3 levels, as advised": ((3037, 1518, 506), 1, (2, 2, 2)),
    "4 levels": ((3000, 1000, 300, 100), 10, (3, 2, 2, 2)),
    "5 levels": ((3000, 1000, 400, 150, 50), 10, (3, 2, 2, 2, 2)),
}


#: The settings that were best on the nouns: samples per cluster of each level, resamplings and members.
ADVICE = (5, 10, 30)
ADVISED_M, ADVISED_R = 1, (2, 2, 2)
#: Larger clusters, a typical first choice.
LARGER = (15, 50, 150)


def in_proportion(n_samples: int, shares: Sequence[int]) -> Sizes:
    """Return the numbers of clusters for a pool, from samples per cluster."""
    return tuple(max(2, n_samples // share) for share in shares)


def levels(seeds: int) -> Study:
    """Repeat Tables 2 and 3 at small scale: one to five levels, no resampling, flat draws, and choices in a cluster."""
    three, m3, r3 = LEVELS["3 levels"]
    advised, m, r = LEVELS["3 levels, as advised"]
    best = trials("nouns", advised, m=m, r=r, seeds=seeds)
    rows = [
        Row("uniform draw", uniform("nouns", seeds), "random"),
        *(Row(name, trials("nouns", ks, m=m, r=r, seeds=seeds)) for name, (ks, m, r) in LEVELS.items()),
        Row("3 levels, not resampled", trials("nouns", three, m=0, r=r3, seeds=seeds)),
        Row("as advised, not resampled", trials("nouns", advised, m=0, r=r, seeds=seeds)),
        Row("as advised, resampled ten times", trials("nouns", advised, m=10, r=r, seeds=seeds)),
        Row("3 levels, flat", trials("nouns", three, m=m3, r=r3, seeds=seeds), FLAT),
        Row("as advised, flat", best, FLAT),
        Row("as advised, closest to the centroid", best, "hierarchical closest"),
        Row("as advised, furthest from it", best, "hierarchical furthest"),
        Row("even draw, by one who knows the classes", uniform("nouns", seeds), "ideal"),
    ]  # fmt: skip
    return Study("levels", "What do levels and resampling do?", tuple(rows))


def seeding(seeds: int, pools: Sequence[str]) -> Study:
    """Compare the balance of seeding methods on every pool."""
    rows = []
    for pool in pools:
        n_clusters = in_proportion(len(POOLS[pool](0).labels), ADVICE)
        rows.append(Row(f"{pool}: uniform draw", uniform(pool, seeds), "random"))
        for init in INITS:
            tried = trials(pool, n_clusters, m=ADVISED_M, r=ADVISED_R, seeds=seeds, init=init)
            rows.append(Row(f"{pool}: {init}", tried))
    return Study("seeding", "Which seeding balances best?", tuple(rows))


def advice(seeds: int, pools: Sequence[str]) -> Study:
    """Test the best setting of the nouns on the other pools."""
    rows = []
    for pool in pools:
        n = len(POOLS[pool](0).labels)
        rows += [
            Row(f"{pool}: uniform draw", uniform(pool, seeds), "random"),
            Row(f"{pool}: 1 level", trials(pool, in_proportion(n, LARGER[-1:]), m=0, r=None, seeds=seeds)),
            Row(f"{pool}: larger clusters", trials(pool, in_proportion(n, LARGER), m=10, r=None, seeds=seeds)),
            Row(f"{pool}: as advised", trials(pool, in_proportion(n, ADVICE), m=ADVISED_M, r=ADVISED_R, seeds=seeds)),
            Row(f"{pool}: even draw", uniform(pool, seeds), "ideal"),
        ]
    return Study("advice", "Does the advice hold on other pools?", tuple(rows))


#: Resamplings of Table 3e at small scale.
RESAMPLES = (0, 1, 3, 10, 30)
#: Table 3d at small scale: numbers of clusters, and members that give equally many rows to resampling.
CLUSTERS: dict[str, tuple[Sizes, Sizes]] = {
    "500-150-50": ((500, 150, 50), (15, 2, 2)),
    "1000-300-100": ((1000, 300, 100), (8, 2, 2)),
    "2000-600-200": ((2000, 600, 200), (4, 2, 2)),
    "4000-1200-400": ((4000, 1200, 400), (2, 2, 2)),
}
#: Members kept per level-1 cluster of 1000 in resampling.
MEMBERS = (2, 4, 8, 12)


def resampling(seeds: int) -> Study:
    """Vary the number of resamplings, and of members."""
    ks, _, r = LEVELS["3 levels"]
    rows = [Row(f"m = {m}", trials("nouns", ks, m=m, r=r, seeds=seeds)) for m in RESAMPLES]
    rows += [Row(f"r = {n}", trials("nouns", ks, m=10, r=(n, 2, 2), seeds=seeds)) for n in MEMBERS]
    return Study("resampling", "How many resamplings, of how many members?", tuple(rows))


def clusters(seeds: int) -> Study:
    """Vary the numbers of clusters."""
    rows = [Row(name, trials("nouns", ks, m=10, r=r, seeds=seeds)) for name, (ks, r) in CLUSTERS.items()]
    return Study("clusters", "How many clusters?", tuple(rows))


#: Samples per cluster of each level to search, resampled once with two members; and those tried with other settings.
SHAPES: tuple[Sizes, ...] = (
    (3, 10, 40), (4, 12, 24), (4, 12, 36), (4, 12, 50), (4, 16, 64), (5, 10, 20), (5, 10, 30), (5, 15, 20), (5, 15, 30),
    (5, 15, 50), (5, 15, 100), (5, 20, 40), (5, 20, 60), (6, 18, 36), (6, 18, 54), (8, 16, 32), (8, 24, 48),
    (15, 50, 150), (5, 25), (5, 50), (5, 10, 20, 40), (5, 10, 20, 50), (5, 15, 30, 60), (5, 10, 20, 40, 80),
)  # fmt: skip
CLOSER: tuple[Sizes, ...] = ((5, 10, 30), (5, 15, 30), (5, 15, 50))
CLOSER_M: tuple[Sizes, ...] = (
    (0, 0, 0), (2, 2, 2), (3, 3, 3), (10, 10, 10), (1, 1, 0), (1, 0, 0), (10, 1, 1), (1, 10, 10),
)  # fmt: skip
CLOSER_R: tuple[Sizes | None, ...] = ((3, 2, 2), (2, 2, 1), (2, 2, 3), (4, 3, 3), None)


def _numbers(values: Sizes) -> str:
    """Format the numbers of the levels; only one if all are equal."""
    return ", ".join(map(str, values if len(set(values)) > 1 else values[:1]))


def search(seeds: int) -> Study:
    """Search levels, numbers of clusters, resamplings, members, seeding and metric for the best balance."""
    n = len(POOLS["nouns"](0).labels)

    def row(shares: Sizes, m: Sizes, r: Sizes | None, init: Init = "coreset", metric: Metric = "l2") -> Row:
        name = f"{_numbers(shares)}; m = {_numbers(m)}; r = {'auto' if r is None else _numbers(r)}"
        name += "".join(f"; {word}" for word in (init, metric) if word not in ("coreset", "l2"))
        tried = trials("nouns", in_proportion(n, shares), m=m, r=r, seeds=seeds, init=init, metric=metric)
        return Row(name, tried)

    rows = [row(shares, (1,) * len(shares), (2,) * len(shares)) for shares in SHAPES]
    for shares in CLOSER:
        rows += [row(shares, m, (2, 2, 2)) for m in CLOSER_M]
        rows += [row(shares, (1, 1, 1), r) for r in CLOSER_R]
        rows += [row(shares, (1, 1, 1), (2, 2, 2), init) for init in INITS if init != "coreset"]
        rows.append(row(shares, (1, 1, 1), (2, 2, 2), metric="cosine"))
    return Study("search", "Which setting balances the nouns best?", tuple(rows))
