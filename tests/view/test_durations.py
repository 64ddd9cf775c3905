import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.view import durations
from hkm_dask.view.durations import PHASES, Durations, Kind

FIRST, AGAIN = Kind(1, "first", "iterate"), Kind(1, "resampling", "iterate")
ABOVE, DRAW = Kind(2, "first", "iterate"), Kind(1, "first", "draw")
UNITS = 1e12


def effects(kinds: Sequence[Kind]) -> tuple[np.ndarray, np.ndarray]:
    """Which effects a kind's speed is the sum of, and the variance of each, told one by one."""
    named: dict[object, float] = {}
    rows = []
    for kind in kinds:
        spread = PHASES[kind.phase][2] ** 2
        of_kind = {
            "machine": durations.MACHINE,
            kind.phase: spread,
            (kind.phase, kind.what): durations.WHAT,
            (kind.phase, kind.level): durations.LEVEL,
            kind: durations.BOTH,
        }
        named |= of_kind
        rows.append(of_kind)
    design = np.array([[float(name in of_kind) for name in named] for of_kind in rows])
    return design, np.array(list(named.values()))


def test_speeds_are_those_of_a_regression_on_effects() -> None:
    found = Durations()
    for kind, seconds in [(FIRST, [100.0]), (AGAIN, [30.0, 33.0]), (DRAW, [80.0])]:
        for one in seconds:
            found.add([(kind, UNITS)], one)
    kinds = [FIRST, AGAIN, ABOVE, DRAW]
    speeds, together = found._speeds(kinds, {})
    # The same by precisions: of the effects, and of what was timed.
    design, variances = effects(kinds)
    timed = list(found.timed)
    seen = design[[kinds.index(kind) for kind in timed]]
    noise = [
        (found._spread(kind) + np.mean([one.variance for one in found.timed[kind]])) / len(found.timed[kind])
        + durations.DRIFT
        for kind in timed
    ]
    values = [np.mean([one.log for one in found.timed[kind]]) for kind in timed]
    covariance = np.linalg.inv(np.diag(1 / variances) + seen.T @ np.diag(1 / np.array(noise)) @ seen)
    mean = covariance @ seen.T @ (np.array(values) / noise)
    np.testing.assert_allclose(speeds, design @ mean, atol=1e-8)
    np.testing.assert_allclose(together, design @ covariance @ design.T, atol=1e-8)


def test_mean_and_variance_of_a_total_are_those_of_draws() -> None:
    found = Durations()
    for seconds in (100.0, 120.0):
        found.add([(AGAIN, UNITS)], seconds)
    pieces = {(AGAIN, UNITS): 4, (ABOVE, UNITS / 10): 1}
    mean, variance = found.total(pieces, {})
    speeds, together = found._speeds([AGAIN, ABOVE], {})
    rng, totals = np.random.default_rng(0), np.zeros(400_000)
    common = rng.multivariate_normal(speeds, together, len(totals))
    for i, ((kind, units), n) in enumerate(pieces.items()):
        pace, overhead, _, resampled = PHASES[kind.phase]
        expected = math.log(pace * units) + resampled * (kind.what == "resampling")
        for _ in range(n):
            alone = rng.normal(0.0, math.sqrt(found._spread(kind)), len(totals))
            totals += overhead + np.exp(common[:, i] + expected + alone)
    assert mean == pytest.approx(totals.mean(), rel=0.01)
    assert variance == pytest.approx(totals.var(), rel=0.05)


@given(st.floats(5.0, 1e5), st.sampled_from([FIRST, AGAIN, ABOVE, DRAW]), st.sampled_from([FIRST, AGAIN, ABOVE, DRAW]))
def test_a_slower_machine_is_slower_in_all_and_what_was_timed_is_surer(seconds: float, kind: Kind, of: Kind) -> None:
    fast, slow = Durations(), Durations()
    fast.add([(kind, UNITS)], seconds)
    slow.add([(kind, UNITS)], 10 * seconds)
    (one, spread), (ten, _) = (each.total({(of, UNITS): 1}, {}) for each in (fast, slow))
    assert 5 * one < ten < 11 * one
    same, least = fast.total({(kind, UNITS): 1}, {})
    assert math.sqrt(least) / same <= math.sqrt(spread) / one * 1.001
    assert same == pytest.approx(seconds, rel=0.2)


def test_pieces_that_nothing_tells_apart_share_their_seconds() -> None:
    found = Durations()
    found.add([(FIRST, UNITS), (DRAW, UNITS)], 60.0)
    (first,), (draw,) = found.timed[FIRST], found.timed[DRAW]
    assert math.exp(first.log) * PHASES["iterate"][0] * UNITS + math.exp(draw.log) * PHASES["draw"][
        0
    ] * UNITS == pytest.approx(60.0, rel=0.01)
    found.add([], 5.0)
    assert list(found.timed) == [FIRST, DRAW]


def test_of_nothing_the_total_is_nothing() -> None:
    assert Durations().total({}, {}) == (0.0, 0.0)
