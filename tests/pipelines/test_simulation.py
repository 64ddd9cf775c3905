"""The simulations at small size; the slow tests check the results at the paper's size."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.integrate import quad
from sklearn.neighbors import KernelDensity

from pipelines.simulation import (
    beside,
    command,
    figure2,
    figure3,
    figure3_pictures,
    gap,
    measures,
    mixtures,
    rings,
)

# -- the command ------------------------------------------------------------------------------------------------------


def test_the_toy_is_made_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "toy", "--seeds", "3", "--out", "out", "--docs", "docs"])
    command.main()
    ways = json.loads((tmp_path / "out" / "toy.json").read_text(encoding="utf-8"))["ways"]
    # 5000 numbers evenly in an interval of 0.2 lie N (N + 1) / (N - 1) 0.2² / 12 about their middle; see §3.2.
    spread = 5000 * 5001 / 4999 * 0.2**2 / 12
    assert ways["one for each heap"]["centroids"] == pytest.approx([1, 2, 3], abs=1e-6)
    assert ways["one for each heap"]["distortion"] == pytest.approx(spread, rel=1e-5)
    assert ways["one for each heap"]["distortion"] == pytest.approx(16.67, abs=0.005)
    halves = 2 * 2500 * 2501 / 2499 * (0.2 * 2499 / 4999) ** 2 / 12
    assert ways["k-means, optimum"]["centroids"] == pytest.approx([0.95, 1.05, 2.5], abs=1e-4)
    assert ways["k-means, optimum"]["distortion"] == pytest.approx(halves + 4 * 0.5**2, rel=1e-5)
    assert ways["k-means, optimum"]["distortion"] == pytest.approx(5.17, abs=0.005)
    assert ways["k-means with s = 4"]["centroids"] == pytest.approx([1, 2, 3], abs=1e-6)
    assert ways["100, then 3 clusters"]["centroids"] == pytest.approx([1, 2, 3], abs=0.01)
    assert "16.67" in capsys.readouterr().out
    with Image.open(tmp_path / "docs" / "simulation_toy.png") as picture:
        assert 500 < picture.width <= 1600
    assert (tmp_path / "docs" / "simulation_toy.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_wrong_options_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "toy", "--seeds", "0", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert "--seeds=0 should be >= 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- data and measures ------------------------------------------------------------------------------------------------


def test_the_line_has_the_papers_numbers_and_density() -> None:
    x = mixtures.line_mixture(0)
    assert len(x) == pytest.approx(243_033, abs=400)
    assert (np.diff(x) >= 0).all()
    assert not ((x > -7) & (x < 0)).any()
    edges = np.array([-14, -10, -7, 0, 2, 5, 12, 17, 20, 23.0])
    for power in (1.0, 1 / 3):
        law = mixtures.line_law(edges, power)
        pieces = [
            quad(lambda at, power: (mixtures.line_density(np.array([at])) ** power).item(), a, b, power)[0]
            for a, b in itertools.pairwise(edges)
        ]
        np.testing.assert_allclose(law, np.array(pieces) / sum(pieces), atol=2e-5)
        if power == 1:
            assert sum(pieces) == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(np.histogram(x, edges)[0] / len(x), law, atol=0.003)


def test_the_plane_has_the_papers_points_and_density() -> None:
    points = mixtures.plane_mixture(0)
    assert points.shape == (9000, 2)
    axis = np.linspace(-3, 3, 301)
    density = mixtures.plane_density(axis)
    in_heap = (axis > -2) & (axis < 0)
    expected = density[np.ix_(in_heap, in_heap)].sum() * 0.02**2
    assert density.sum() * 0.02**2 == pytest.approx(1, abs=0.005)
    assert ((points > -2) & (points < 0)).all(axis=1).mean() == pytest.approx(expected, abs=0.02)


def test_rings_have_the_same_area_and_do_not_touch() -> None:
    points, ring = mixtures.rings(0)
    assert len(points) == 29_700
    squared = (points.astype(float) ** 2).sum(axis=1)
    for number, inner in enumerate((1, 4, 9, 16, 25)):
        of_ring = squared[ring == number]
        assert inner - 1e-5 <= of_ring.min()
        assert of_ring.max() <= inner + 2 + 1e-5
        assert of_ring.mean() == pytest.approx(inner + 1, abs=0.15)  # even in the squared radius: even in the plane


def test_the_density_is_scikit_learns() -> None:
    points = mixtures.plane_mixture(1)[::30]
    axis = np.arange(-3, 3.001, 0.02)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    theirs = np.exp(KernelDensity(bandwidth=0.5).fit(points).score_samples(grid))
    theirs /= theirs.sum()
    np.testing.assert_allclose(measures.density(points).ravel(), theirs, rtol=1e-8)
    assert measures.divergence(points) == pytest.approx((theirs * np.log(theirs * theirs.size)).sum())


def test_the_divergence_of_a_grid_is_small_and_of_a_heap_large() -> None:
    axis = np.linspace(-2.9, 2.9, 18)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    assert 0 < measures.divergence(grid) < 0.04
    assert measures.divergence(grid / 10) > 1.0


def test_the_law_of_the_divergence_is_that_of_very_many_points() -> None:
    density = mixtures.plane_density(np.linspace(-3, 3, 301))
    many = np.concatenate([mixtures.plane_mixture(seed)[::10] for seed in range(30)])
    assert measures.law_divergence(density, 1.0) == pytest.approx(measures.divergence(many), abs=0.01)
    assert measures.law_divergence(density, 0.0) == pytest.approx(0.0191, abs=1e-4)


def test_total_variation_entropy_and_spread_by_hand() -> None:
    counts = np.array([2, 2, 0])
    assert measures.total_variation(counts, np.array([0.25, 0.25, 0.5])) == 0.5
    assert measures.entropy(counts) == pytest.approx(np.log(2))
    assert measures.spread([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(2**0.5), "values": [1.0, 3.0]}
    assert measures.spread([1.0])["sd"] == 0.0


def test_every_border_of_a_cell_lies_halfway() -> None:
    points = np.random.default_rng(0).uniform(-3, 3, (50, 2))
    borders = figure3_pictures.cells(points)
    middles = borders.mean(axis=1)
    inside = (np.abs(middles) < 3).all(axis=1)
    assert inside.sum() > 100
    distances = np.sort(np.linalg.norm(middles[inside, None] - points, axis=2), axis=1)
    np.testing.assert_allclose(distances[:, 0], distances[:, 1], rtol=1e-9)


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figure_2_small(tmp_path: Path) -> None:
    numbers, pictures = figure2.run(tmp_path, 1, share=0.05)
    by_start = numbers["starts"]
    for s in ("2", "4", "8"):
        assert by_start["k-means++"][s]["converged"]
        assert by_start["k-means++"][s]["tv_to_own_law"]["mean"] < by_start["random"][s]["tv_to_own_law"]["mean"] / 2
    assert by_start["k-means++"]["8"]["entropy"]["mean"] > by_start["k-means++"]["2"]["entropy"]["mean"]
    assert [path.name for path in pictures] == ["figure2.png", "figure2.svg"]
    assert all(path.stat().st_size < 300_000 for path in pictures)
    assert "random" in figure2.summarize(numbers)


def test_figure_3_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure3, "N_UNIFORM", 20)
    quick = [method for method in figure3.METHODS if method.name in ("data", "DBSCAN", "1 level", "2 levels")]
    numbers, pictures = figure3.run(tmp_path, 1, methods=quick)
    kl = {name: one["kl"]["mean"] for name, one in numbers.items()}
    assert kl["data"] == pytest.approx(0.942, abs=0.03)
    assert kl["300 uniform points"] == pytest.approx(0.040, abs=0.007)
    assert kl["data"] > kl["DBSCAN"] > kl["1 level"] > kl["2 levels"] > kl["300 uniform points"]
    assert numbers["DBSCAN"]["n_clusters"]["mean"] == pytest.approx(300, abs=15)
    assert numbers["1 level"]["law"] == pytest.approx(kl["1 level"], abs=0.04)
    assert [path.name for path in pictures if path.stat().st_size < 300_000] == [
        "figure3_maps.png", "figure3_bars.png", "figure3_bars.svg",
    ]  # fmt: skip
    assert "DBSCAN" in figure3.summarize(numbers)


@pytest.mark.slow
def test_rings_small(tmp_path: Path) -> None:
    numbers, pictures = rings.run(tmp_path, 1)
    entropy = {name: one["entropy"]["mean"] for name, one in numbers["draws"].items()}
    assert list(entropy.values()) == sorted(entropy.values())
    assert entropy["random"] < 0.65
    assert entropy["2 levels, resampled"] > 0.98
    assert all(sum(one["per_ring"]) == 1000 for one in numbers["draws"].values())
    assert pictures[0].is_file()
    assert "20,000" in rings.summarize(numbers)


def test_the_gap_is_measured_by_case(tmp_path: Path) -> None:
    case = ((300,), {"n_resamples": 0})
    numbers, pictures = gap.run(tmp_path, 2, cases={"one": {"a": case}, "other": {"b": case}})
    assert numbers["one"]["a"] == numbers["other"]["b"]
    assert len(numbers["one"]["a"]["values"]) == 2
    assert pictures == []
    assert "0.3" in gap.summarize(numbers)
    assert all(len(levels) >= 1 for group in gap.CASES.values() for levels, _ in group.values())


def test_levels_of_scikit_learn_come_to_the_same(tmp_path: Path) -> None:
    numbers, _ = beside.run(tmp_path, 1, cases=((300,), (1500, 300)))
    for one in numbers.values():
        assert one["ours"]["mean"] == pytest.approx(one["scikit-learn"]["mean"], rel=0.15)
    assert numbers["1500, 300"]["ours"]["mean"] < numbers["300"]["ours"]["mean"] / 2
    assert "1500, 300" in beside.summarize(numbers)


# -- at the paper's size ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figure_2_follows_the_law(tmp_path: Path) -> None:
    numbers, _ = figure2.run(tmp_path, 3)
    found = numbers["starts"]["k-means++"]
    assert max(found["2"]["tv_to_cube_root"]["values"]) <= 0.05
    assert max(found[s]["tv_to_own_law"]["mean"] for s in found) <= 0.05
    entropies = [found[s]["entropy"]["mean"] for s in ("2", "4", "8")]
    assert entropies == sorted(entropies)
    assert all(found[s]["converged"] for s in found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_figure_3_comes_near_the_paper(tmp_path: Path) -> None:
    numbers, _ = figure3.run(tmp_path, 10)
    kl: dict[str, Any] = {name: one["kl"]["mean"] for name, one in numbers.items()}
    assert kl["1 level"] == pytest.approx(0.34, abs=0.03)
    assert kl["agglomerative, Ward"] == pytest.approx(0.374, abs=0.02)
    assert kl["2 levels"] <= 0.15
    assert kl["3 levels"] <= 0.105
    assert kl["3 levels, m = 10"] <= 0.052
    assert kl["3 levels, m = 10, 10, 100"] <= 0.043
    assert kl["3 levels, m = 0, 0, 100"] <= kl["300 uniform points"]
