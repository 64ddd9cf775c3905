"""Greedy walks on a device: the same choices as on the CPU, and the same remaining distances, bit by bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkm_dask.compute.keyed_random import random_uniform
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.kmeans.seeding import coreset
from hkm_dask.kmeans.seeding.coreset import seed_from_points
from hkm_dask.planning.cost import WALK_LAUNCHES, WALK_SYNCHRONIZATIONS
from hkm_dask.search.cuda import check_process as cuda_check_process
from hkm_dask.search.cuda import forms as cuda_forms
from hkm_dask.search.cuda import walk_check as cuda_walk_check
from hkm_dask.search.cuda import walks as cuda_walks
from hkm_dask.search.cuda.verdicts import Check
from hkm_dask.search.cuda.walk_check import find_made_walk_fault, find_walk_fault, made_walks
from hkm_dask.search.cuda.walks import MOST_TRIALS, walk_groups
from hkm_dask.search.engine import GridWalk
from pipelines.gpu.kernels import timed_launches
from pipelines.mutants.cases import Mutant
from tests.emulated import costs
from tests.emulated.plugin import Emulator
from tests.gpu.broken import WALK_MUTANTS, break_kernels
from tests.gpu.inputs import geometry_of, groups, twice

_fault = cuda_forms._fault  # which the emulator leaves out


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator is slow."""
    monkeypatch.setattr(cuda_walk_check, "_SIZES", (1, 7, 130, 300))


