"""Rates are those that made the times, and what a file of them says is checked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.config import Config
from hkm_dask.errors import InputError
from hkm_dask.planning.calibration import _fit, _Sample, calibrate, features_of, made_rows, scaled_config
from hkm_dask.planning.phases import PhaseClock, Spent
from hkm_dask.planning.processor_rates import Calibration, kept_calibration, processor_rates, rates_file


@given(n=st.integers(30, 10**9), share=st.floats(1e-6, 1.0), k=st.lists(st.integers(1, 10**7), min_size=1, max_size=4))
def test_small_settings_fit_few_rows(n: int, share: float, k: list[int]) -> None:
    falling = [min(one, n) for one in sorted(k, reverse=True)]
    small = max(30, int(share * n))
    scaled = scaled_config(Config.from_flags(falling), n, small)
    scaled.check(small)
    assert len(scaled.levels) == len(falling)


def test_rates_are_recovered_from_times_that_they_made() -> None:
    """Times made by known rates, of trees of several shapes."""
    rates = processor_rates(3e11, 2e9, 0.002, float("inf"))
    samples = []
    for n, k in ((2000, 100), (4000, 200), (8000, 2000)):
        scaled = Config.from_flags((k, k // 5), n_resamples=1)
        sample = _Sample(scaled, n, 64, "float16", PhaseClock(), 1e9, 1e9)
        for step in sample.steps():
            place = (step.level, False, step.phase)
            spent = sample.clock.spent.get(place, Spent())
            cost = np.dot(features_of(step), [1 / 3e11, 1 / 2e9, 0.002, 0.0])
            sample.clock.spent[place] = spent + Spent(seconds=float(cost))
        samples.append(sample)
    found = _fit(samples)
    for phase in ("seeding", "Lloyd", "assign"):
        for name in ("product", "measured", "round"):
            assert getattr(found[phase], name) == pytest.approx(getattr(rates, name), rel=1e-3)


@pytest.fixture(scope="module")
def measured() -> Calibration:
    config = Config.from_flags((1000, 100), n_resamples=3, overrides=("levels.1.n_splits=4",))
    return calibrate(config, 3000, lambda n: made_rows(n, 16), seconds=0.0)


def test_this_machine_is_measured_in_every_phase(measured: Calibration) -> None:
    assert {"start", "seeding", "Lloyd", "assign", "gather", "split", "write"} <= set(measured.rates)
    assert all(1 <= n <= 50 for levels in measured.iterations.values() for n in levels)
    assert measured.read > 0
    assert measured.write > 0
    assert measured.n_features == 16


def test_rates_come_back_from_json(measured: Calibration) -> None:
    told = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert Calibration.from_dict(told) == measured
    assert Calibration.from_dict({"calibration": told, "levels": []}) == measured
    for broken in ({}, {"rates": 3}, told | {"more": 1}, {"calibration": None}):
        with pytest.raises(InputError, match="rates should be what `hkm plan --json` prints"):
            Calibration.from_dict(broken)


def test_rates_are_kept_for_rows_of_as_many_features(measured: Calibration, cache: Path) -> None:
    assert kept_calibration(16) is None
    rates_file().parent.mkdir(parents=True)
    for changed, there in ((measured, True), (replace(measured, n_features=64), False),
                           (replace(measured, software="hkm_dask 0"), False)):  # fmt: skip
        rates_file().write_text(json.dumps(changed.to_dict()))
        assert (kept_calibration(16) is not None) == there
    rates_file().write_text("{")
    assert kept_calibration(16) is None
    assert cache in rates_file().parents
