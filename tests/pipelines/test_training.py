"""Training on draws: pools, the network against NumPy, and one tiny study from end to end. Torch is optional."""

import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pipelines.training import command, corpus, images, labeled, network, quotes, satellite, text
from pipelines.training.draws import ALL
from pipelines.training.network import TEMPERATURE

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")


def test_near_copies_are_the_same_picture_a_little_moved() -> None:
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    copies = images.near_copies(some, rng)
    for image, copy in zip(some.astype(float), copies.astype(float), strict=True):
        shifts = [np.roll(image, (i, j), (0, 1)) for i in range(-2, 3) for j in range(-2, 3)]
        ratios = [np.median(copy[shifted > 0] / shifted[shifted > 0]) for shifted in shifts]
        errors = [np.abs(copy - np.clip(r * s, 0, 255)).max() for r, s in zip(ratios, shifts, strict=True)]
        assert min(errors) < 3


def test_the_table_has_mean_and_error_of_the_seeds() -> None:
    records = [{"draw": "raw", "seed": s, "linear": x} for s, x in enumerate((0.4, 0.6))]
    found = quotes.folded([*records, {"draw": "tree", "seed": 0, "linear": 0.7}])
    text = quotes.table(found, ["linear"])
    assert text.splitlines()[2:] == ["| raw | 2 | 0.500 ± 0.100 |", "| tree | 1 | 0.700 |"]


def test_a_slip_in_a_draw_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "images", "--draws", "raw,treee"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert "--draws=treee should be some of raw, tree" in capsys.readouterr().err


@pytest.mark.slow
def test_the_pool_of_images_has_a_tail_copies_and_probes_outside_of_it(real_data: Callable[[str], Path]) -> None:
    real_data("cifar10_train30k.zip")
    pool = images.image_pool(1)
    own = len(pool.images) - images.N_COPIES
    sizes = np.bincount(pool.labels[:own])
    assert sizes[0] == images.IMBALANCE * sizes[-1] == 3000
    assert len(set(pool.originals[:own].tolist())) == own
    assert np.bincount(pool.originals[own:]).max() > 500
    assert set(pool.originals[own:].tolist()) <= set(pool.originals[:own].tolist())
    assert np.bincount(pool.fit_labels).tolist() == np.bincount(pool.test_labels).tolist() == [500] * 10


@needs_torch
def test_the_loss_is_cross_entropy_of_cosines_to_all_other_views() -> None:
    import torch

    from pipelines.training.network import contrast

    x = np.random.default_rng(0).normal(size=(6, 4))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = unit @ unit.T / TEMPERATURE
    losses = [-scores[i, (i + 3) % 6] + np.log(sum(np.exp(scores[i, j]) for j in range(6) if j != i)) for i in range(6)]
    assert float(contrast(torch.from_numpy(x))) == pytest.approx(np.mean(losses))


@needs_torch
def test_views_stay_images_and_differ() -> None:
    import torch

    from pipelines.training.network import view

    torch.manual_seed(0)
    plain = torch.rand(8, 3, 16, 16)
    seen = view(plain)
    assert seen.shape == plain.shape
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    assert float((seen - view(plain)).abs().mean()) > 0.01


