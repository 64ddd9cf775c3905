"""The distribution of D² sampling, against exact probabilities."""

import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.keyed_random import random_uniform, stream_key
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.kmeans.seeding import d2_sampling, thinning
from hkm_dask.kmeans.seeding.d2_sampling import (
    Candidates,
    Drawn,
    ThinCandidates,
    UpdateAndSample,
    sample_by_distance,
)
from hkm_dask.search.cpu.engine import CpuEngine
from hkm_dask.search.geometry import Geometry, make_geometry
from hkm_dask.search.worker import worker_engine

Cut = Callable[[int], Runner]


def blobs(n: int, d: int, seed: int = 0, centers: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 4 * rng.normal(size=(centers, d))[rng.integers(0, centers, n)]).astype("f4")


def columns(candidates: Candidates) -> list[np.ndarray]:
    """Times, rows, D² and vectors of all candidates."""
    return [np.concatenate(column) for column in zip(*candidates.drawn, strict=True)]


def draw(array: np.ndarray | Rows, n: int, key: int, runner: Runner, geometry: Geometry | None = None) -> np.ndarray:
    rows = array if isinstance(array, Rows) else ArrayRows(array)
    geometry = geometry or make_geometry(rows, runner, n_clusters=n)
    return np.concatenate(
        [b.get() for b in sample_by_distance(rows, n, geometry=geometry, key=key, run=f"run-{key}", runner=runner)]
    )


# -- the law of D² sampling -------------------------------------------------------------------------------------------

# Two close points, one of them twice, a cloud and an outlier: many candidates are rejected, and rounds run dry.
POINTS = np.array([[0, 0], [0.5, 0], [0.5, 0], [3, 0], [3, 2], [40, 0]], np.float32)