def walk_of(points: np.ndarray, weights: np.ndarray, n_steps: int, n_trials: int, key: int = 5) -> GridWalk:
    walk = coreset._Walk(SharedArray(array=points), weights, key, n_trials, 1).on_grid(
        (0, np.arange(len(points)), n_steps)
    )
    assert walk is not None
    return walk


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_groups_are_walked_as_on_processors(cuda: Any, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=4), "sizes")
    d, n_trials = data.draw(st.integers(16, 40), "d"), data.draw(st.sampled_from([1, 2, 7, MOST_TRIALS]), "n_trials")
    rng = np.random.default_rng(data.draw(st.integers(0, 999), "seed"))
    scale, heaviest = data.draw(st.sampled_from([1e-6, 1.0, 1e6])), data.draw(st.sampled_from([1, 50, 10**12]))
    n_places = data.draw(st.sampled_from([3, 40, 10**4]), "n_places")
    walks, expected = [], []
    for n in sizes:
        places = scale * rng.normal(size=(min(n, n_places), d)).astype(np.float32)
        points = places[rng.integers(len(places), size=n)]
        points[: n // 4] *= np.float32(1.0 + 1e-4)
        weights, n_steps = rng.integers(1, heaviest + 1, size=n), int(rng.integers(1, min(n, 60) + 1))
        centered, far = coreset._centered(points)
        if len(far) or not np.any(centered):
            continue
        between = coreset._coarse_pairs(centered, float(np.sqrt(coreset._squared_norms(centered).max())), 1)
        draws = random_uniform(5, np.arange(n_steps * n_trials)).reshape(n_steps, n_trials)
        chosen, left, closest = np.empty(n_steps, np.int64), np.empty(n_steps), np.empty(n, np.float32)
        done = coreset.greedy.greedy_walk(
            between, np.empty((0, 0), np.float32), weights.astype(float), draws, chosen, left, closest, 0
        )
        walks.append(walk_of(points, weights, n_steps, n_trials))
        expected.append((chosen[:done], left[:done]))
    for walked, (chosen, left) in zip(walk_groups(walks), expected, strict=True):
        assert walked is not None
        np.testing.assert_array_equal(walked[0], chosen)
        np.testing.assert_array_equal(walked[1], left)


def walks_of(n_groups: int, n: int = 90) -> list[GridWalk]:
    weights = np.arange(1, n + 1)
    return [walk_of(groups(n, 16, seed=seed), weights, 20, 4) for seed in range(n_groups)]


def assert_same(actual: list[Any], expected: list[Any]) -> None:
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_many_groups_take_two_launches(cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = walks_of(6)
    with costs.counted() as spent:
        together = walk_groups(walks)
    assert dict(spent.by_name) == {"pair_squares": 1, "walk_groups": 1}
    assert (spent.launches, spent.synchronizations) == (WALK_LAUNCHES, WALK_SYNCHRONIZATIONS)
    monkeypatch.setattr(cuda_walks, "device_budget", lambda: 8 * 3 * walks[0].device_bytes)
    with costs.counted() as spent:
        assert_same(walk_groups(walks), together)
    assert dict(spent.by_name) == {"pair_squares": 2, "walk_groups": 2}


def test_larger_groups_are_walked_after_smaller_ones(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = walks_of(1), walks_of(1, n=60)
    expected = walk_groups(large), walk_groups(small)
    monkeypatch.setattr(cuda_walks, "_POINT_BYTES", 1000)  # as much as of groups fifty times as large
    for walks, right in zip((large, small, large), (*expected, expected[0]), strict=True):
        assert_same(walk_groups(walks), right)


@pytest.mark.parametrize("allocator", ["cupy", "rmm"])
def test_where_memory_runs_out_fewer_groups_are_walked_together_or_none(
    cuda: Any, emulator: Emulator, allocator: Any
) -> None:
    walks = walks_of(6)
    expected = walk_groups(walks)
    emulator.allocate_with(allocator)
    used = cuda.get_default_memory_pool().used_bytes()
    emulator.limit_memory(used + 150_000)
    with costs.counted() as spent:
        assert_same(walk_groups(walks), expected)
    assert spent.by_name["walk_groups"] >= 2
    emulator.limit_memory(used + 20_000)
    assert walk_groups(walks) == [None] * 6


# -- in a seeding -----------------------------------------------------------------------------------------------------


def seeded(points: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    with Runner(n_threads=1) as runner:
        return seed_from_points(
            SharedArray(array=points), weights, k, geometry=geometry_of(points), key=3, runner=runner, n_iterations=0
        )[0]


def unlike(kind: str, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of which some groups are for processors: with a point far out, or with few distinct ones."""
    points, weights = groups(500, d), np.random.default_rng(0).integers(0, 9, size=500)
    if kind == "far":
        points[7] += 1e4
        weights[7] = 1
    elif kind == "few":
        points[100:300] = points[:3].repeat(70, axis=0)[:200]
    elif kind == "tiny":
        points *= np.float32(1e-18)
    return points, weights


@pytest.mark.usefixtures("little_work_on_the_device")
@pytest.mark.parametrize(("kind", "d"), [("all", 24), ("far", 24), ("few", 16), ("tiny", 16), ("all", 8)])
def test_seeding_chooses_what_it_does_on_the_cpu(cuda: Any, monkeypatch: pytest.MonkeyPatch, kind: str, d: int) -> None:
    monkeypatch.setattr(coreset, "GROUP_POINTS", 90)
    points, weights = unlike(kind, d)
    with timed_launches() as take:
        on_cpu, on_device = twice(cuda, monkeypatch, lambda: seeded(points, weights, 60))
        launched = take()
    np.testing.assert_array_equal(on_device, on_cpu)
    assert ("walk_groups" in launched) == (d >= 16 and kind != "tiny")


# -- checked before they are used -------------------------------------------------------------------------------------


def test_sound_walks_have_no_fault(cuda: Any) -> None:
    for d in (16, 50):
        assert find_made_walk_fault(d) is None


@pytest.mark.slow
def test_sound_walks_over_groups_as_large_as_any_have_no_fault(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_walk_check, "_SIZES", (5, 4096))
    assert find_made_walk_fault(20) is None


@pytest.mark.parametrize("mutant", WALK_MUTANTS, ids=lambda mutant: mutant.name)
def test_walks_broken_on_purpose_are_found(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, mutant: Mutant
) -> None:
    break_kernels(monkeypatch, mutant.name, half=False)
    found = find_made_walk_fault(24)
    assert found is not None
    expected = ["failed (walk_groups: access outside the memory" if "illegal" in mutant.name else "gave wrong choices"]
    if not mutant.new:  # without a barrier, threads also read what was never written, and take it for an address
        expected += ["failed (walk_groups: ", "failed (pair_squares: "]
    assert found.startswith(tuple(expected))


def test_memory_that_runs_out_is_no_fault(cuda: Any, emulator: Emulator) -> None:
    walks = made_walks(16)
    emulator.limit_memory(cuda.get_default_memory_pool().used_bytes() + 50_000)
    with pytest.raises(MemoryError):
        find_walk_fault(walks)


@pytest.mark.usefixtures("little_work_on_the_device")
@pytest.mark.parametrize("when", ["on made points", "on points of the run"])
def test_walks_at_fault_are_put_aside_and_processors_walk(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, when: str
) -> None:
    monkeypatch.setattr(cuda_forms, "_fault", _fault)
    monkeypatch.setattr(cuda_forms, "_faults", {})
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cupy"))
    monkeypatch.setattr(coreset, "GROUP_POINTS", 90)
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda *_, **__: None)
    if when == "on points of the run":
        monkeypatch.setattr(cuda_check_process, "find_made_walk_fault", lambda _: None)
    break_kernels(monkeypatch, "the last points are not added up", half=False)
    points, weights = unlike("all", 16)
    with pytest.warns(RuntimeWarning, match=r"walk_groups gave wrong choices for .* steps; this process walks on proc"):
        on_cpu, on_device = twice(cuda, monkeypatch, lambda: seeded(points, weights, 60))
    np.testing.assert_array_equal(on_device, on_cpu)
    seeded(points, weights, 60)  # is told once
    assert not cuda_forms.walks_are_sound(16, walks_of(1))
    assert cuda_forms.checks_of("float32", 16, np.dtype(np.float16))[-1] == Check("walks", 16, "float32")
    assert all(check.form != "walks" for check in cuda_forms.checks_of("float32", 15, np.dtype(np.float16)))
