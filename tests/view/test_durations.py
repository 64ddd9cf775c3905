import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.view import durations
from hkm_dask.view.durations import PHASES, Durations, Kind, UnderWay

FIRST, AGAIN = Kind(1, "first", "iterate"), Kind(1, "resampling", "iterate")
ABOVE, DRAW = Kind(2, "first", "iterate"), Kind(1, "first", "draw")
UNITS = 2e12  # beside these, fixed times are nothing


def total(found: Durations, pieces: Mapping[tuple[Kind, float], int]) -> tuple[float, float]:
    return found.left(pieces)[:2]


def effects(kinds: Sequence[Kind], timed: Sequence[Kind] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Which effects a kind's speed is the sum of, and the variance of each, told one by one.

    A kind that was `timed` has drifted since.
    """
    named: dict[object, float] = {}
    rows = []
    for kind in kinds:
        of_kind: dict[object, float] = {
            "machine": durations.MACHINE,
            kind.phase: PHASES[kind.phase][2] ** 2,
            (kind.phase, kind.what): durations.WHAT,
            (kind.phase, kind.level): durations.LEVEL,
            kind: durations.BOTH,
        }
        if kind in timed:
            of_kind[kind, "drift"] = durations.DRIFT
        named |= of_kind
        rows.append(of_kind)
    design = np.array([[float(name in of_kind) for name in named] for of_kind in rows])
    return design, np.array(list(named.values()))


def base(kind: Kind) -> float:
    pace, _, _, resampled = PHASES[kind.phase]
    return math.log(pace * UNITS) + resampled * (kind.what == "resampling")


def test_totals_are_those_of_draws_from_a_regression_on_effects() -> None:
    timed = {FIRST: 100.0, AGAIN: 30.0, DRAW: 80.0}
    found, kinds = Durations(), [FIRST, AGAIN, DRAW, ABOVE]
    for kind, seconds in timed.items():
        found.add([(kind, UNITS)], seconds)
    pieces = {(kind, UNITS): number for kind, number in zip(kinds, (1, 4, 2, 1), strict=True)}
    mean, variance = total(found, pieces)
    # The same by precisions: of the effects, and of what was timed.
    design, variances = effects(kinds, list(timed))
    drift = np.array([variance == durations.DRIFT for variance in variances])
    seen = np.where(drift, 0.0, design[: len(timed)])
    values = [math.log(seconds) - base(kind) for kind, seconds in timed.items()]
    covariance = np.linalg.inv(np.diag(1 / variances) + seen.T @ seen / durations.PIECE)
    rng = np.random.default_rng(0)
    drawn = rng.multivariate_normal(covariance @ seen.T @ values / durations.PIECE, covariance, 400_000)
    totals = np.zeros(len(drawn))
    for row, ((kind, _), number) in zip(design, pieces.items(), strict=True):
        for _ in range(number):
            alone = rng.normal(0.0, math.sqrt(found._spread(kind)), len(drawn))
            totals += np.exp(base(kind) + drawn @ row + alone)
    assert mean == pytest.approx(totals.mean(), rel=0.01)
    assert variance == pytest.approx(totals.var(), rel=0.05)


@given(st.floats(5.0, 1e5), st.sampled_from([FIRST, AGAIN, ABOVE, DRAW]), st.sampled_from([FIRST, AGAIN, ABOVE, DRAW]))
def test_a_slower_machine_is_slower_in_all_and_what_was_timed_is_surer(seconds: float, kind: Kind, of: Kind) -> None:
    fast, slow = Durations(), Durations()
    fast.add([(kind, UNITS)], seconds)
    slow.add([(kind, UNITS)], 10 * seconds)
    (one, spread), (ten, _) = (total(each, {(of, UNITS): 1}) for each in (fast, slow))
    assert 5 * one < ten < 11 * one
    same, least = total(fast, {(kind, UNITS): 1})
    assert math.sqrt(least) / same <= math.sqrt(spread) / one * 1.001
    assert same == pytest.approx(seconds, rel=0.2)


def test_pieces_that_nothing_tells_apart_share_their_seconds() -> None:
    found = Durations()
    found.add([(FIRST, UNITS), (DRAW, UNITS)], 60.0)
    both = found._sum(found._terms([(FIRST, UNITS), (DRAW, UNITS)]), found._means)
    shares = both.shares
    assert math.exp(both.log) == pytest.approx(60.0, rel=0.01)
    assert shares[0] / shares[2] == pytest.approx(PHASES["iterate"][0] / PHASES["draw"][0], rel=0.5)
    found.add([], 5.0)
    assert found.n_timed == 1


def test_fixed_times_are_learned_from_small_pieces_and_speeds_from_large_ones() -> None:
    found, large, small = Durations(), {(AGAIN, UNITS): 1}, {(AGAIN, 1.0): 10}
    for _ in range(3):
        found.add([(AGAIN, UNITS)], 100.0)
    before = total(found, large)[0], total(found, small)[0]
    for _ in range(20):
        found.add([(AGAIN, 1.0)], 0.2)
    assert before[1] < 1.0
    assert total(found, small)[0] == pytest.approx(2.0, rel=0.2)
    assert total(found, large)[0] == pytest.approx(before[0], rel=0.02)


@pytest.mark.parametrize("error", [0.1, 1.0, 1000.0])
def test_pieces_in_progress_are_between_their_guess_and_those_like_them(error: float) -> None:
    found = Durations()
    for _ in range(5):
        found.add([(AGAIN, UNITS)], 100.0)
    alike = found.left({}, UnderWay([(AGAIN, UNITS)], 60.0, None))[0]
    left, variance, rest = found.left({}, UnderWay([(AGAIN, UNITS)], 60.0, (80.0, error)))
    assert alike == pytest.approx(40.0, rel=0.05)
    assert left == rest
    assert 0.99 * 20.0 <= left <= 1.01 * alike
    assert (left < 21.0) == (error < 2.0)
    assert math.sqrt(variance) <= 1.01 * min(error, math.sqrt(found.left({(AGAIN, UNITS): 1})[1]))
    # What a guess says of itself it says of what follows, less surely.
    after = found.left({(AGAIN, UNITS): 3}, UnderWay([(AGAIN, UNITS)], 60.0, (80.0, error)))[0]
    assert 3 * 90.0 < after - left < 3 * 102.0


def test_a_piece_that_takes_longer_than_those_like_it_takes_longer_still() -> None:
    found = Durations()
    for _ in range(5):
        found.add([(AGAIN, UNITS)], 100.0)
    rests = [found.left({}, UnderWay([(AGAIN, UNITS)], elapsed, None))[0] for elapsed in (99.0, 150.0, 1e6)]
    assert 0 < rests[0] < rests[1] < 150.0
    assert rests[2] < 2e6


def test_of_nothing_the_total_is_nothing() -> None:
    assert Durations().left({}) == (0.0, 0.0, 0.0)
