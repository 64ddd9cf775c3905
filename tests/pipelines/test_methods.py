"""Methods of drawing other than the tree, against a few lines of NumPy, and their comparison on a small pool."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.longtail import comparison, methods, more_pools, pools, variants
from pipelines.longtail.methods import METHODS
from pipelines.measurements import Measurements, mean_and_error


@pytest.fixture(scope="module")
def pool() -> pools.Pool:
    return pools.digits(1, 0)


def distances(x: NDArray) -> NDArray[np.float64]:
    x = x.astype(np.float64)
    return np.sqrt(np.square(x[:, None] - x[None]).sum(axis=2))


def test_radii_are_those_of_all_pairs(pool: pools.Pool) -> None:
    expected = np.sort(distances(pool.embeddings), axis=1)[:, 1 : methods.N_NEIGHBORS + 1]
    np.testing.assert_allclose(methods.radii(pool), expected, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_draws_so_many_rows_by_its_seed(name: str) -> None:
    pool = pools.digits(2, 0)
    rows = METHODS[name](pool, 1)
    assert len(rows) == len(set(rows.tolist())) == pool.draw
    assert rows.min() >= 0
    assert rows.max() < len(pool.labels)
    if "tree" not in name:
        assert np.array_equal(rows, METHODS[name](pool, 1))
        assert not np.array_equal(np.sort(rows), np.sort(METHODS[name](pool, 2))) or name == "SemDeDup"


def test_k_center_takes_the_farthest_row_each_time(pool: pools.Pool) -> None:
    rows = methods.k_center(pool, 3)
    apart = distances(pool.embeddings)
    for n in range(1, len(rows)):
        to_drawn = apart[:, rows[:n]].min(axis=1)
        assert to_drawn[rows[n]] == pytest.approx(to_drawn.max(), rel=1e-5)


def test_isolated_rows_come_in_proportion_to_a_power_of_their_radius(pool: pools.Pool) -> None:
    radius = methods.radii(pool)[:, 4]
    extreme = methods.isolated(pool, 0, neighbor=5, power=1e6)
    assert set(extreme.tolist()) == set(np.argsort(-radius)[: pool.draw].tolist())
    one = pools.Pool("", pool.embeddings, pool.labels, pool.test_embeddings, pool.test_labels, pool.class_names, 1)
    n = 4000
    drawn = np.array([methods.isolated(one, seed, neighbor=5, power=4)[0] for seed in range(n)])
    above = radius > np.median(radius)
    share = (radius[above] ** 4).sum() / (radius**4).sum()
    assert above[drawn].mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))


def test_semdedup_drops_copies_first() -> None:
    x = pools.digits(1, 0).embeddings[:120]
    labels = np.zeros(240, np.int64)
    twice = pools.Pool("", np.concatenate([x, x]), labels, x[:0], labels[:0], ("a", "b"), 120)
    rows = methods.semdedup(twice, 0)
    assert sorted((rows % 120).tolist()) == list(range(120))


def test_what_does_not_fit_is_told_and_not_measured_again(
    pool: pools.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "MOST_PAIRED", 10)
    (folder := tmp_path / ("deep" * 30)).mkdir()  # the picture has no room for its path
    more_pools.to_file(pool, folder / "mine.npz")
    name = str(folder / "mine.npz")
    some = {m: METHODS[m] for m in ("uniform", "agglomerative", "k-center", "balanced by labels")}
    found = comparison.run(tmp_path, [name], 2, some)
    refused = [record for record in found.table() if "refused" in record]
    assert [record["method"] for record in refused] == ["agglomerative"] * 2
    before = (tmp_path / "methods.jsonl").read_text()
    comparison.run(tmp_path, [name], 2, some)
    assert (tmp_path / "methods.jsonl").read_text() == before
    text = comparison.report(found.table(), tmp_path)
    assert (tmp_path / "methods.png").stat().st_size > 5000
    row = next(line for line in text.splitlines() if line.startswith("| balanced by labels"))
    by_hand = [
        next(r["linear"] for r in found.table() if (r["method"], r["seed"]) == (method, seed))
        for method in ("balanced by labels", "uniform")
        for seed in (0, 1)
    ]
    assert f"| {np.mean(by_hand[:2]) - np.mean(by_hand[2:]):+.3f} |" in row


def test_the_worth_of_a_draw_of_everything(pool: pools.Pool) -> None:
    everything = comparison.worth(pool, np.arange(len(pool.labels)))
    assert everything["mean_distance"] == everything["max_distance"] == pytest.approx(0, abs=1e-3)
    assert everything["outliers"] == pytest.approx(0.01, abs=1 / len(pool.labels))
    some = comparison.worth(pool, np.arange(0, len(pool.labels), 9))
    to_some = distances(pool.embeddings)[:, ::9].min(axis=1)
    assert some["max_distance"] == pytest.approx(to_some.max(), rel=1e-5)
    assert some["mean_distance"] == pytest.approx(to_some.mean(), rel=1e-5)


def test_a_pool_survives_its_file(pool: pools.Pool, tmp_path: Path) -> None:
    more_pools.to_file(pool, tmp_path / "digits.npz")
    read = more_pools.pool_of(str(tmp_path / "digits.npz"))(5)
    assert read.class_names == pool.class_names
    assert read.draw == pool.draw
    assert np.array_equal(read.labels, pool.labels)
    np.testing.assert_allclose(read.embeddings, pool.embeddings, atol=1e-3)


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl"
    Measurements(path).get({"seed": 0}, lambda: {"x": 1})
    with path.open("a") as file:
        file.write('{"key": {"seed": 1}, "resu')
    found = Measurements(path)
    assert {"seed": 1} not in found
    found.get({"seed": 1}, lambda: {"x": 2})
    assert [json.loads(line)["result"] for line in path.read_text().splitlines()] == [{"x": 1}, {"x": 2}]
    assert found.table() == [{"seed": 0, "x": 1}, {"seed": 1, "x": 2}]
    assert np.isnan(mean_and_error([1.0])[1])


@pytest.mark.skipif(not more_pools.WORDNET.exists(), reason="wordnet-base is not installed")
@pytest.mark.skipif(not pools.DATA.is_dir(), reason="the labeled pools are not beside the checkout")
def test_hypernyms_follow_the_order_of_the_embeddings() -> None:
    words, paths = more_pools._hypernyms()
    lemmas = (pools.DATA / "wordnet_nouns_lemmas.txt").read_text().splitlines()
    assert [word.replace("_", " ") for word in words] == lemmas
    dog = words.index("dog")
    assert "carnivore" in [words[i] for i in paths[dog]]
    found = more_pools.hypernyms("artifact", 2)
    assert found.class_names[0] == "device"
    assert (np.diff(np.bincount(found.labels)) <= 0).all()
    assert np.bincount(found.test_labels).tolist() == [more_pools.N_TEST] * found.n_classes


def test_variants_are_chosen_on_some_pools_and_judged_on_others(tmp_path: Path) -> None:
    assert set(variants.CHOSEN_ON).isdisjoint(variants.JUDGED_ON)
    assert set(variants.CHOSEN_ON) | set(variants.JUDGED_ON) == set(more_pools.ALL_POOLS)
    pool = pools.digits(2, 0)
    some = {name: method(pool, 0) for name, method in variants.VARIANTS.items()}
    assert {len(set(rows.tolist())) for rows in some.values()} == {pool.draw}
    _, tree = variants._tree(pool, 0)
    top = tree["level_3"]["leaf_sizes"].to_numpy()[tree.hkm.labels(3).to_numpy()]
    assert top[some["without small, 6"]].min() >= 6
    assert top[some["tempered, 1/2"]].mean() > top[some[variants.PLAIN]].mean()
    records = [
        {"pool": p, "method": m, "seed": s, **dict.fromkeys(comparison.GAINED, x + s / 100)}
        for p, m, s, x in [
            ("nouns", variants.PLAIN, 0, 0.5), ("nouns", variants.PLAIN, 1, 0.5), ("mine", variants.PLAIN, 0, 0.5),
            ("nouns", "closest", 0, 0.6), ("nouns", "closest", 1, 0.61), ("mine", "closest", 0, 0.4),
        ]
    ]  # fmt: skip
    lines = variants.table(records, ["nouns", "mine"]).splitlines()[2:]
    assert lines[0].startswith("| chosen on | closest | 1 | +0.105 ")
    assert lines[0].endswith("| 1, 0 |")
    assert lines[1].startswith("| judged on | closest | 1 | -0.100 ")