@needs_torch
@pytest.mark.slow
def test_images_go_the_whole_way_and_are_not_trained_twice(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    real_data("cifar10_train30k.zip")
    sizes = {"n_drawn": 100, "share": 0.1, "n_copies": 100}
    found = images.run(tmp_path, 1, setting="tiny", draws=["raw", "tree", "balanced by labels"], **sizes)
    records = {record["draw"]: record for record in found.table()}
    assert list(records) == [ALL, "raw", "tree", "balanced by labels"]
    assert records["balanced by labels"]["entropy"] > records["raw"]["entropy"]
    assert all(0.05 < record["linear"] < 0.6 for record in records.values())
    assert set(next(iter(records.values()))["by_class"]) == {"airplane", "automobile", "bird", "cat", "deer", "dog",
                                                             "frog", "horse", "ship", "truck"}  # fmt: skip
    before = (tmp_path / "images.jsonl").read_text()
    images.run(tmp_path, 1, setting="tiny", draws=["raw", "tree"], **sizes)
    assert (tmp_path / "images.jsonl").read_text() == before
    found = labeled.run(tmp_path, 1, setting="tiny", draws=["raw", "tree"], **sizes)
    again = {record["draw"]: record for record in found.table()}
    assert list(again) == [ALL, "raw", "tree"]
    assert all(again[name][fact] == records[name][fact] for name in again for fact in ("entropy", "copies", "n_drawn"))
    assert all(0.05 < record["accuracy"] < 0.6 for record in again.values())
    assert (tmp_path / "images.jsonl").read_text() == before


@needs_torch
def test_a_classifier_learns_which_images_are_bright() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    some = rng.integers(0, 90, (200, 8, 8, 3)) + 160 * labels[:, None, None, None]
    model = network.train_to_classify(some.astype(np.uint8), labels, 2, network.Setting((8, 16), 32, 60), 0)
    assert (network.features(model, some.astype(np.uint8)).argmax(axis=1) == labels).mean() > 0.95


def test_gains_are_points_above_the_uniform_draw_of_the_same_seed(tmp_path: Path) -> None:
    found = {"raw": {"linear": [0.5, 0.4]}, "tree": {"linear": [0.55, 0.3]}}
    run = {"found": found, "date": "2026-01-01", "settings": {"columns": ["linear"]}}
    assert np.allclose(quotes.gained(found, "linear", more=True)["tree"], [5, -10])
    assert quotes.quote({"images": run})["images-linear-tree"] == "-2.5 ± 7.5"
    quotes.draw({"images": run}, tmp_path / "training.png")
    assert (tmp_path / "training.png").exists()


def test_passages_hold_all_words_in_order() -> None:
    rng = np.random.default_rng(0)
    paragraphs = [" ".join("x" * n for n in rng.integers(1, 30, size)) for size in rng.integers(1, 300, 40)]
    found = list(corpus.passages([*paragraphs, "x " * 1500]))
    words, given = " ".join(found).split(), " ".join([*paragraphs, "x " * 1500]).split()
    assert words == given[: len(words)]
    assert len(given) - len(words) < corpus.LEAST
    assert corpus.LEAST <= min(map(len, found)) <= max(map(len, found)) <= corpus.MOST
    assert [len(passage) for passage in corpus.passages(["y" * 2000])] == [corpus.MOST, corpus.MOST, 600]


def test_a_varied_text_lacks_a_few_words() -> None:
    plain = " ".join(map(str, range(1000)))
    varied = corpus.vary(plain, np.random.default_rng(0)).split()
    assert 900 < len(varied) < 990
    assert varied == sorted(varied, key=int)


def test_patches_lie_within_their_regions() -> None:
    day = np.zeros((96, 192, 3), np.uint8)
    day[..., 0], day[..., 1] = np.indices((96, 192))
    night = day[..., 0].astype(float)
    regions = np.zeros((3, 6), bool)
    regions[1, 2] = True
    found = satellite.cut(day, night, regions)
    assert found.images.shape == (9, 16, 16, 3)
    assert (found.images[..., 0].min(), found.images[..., 0].max()) == (32, 63)
    assert (found.images[..., 1].min(), found.images[..., 1].max()) == (64, 95)
    assert np.allclose(np.expm1(found.light), found.images[..., 0].mean(axis=(1, 2)))
    assert satellite.classes(np.log1p([0, 1, 5, 50])).tolist() == [0, 1, 2, 3]


@needs_torch
@pytest.mark.slow
def test_satellite_goes_the_whole_way(tmp_path: Path) -> None:
    if not satellite.NIGHT.exists():
        pytest.skip("xplanet-images is not installed")
    found = satellite.run(tmp_path, 1, setting="tiny", draws=["raw", "balanced by labels"], n_drawn=200)
    records = {record["draw"]: record for record in found.table()}
    assert records["balanced by labels"]["entropy"] > records["raw"]["entropy"]
    assert all(record["lit_error"] > record["error"] > 0 for record in records.values())


@needs_torch
@pytest.mark.slow
def test_text_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = ("dictd/gcide.dict.dz", "wordnet/data.noun", "games/fortunes", "doc/debian/FAQ/debian-faq.en.txt.gz")
    there = all((corpus.SHARE / path).exists() for path in read) and shutil.which("bible")
    if not there or not find_spec(text.MODEL) or not find_spec("tokenizers"):
        pytest.skip("the documents, the tokenizer or the model that embeds them are not installed")
    monkeypatch.setattr(text, "N_TEST", 5)
    found = text.run(tmp_path, 1, setting="tiny", draws=["raw", "tree"], n_drawn=40, share=0.03)
    records = {record["draw"]: record for record in found.table()}
    assert list(records) == ["raw", "tree", ALL]
    assert all(100 < record["balanced"] < 3000 for record in records.values())


@needs_torch
def test_a_language_model_learns_what_comes_next() -> None:
    from pipelines.training import language

    tokens = np.tile(np.arange(5), 200)
    setting = language.Setting(16, 2, 1, 16, 8, 150)
    model = language.train(tokens, setting, 5, 0)
    assert language.surprise(model, tokens, 16) < np.log(5) / 2
    untrained = language.network(setting, 5).eval()
    assert language.surprise(untrained, tokens, 16) == pytest.approx(np.log(5), abs=0.8)
