"""Models trained on draws: pools, the network against NumPy, and one tiny study the whole way. Torch is optional."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pipelines.training import command, images
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
    text = command.table([*records, {"draw": "tree", "seed": 0, "linear": 0.7}], ["linear"])
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
