"""Rates explain the measured times, and files of rates are checked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.config import Config, Level
from hkm_dask.errors import InputError
from hkm_dask.events import subscribe
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.planning.calibration import _fit, _Sample, calibrate, made_rows, scaled_config
from hkm_dask.planning.phases import PhaseClock, Spent
from hkm_dask.planning.processor_rates import Calibration, kept_calibration, rates_file


@given(n=st.integers(30, 10**9), share=st.floats(1e-6, 1.0), k=st.lists(st.integers(1, 10**7), min_size=1, max_size=4))
def test_small_settings_fit_few_rows(n: int, share: float, k: list[int]) -> None:
    falling = [min(one, n) for one in sorted(k, reverse=True)]
    small = max(30, int(share * n))
    scaled = scaled_config(Config.from_flags(falling), n, small)
    scaled.check(small)
    assert len(scaled.levels) == len(falling)


def test_costs_are_recovered_from_times_that_they_made() -> None:
    """Times made by known costs, of trees of several shapes: what is found explains a larger one as well."""
    costs = {
        "drawn": 1.4e-11, "searched": 8e-12, "labeled": 9e-12, "plain": 3e-11, "projected": 5e-11, "row": 8e-9,
        "passed": 1.5e-9, "pass": 0.002, "draw": 0.001, "paired": 6e-11, "walked": 2e-10, "walk": 0.001,
        "picked": 1e-8, "assignment": 0.002, "step": 0.004, "kept": 1e-9, "written": 4e-9, "level written": 0.05,
    }  # fmt: skip

    def tree(n: int, k: int) -> _Sample:
        config = Config.from_flags((k, max(1, k // 5)), n_resamples=1)
        sample = _Sample(config, n, 64, 2, PhaseClock(), 1e9, 1e9)
        for numbers in ((1, False), (1, True), (2, False), (2, True)):
            sample.clock.iterations[numbers] = [9 - 3 * numbers[1]]
        for part in sample.parts(2):
            place = part.level, part.resampled, part.name
            took = sum(amount * costs.get(unit, 0.0) for unit, amount in part.units.items())
            sample.clock.spent[place] = sample.clock.spent.get(place, Spent()) + Spent(seconds=took)
        return sample

    found = _fit([tree(400, 20), tree(8192, 1024), tree(2000, 100), tree(4000, 200), tree(8000, 400)], 2)
    large = tree(100_000, 5000)
    explained = sum(sum(amount * found.get(unit, 0.0) for unit, amount in part.units.items())
                    for part in large.parts(2))  # fmt: skip
    assert explained == pytest.approx(sum(one.seconds for one in large.clock.spent.values()), rel=0.05)
    assert min(found.values()) >= 0.0


@pytest.fixture(scope="module")
def measured() -> Calibration:
    config = Config.from_flags((1000, 100), n_resamples=3, overrides=("levels.1.n_splits=4",))
    return calibrate(config, 3000, lambda n: made_rows(n, 16), seconds=0.0)


def test_this_machine_is_measured_in_every_phase(measured: Calibration) -> None:
    assert {"run", "passed", "gather", "split rows", "written"} <= set(measured.costs)
    assert all(cost >= 0.0 for cost in measured.costs.values())
    for levels in measured.seen.values():
        assert all(1 <= one.fewest <= one.iterations <= one.most <= 50 for one in levels)
        assert all(0.0 < one.share <= 1.0 for one in levels)
    assert measured.read > 0
    assert measured.write > 0
    assert measured.n_features == 16


def test_k_means_of_many_rows_to_a_cluster_are_seen_to_go_on(tmp_path: Path) -> None:
    """Small trees have 40 rows to a cluster and are done sooner; one that was split told nothing of its rows."""
    rows = made_rows(24_000, 4)
    config = Config.from_flags((12,), n_resamples=0, overrides=("levels.1.n_splits=8",))
    measured = calibrate(config, len(rows), lambda n: rows[:: len(rows) // n][:n], seconds=0.2, clock="cpu_seconds")
    clock = PhaseClock()
    with subscribe(clock):
        write_hierarchy(rows, tmp_path / "tree.zarr", config.model_copy(update={"levels": (Level(n_clusters=12),)}))
    assert measured.seen["first"][0].iterations > 0.6 * clock.iterations[1, False][0]
    assert measured.costs["split pairs"] > 0


def test_rates_come_back_from_json(measured: Calibration) -> None:
    told = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert Calibration.from_dict(told) == measured
    assert Calibration.from_dict({"calibration": told, "levels": []}) == measured
    less = told | {"seen": {"first": [{"share": 1}]}}
    for broken in ({}, {"costs": 3}, less, told | {"more": 1}, {"calibration": None}):
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