def exact_law(points: np.ndarray, n: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered draw of k-means++, by enumeration."""
    squared = ((points[:, None].astype(np.float64) - points) ** 2).sum(2)
    law = {}
    for order in itertools.product(range(len(points)), repeat=n):
        probability = 1 / len(points)
        for i in range(1, n):
            nearest = squared[list(order[:i])].min(0)
            probability *= nearest[order[i]] / nearest.sum()
        if probability > 0:
            law[order] = probability
    return law


def by_place(law: dict[tuple[int, ...], float]) -> dict[tuple[tuple[float, ...], ...], float]:
    """The same law over coordinates: which of two copies was drawn cannot be told."""
    merged: Counter[tuple[tuple[float, ...], ...]] = Counter()
    for order, probability in law.items():
        merged[tuple(tuple(POINTS[i].tolist()) for i in order)] += probability
    return dict(merged)


def check_law(drawn: Counter, law: dict) -> None:
    n = sum(drawn.values())
    assert set(drawn) <= set(law)
    frequent = [outcome for outcome, probability in law.items() if n * probability >= 5]
    expected = np.array([n * law[outcome] for outcome in frequent])
    observed = np.array([drawn[outcome] for outcome in frequent])
    rest = n - expected.sum()
    if rest >= 1:
        expected, observed = np.append(expected, rest), np.append(observed, n - observed.sum())
    assert len(expected) > 10
    assert stats.chisquare(observed, expected * (n / expected.sum())).pvalue > 1e-3


def test_the_law_is_a_law_and_the_test_can_tell_others_from_it() -> None:
    law = by_place(exact_law(POINTS, 3))
    assert sum(law.values()) == pytest.approx(1)
    rng = np.random.default_rng(0)
    outcomes = list(law)
    right = rng.choice(len(outcomes), 1500, p=list(law.values()))
    check_law(Counter(outcomes[i] for i in right), law)
    flattened = np.sqrt(list(law.values()))  # as if D were drawn by instead of D²
    wrong = rng.choice(len(outcomes), 1500, p=flattened / flattened.sum())
    with pytest.raises(AssertionError):
        check_law(Counter(outcomes[i] for i in wrong), law)


def test_batches_are_exact_draws_of_kmeans_plusplus(in_parts: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square of ordered draws against their exact probabilities; candidates thinned in one go, or bit by bit."""
    runner = in_parts(1)
    geometry = make_geometry(ArrayRows(POINTS), runner, n_clusters=3)

    def places(i: int) -> tuple[tuple[float, ...], ...]:
        host_cache.clear()
        return tuple(map(tuple, draw(POINTS, 3, stream_key(i), runner, geometry).tolist()))

    drawn = [places(i) for i in range(1200)]
    check_law(Counter(drawn), by_place(exact_law(POINTS, 3)))
    monkeypatch.setattr(CpuEngine, "walked_rows", lambda *_: 2)
    monkeypatch.setattr(thinning, "_INDEXED", 2)
    monkeypatch.setattr(CpuEngine, "busy_rows", 3)
    assert [places(i) for i in range(150)] == drawn[:150]


def test_one_round_of_candidates_is_a_poisson_process(monkeypatch: pytest.MonkeyPatch) -> None:
    squared = np.array([0.0, 0.5, 1.0, 4.0, 1e-9])
    counts = np.zeros((5, 1500), np.int64)
    for i in range(1500):
        times, rows = d2_sampling.arrivals(stream_key(i), 100, squared, 1.5, worker_engine())
        assert (times <= 1.5).all()
        counts[:, i] = np.bincount(rows, minlength=5)
    assert counts[0].sum() == counts[4].sum() == 0
    for row in (1, 2, 3):
        mean = 1.5 * squared[row]
        expected = stats.poisson(mean).pmf(np.arange(int(mean + 4 * mean**0.5))) * 1500
        observed = np.bincount(counts[row], minlength=len(expected))[: len(expected)]
        enough = expected >= 5
        assert stats.chisquare(
            np.append(observed[enough], 1500 - observed[enough].sum()),
            np.append(expected[enough], 1500 - expected[enough].sum()),
        ).pvalue > 1e-3  # fmt: skip
    assert abs(np.corrcoef(counts[2], counts[3])[0, 1]) < 0.1


def test_arrivals_belong_to_rows_not_to_blocks() -> None:
    squared = np.random.default_rng(0).uniform(0, 3, 100)
    times, rows = d2_sampling.arrivals(7, 0, squared, 2.0, worker_engine())
    parts = [
        (t, r + low)
        for low in (0, 40, 70)
        for t, r in [d2_sampling.arrivals(7, low, squared[low : low + 30], 2.0, worker_engine())]
    ]
    parts.append((lambda t, r: (t, r + 30))(*d2_sampling.arrivals(7, 30, squared[30:40], 2.0, worker_engine())))
    combined = sorted((t, r) for ts, rs in parts for t, r in zip(ts.tolist(), rs.tolist(), strict=True))
    assert combined == sorted(zip(times.tolist(), rows.tolist(), strict=True))


@pytest.mark.parametrize("d", [2, 30])
def test_any_number_of_parts_draws_the_same_centers(d: int, in_parts: Cut) -> None:
    rows = blobs(700, d)
    geometry = make_geometry(ArrayRows(rows), in_parts(1), n_clusters=150)
    actual = [draw(ArrayRows(rows), 150, 3, in_parts(n), geometry) for n in (1, 2, 8)]
    assert actual[0].shape == (150, d)
    np.testing.assert_array_equal(actual[0], actual[1])
    np.testing.assert_array_equal(actual[0], actual[2])
    assert len(np.unique(actual[0], axis=0)) == 150
    assert {row.tobytes() for row in actual[0]} <= {row.tobytes() for row in rows}


def test_what_is_remembered_between_rounds_may_be_lost(in_parts: Cut) -> None:
    rows = ArrayRows(blobs(400, 5))
    geometry = make_geometry(rows, in_parts(1), n_clusters=60)
    expected = draw(rows, 60, 8, in_parts(2), geometry)
    forgetful = sample_by_distance(
        rows, 60, geometry=geometry, key=8, run="r", runner=in_parts(2), report=lambda done, wanted: host_cache.clear()
    )
    np.testing.assert_array_equal(np.concatenate([b.get() for b in forgetful]), expected)


def test_a_round_that_is_repeated_after_the_next_draws_the_same(in_parts: Cut) -> None:
    """As Dask does where a worker died; it writes its centers under the name that they have already."""
    rows = blobs(400, 5)
    geometry = make_geometry(ArrayRows(rows), in_parts(1), n_clusters=60)
    part = Part(ArrayRows(rows), (0, 400), 1 << 30)
    centers = [SharedArray(array=np.ascontiguousarray(rows[i : i + 20])) for i in (0, 100)]
    rounds = [UpdateAndSample(tuple(centers[:n]), geometry, "run", 7, 1.0) for n in (1, 2)]
    first, second, repeated, once_more = (rounds[n](part) for n in (0, 1, 0, 1))
    for actual, expected in ((repeated, first), (once_more, second)):
        assert actual.potential == expected.potential
        for found, wanted in zip(columns(actual), columns(expected), strict=True):
            np.testing.assert_array_equal(found, wanted)
    host_cache.clear()


def test_a_few_passes_draw_many_centers(runner: Runner) -> None:
    reports: list[tuple[int, int]] = []
    rows = ArrayRows(blobs(6000, 3))
    geometry = make_geometry(rows, runner, n_clusters=1000)
    sample_by_distance(
        rows, 1000, geometry=geometry, key=0, run="r", runner=runner, report=lambda *a: reports.append(a)
    )
    assert reports[0] == (1, 1000)
    assert reports[-1] == (1000, 1000)
    assert len(reports) <= 12


@pytest.mark.parametrize("n_distinct", [1, 2, 7])
def test_when_no_distance_is_left_the_distinct_rows_were_drawn(n_distinct: int, in_parts: Cut) -> None:
    rows = np.repeat(blobs(n_distinct, 4), 20, axis=0)
    for n in (1, 3):
        actual = draw(rows, 30, 5, in_parts(n))
        assert sorted(map(tuple, actual.tolist())) == sorted(map(tuple, blobs(n_distinct, 4).tolist()))


def test_draws_add_up_in_any_grouping() -> None:
    rng = np.random.default_rng(0)

    def some(n: int) -> Candidates:
        drawn = Drawn(rng.uniform(size=n), np.arange(n), rng.uniform(size=n), rng.normal(size=(n, 2)).astype("f4"))
        return Candidates(n, (drawn,), rng.integers(-5, 5, (3, 2)), rng.integers(0, 5, 3))

    a, b, c = some(3), some(0), some(5)
    left, right = (a + b) + c, a + (b + c)
    for name in ("potential", "sums", "counts"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    for found, wanted in zip(columns(left), columns(right), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert sys.getsizeof(left) > sum(piece.vectors.nbytes for piece in left.drawn)  # so that Dask moves less
    assert left.potential == 8
    np.testing.assert_array_equal(left.sums, a.sums + b.sums + c.sums)


def test_thinning_does_not_depend_on_the_order_candidates_came_in() -> None:
    rows = blobs(200, 3)
    geometry = Geometry(rows.mean(0), 20.0, 200)
    rng = np.random.default_rng(1)
    times, squared = rng.uniform(size=200), rng.uniform(1, 40, 200)
    accept = ThinCandidates(geometry, 5, 60, SharedArrayStore(), "batch", ("rows",))
    first = accept(Candidates(9, (Drawn(times, np.arange(200), squared, rows),)))
    order = rng.permutation(200)
    second = accept(
        Candidates(9, tuple(Drawn(times[some], some, squared[some], rows[some]) for some in (order[:70], order[70:])))
    )
    assert first[0] == second[0] == 9
    assert first[2] == second[2] <= 60
    assert first[1] is not None
    assert second[1] is not None
    np.testing.assert_array_equal(first[1].get(), second[1].get())


def test_a_candidate_near_to_centers_of_the_same_number_in_two_batches_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CpuEngine, "walked_rows", lambda *_: 1)
    monkeypatch.setattr(thinning, "_INDEXED", 1)
    monkeypatch.setattr(CpuEngine, "busy_rows", 1)
    # The third comes nearer than it was drawn to the first, and within its limit of 200 to the second.
    rows, key = np.float32([[0] * 4, [9] * 4, [8] * 4]), 5
    chances = random_uniform(stream_key(key, "thinning"), np.arange(3))
    draws = Candidates(9, (Drawn(np.arange(3.0), np.arange(3), np.array([1, 300, 200]) / chances, rows),))
    taken = ThinCandidates(Geometry(rows.mean(0), 9.0, 3), key, 3, SharedArrayStore(), "batch", ("rows",))(draws)[1]
    assert taken is not None
    assert taken.get()[:, 0].tolist() == [0, 9]


def test_cells_are_the_rows_nearest_to_each_center(in_parts: Cut) -> None:
    rows = blobs(500, 4)
    geometry = make_geometry(ArrayRows(rows), in_parts(1), n_clusters=20)
    centers = rows[:20]
    task = UpdateAndSample(
        (SharedArray(array=centers[:6]), SharedArray(array=centers[6:])), geometry, "r", 0, 0.0, with_sums=True
    )
    source = ArrayRows(rows)
    total = task(Part(source, (0, 200), 0)) + task(Part(source, (200, 350, 500), 0))
    squared = ((rows[:, None].astype(np.float64) - centers) ** 2).sum(2)
    labels = squared.argmin(1)
    assert total.counts is not None
    assert total.sums is not None
    np.testing.assert_array_equal(total.counts, np.bincount(labels, minlength=20))
    expected = np.stack([rows[labels == j].astype(np.float64).sum(0) for j in range(20)])
    np.testing.assert_allclose(total.sums / geometry.scale, expected, rtol=1e-9, atol=1e-9)
    assert total.potential / geometry.distance_scale == pytest.approx(squared.min(1).sum(), rel=1e-9)


def test_kmeans_parallel_draws_about_as_many_as_it_should(runner: Runner) -> None:
    rows = ArrayRows(blobs(4000, 4))
    geometry = make_geometry(rows, runner, n_clusters=50)
    drawn = d2_sampling.sample_in_rounds(rows, 100, geometry=geometry, key=1, run="r", runner=runner)
    sizes = [len(batch.get()) for batch in drawn]
    assert len(sizes) == 1 + d2_sampling.PARALLEL_ROUNDS
    assert sizes[0] == 1
    for size in sizes[1:]:
        assert abs(size - 100) < 6 * math.sqrt(100)
    host_cache.drop(rows.key)
