"""Warnings appear exactly when their rule applies."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.view.report.columns import Values
from hkm_dask.view.report.concerns import concerns
from hkm_dask.view.report.facts import Facts, gather
from hkm_dask.view.report.near_duplicates import NearDuplicates, find
from tests.view.report.conftest import Made, N


def heads(facts: Facts, near: NearDuplicates | None = None) -> list[str]:
    return re.findall(r"<b>(.*?)</b>", " ".join(concerns(facts, near)))


@pytest.fixture
def facts(made: Made) -> Facts:
    return gather(made.tree, "tree.zarr", made.pool, made.rows)


def with_top(facts: Facts, sizes: list[int], drawn: list[int], **changed: object) -> Facts:
    top = dataclasses.replace(facts.top, sizes=np.array(sizes), drawn=np.array(drawn))
    return dataclasses.replace(
        facts, levels=(*facts.levels[:-1], top), n_clustered=sum(sizes), far=(0.01, 0.02), **changed
    )


def test_a_sound_draw_gives_none(facts: Facts) -> None:
    assert heads(with_top(facts, [400, 200, 120, 80], [10, 10, 10, 10])) == []


@pytest.mark.parametrize(
    ("sizes", "drawn", "said"),
    [
        ([100, 90, 110, 100], [5, 5, 5, 5], "The pool is already even."),
        ([900, 50, 30, 20], [5, 5, 5, 5], "One cluster holds most of the pool."),
        ([400, 200, 120, 80], [40, 20, 12, 8], "The draw is no more even than the pool."),
        ([400, 200, 120, 80], [200, 190, 115, 75], "The draw is too large to be even."),
    ],
)
def test_shares_of_the_clusters(facts: Facts, sizes: list[int], drawn: list[int], said: str) -> None:
    assert heads(with_top(facts, sizes, drawn)) == [said]


def test_far_rows_and_runs_that_were_stopped(facts: Facts) -> None:
    sound = with_top(facts, [400, 200, 120, 80], [10, 10, 10, 10])
    assert heads(dataclasses.replace(sound, far=(0.01, 0.06))) == ["The draw contains outliers."]
    run = np.ones(sound.config.levels[0].max_iter)
    low = dataclasses.replace(sound.levels[0], runs=(run,))
    assert heads(dataclasses.replace(sound, levels=(low, *sound.levels[1:]))) == ["Not all k-means converged."]


@pytest.mark.parametrize(("draw", "said"), [([0.5, 0.5], []), ([0.9, 0.1], ["The classes are no more even"])])
def test_classes(facts: Facts, draw: list[float], said: list[str]) -> None:
    classes = Values("labels", ["a", "b"], np.array([0.7, 0.3]), np.array(draw))
    found = concerns(with_top(facts, [400, 200, 120, 80], [10, 10, 10, 10]), None, classes)
    assert [re.findall("<b>(.*) in the draw", one)[0] for one in found] == said


def test_near_duplicates_are_those_of_the_draw_and_more_than_of_a_uniform_one(facts: Facts, made: Made) -> None:
    near = find(made.tree, made.pool, made.rows)
    assert near is not None
    x = made.pool.rows().take(made.rows).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x @ x.T - 2 * np.eye(len(x))
    for threshold, n in near.drawn.items():
        assert n == (cosines >= threshold).any(axis=1).sum()
    assert (N - 2, N - 1, pytest.approx(1.0)) in near.closest
    sound = with_top(facts, [400, 200, 120, 80], [10, 10, 10, 10])
    few = NearDuplicates(1000, {0.99: 9, 0.95: 30}, {0.99: 0, 0.95: 20}, [])
    many = NearDuplicates(1000, {0.99: 9, 0.95: 30}, {0.99: 0, 0.95: 10}, [])
    assert heads(sound, few) == []
    assert heads(sound, many) == ["The draw contains near-duplicates."]


def blobs(sizes: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(len(sizes)), sizes)
    return (rng.normal(size=(len(sizes), 16))[kinds] + 0.3 * rng.normal(size=(len(kinds), 16))).astype("f4")


ZIPF = np.maximum(10_000 / np.arange(1, 201) / np.sum(1 / np.arange(1, 201)), 3).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "even"), [("square", True), ("equal blobs", True), ("by Zipf's law, 20", False), ("by Zipf's law", False)]
)
def test_pools_told_of_in_the_documentation(tmp_path: Path, kind: str, even: bool, seed: int) -> None:
    x = {
        "square": lambda: np.random.default_rng(seed).random((10_000, 2)).astype("f4"),
        "equal blobs": lambda: blobs(np.full(20, 500), seed),
        "by Zipf's law, 20": lambda: blobs(np.floor(10_000 / np.arange(1, 21) / 3.6).astype(int), seed),
        "by Zipf's law": lambda: blobs(ZIPF, seed),
    }[kind]()
    tree = hkm.build_hierarchy(x, tmp_path / "tree.zarr", hkm.Config.from_flags((500, 100, 20), n_resamples=2))
    found = heads(gather(tree, "tree.zarr", None, np.sort(hkm.sample(tree, 1000))))
    assert ("The pool is already even." in found) == even
