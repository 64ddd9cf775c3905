"""The long-tail pipeline: its pools, its even draw, and one small study from end to end."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hkm_dask.errors import InputError
from pipelines.longtail import charts, command, pools, probes, studies, trials


def test_a_tail_falls_as_a_power_of_the_rank_and_never_above_what_there_is() -> None:
    tail = pools.long_tail
    assert tail(np.array([100, 100, 100, 100]), 1).tolist() == [100, 50, 33, 25]
    assert tail(np.array([100, 40, 100]), 0.5).tolist() == [100, 40, 58]
    assert tail(np.array([9, 9, 9]), 9).tolist() == [9, 1, 1]


@pytest.mark.parametrize(("exponent", "seed"), [(0.5, 0), (1, 3), (2, 7)])
def test_digits_keep_pool_and_test_apart(exponent: float, seed: int) -> None:
    pool = pools.digits(exponent, seed)
    assert np.bincount(pool.test_labels).tolist() == [34] * 10
    sizes = np.bincount(pool.labels)
    assert sizes[0] == 140
    assert (np.diff(sizes) <= 0).all()
    both = np.concatenate([pool.embeddings, pool.test_embeddings])
    assert len(np.unique(both, axis=0)) == len(both)  # the pictures are all different
    bunch = load_digits()
    digit_of = {row.tobytes(): digit for row, digit in zip(bunch.data.astype(np.float32), bunch.target, strict=True)}
    drawn = [digit_of[row.tobytes()] for row in np.round(pool.embeddings * 16)]
    assert [pool.class_names[label] for label in pool.labels] == [str(digit) for digit in drawn]


def test_the_commonest_class_wins_and_the_nearest_breaks_ties() -> None:
    samples = np.array([[0.0], [1.0], [2.0], [3.0]])
    centroids = np.array([[0.4], [2.9]])
    assert probes.nearest_class(centroids, samples, [1, 0, 0, 2], n_neighbors=1).tolist() == [1, 2]
    assert probes.nearest_class(centroids, samples, [1, 0, 0, 2], n_neighbors=2).tolist() == [1, 2]  # ties
    assert probes.nearest_class(centroids, samples, [1, 0, 0, 2], n_neighbors=3).tolist() == [0, 0]
    with pytest.raises(InputError, match="n_neighbors=5"):
        probes.nearest_class(centroids, samples, [1, 0, 0, 2], n_neighbors=5)
    with pytest.raises(InputError, match="one per sample"):
        probes.nearest_class(centroids, samples, [1, 0], n_neighbors=1)


def test_every_class_is_the_largest_once_in_ten_seeds() -> None:
    orders = [pools.class_order(10, seed).tolist() for seed in range(10)]
    assert orders[0] == list(range(10))
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert sorted(order[0] for order in orders) == list(range(10))
    assert sorted(c for order in orders[:5] for c in order[:2]) == list(range(10))


@pytest.mark.parametrize("draw", [7, 30, 55])
def test_the_even_draw_takes_as_many_of_each_class_while_it_lasts(draw: int) -> None:
    labels = np.repeat([0, 1, 2], [40, 12, 3])
    rows = trials.even_over(labels, draw, np.random.default_rng(0))
    expected = {7: [3, 2, 2], 30: [15, 12, 3], 55: [40, 12, 3]}[draw]
    assert len(set(rows.tolist())) == draw
    assert np.bincount(labels[rows]).tolist() == expected


def test_a_study_goes_the_whole_way_and_is_not_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not pools.DATA.is_dir():
        pytest.skip("the labeled pools are not beside the checkout")
    words = ["run.py", "--out", str(tmp_path), "--studies", "advice", "--pools", "digits-2", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", words)
    command.main()
    first = capsys.readouterr().out
    assert "[4 of 4]" in first
    found = json.loads((tmp_path / "advice.json").read_text())
    entropy = {name.partition(": ")[2]: np.mean(values["entropy"]) for name, values in found.items()}
    assert entropy["uniform draw"] < entropy["as advised"] < entropy["even draw"]
    assert (tmp_path / "advice.png").stat().st_size > 5000
    command.main()
    again = capsys.readouterr().out
    assert " of 4]" not in again
    assert again.strip() == first[first.index("\nDoes the advice") :].strip()


def test_bars_in_a_name_do_not_part_the_cells(tmp_path: Path) -> None:
    measured = studies.uniform("digits-2", 2)
    found = trials.Trials(tmp_path / "trials.jsonl")
    found.run(measured)
    row = studies.Row("digits-2: k-means||", measured, "random")
    text = command.table(studies.Study("seeding", "Which?", (row,)), found)
    cells = {line.replace(r"\|", "").count("|") for line in text.splitlines()}
    assert cells == {2 + len(command.COLUMNS)}


def test_groups_of_lines_get_a_heading_each() -> None:
    lines = [charts.Line(name, [], group=group) for group, name in (("a", "x"), ("a", "y"), ("b", "x"))]
    at, groups, height = charts._places(lines)
    assert groups["a"] < at[0] < at[1] < groups["b"] < at[2] < height
    assert charts._places([charts.Line("x", []), charts.Line("y", [])]) == ([0, 1], {}, 2)


def test_wrong_words_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--studies", "levles", "--pools", "none"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert "--studies=levles should be one of levels" in capsys.readouterr().err


def test_the_search_puts_the_best_setting_first(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    real_data("longtail_nouns_idx.npy")
    study = studies.search(2)
    names = [row.name for row in study.rows]
    assert len(set(names)) == len(names) > 60
    assert "5, 10, 30; m = 1; r = 2" in names
    assert len(set(study.trials())) == 2 * len(names)
    found = trials.Trials(tmp_path / "trials.jsonl")
    for place, row in enumerate(study.rows):
        for trial in row.trials:
            found.results[trial.key] = {"draws": {row.draw: {"entropy": 1 / (1 + (place ^ 5))}}}
    entropies = [found.values(row.trials, row.draw, "entropy").mean() for row in command.best_first(study, found).rows]
    assert entropies == sorted(entropies, reverse=True)
    assert len(set(entropies)) == len(names)
