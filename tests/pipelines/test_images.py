"""pipelines/images from end to end, on synthetic images, most of them alike."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hkm_dask as hkm
from hkm_dask.embedding.encoders import image_encoder
from hkm_dask.errors import InputError
from pipelines.images import command as pipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eighty nearly black images, and forty with stripes and colors."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    (root / "dark").mkdir(parents=True)
    (root / "striped").mkdir()
    for number in range(80):
        pixels = rng.integers(0, 12, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "dark" / f"{number:02}.png")
    for number in range(40):
        color = rng.integers(60, 256, 3)
        stripes = (np.arange(30) // (2 + number % 7) % 2)[None, :, None] * np.ones((20, 1, 1))
        pixels = (stripes * color).astype(np.uint8)
        Image.fromarray(pixels if number % 2 else pixels.transpose(1, 0, 2)).save(root / "striped" / f"{number:02}.png")
    return root


CONFIG = hkm.Config.from_flags((24, 6), n_resamples=1, max_iter=10)


def test_the_whole_way(folder: Path, tmp_path: Path) -> None:
    options = {"encoder": image_encoder("hog"), "config": CONFIG, "n_drawn": 30}
    summary = pipeline.run(folder, tmp_path / "out", **options)
    assert (summary.n_images, summary.n_drawn, summary.n_clusters) == (120, 30, (24, 6))
    assert all(path.exists() for path in summary.files)
    ids = pq.read_table(tmp_path / "out" / "subset.parquet")["id"].to_pylist()
    assert sum(name.startswith("dark/") for name in ids) < 15  # of 30, where two thirds of the pool are dark
    assert summary.spreads["curated"].n_colors > summary.spreads["random"].n_colors
    for name in ("draws.png", "clusters.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width <= 1600
            assert picture.getextrema()[0] == (0, 255) if picture.mode == "RGB" else True
    said = str(summary)
    assert "120 images → 24 → 6 clusters → 30 drawn" in said
    before = (tmp_path / "out" / "subset.parquet").read_bytes()
    assert str(pipeline.run(folder, tmp_path / "out", **options)) == said
    assert (tmp_path / "out" / "subset.parquet").read_bytes() == before


def test_spread_by_hand(tmp_path: Path) -> None:
    """Of four images of three colors the entropy is that of (2, 1, 1); distances are those of the embeddings."""
    for number, color in enumerate([0, 5, 100, 200]):
        Image.new("RGB", (8, 8), (color,) * 3).save(tmp_path / f"{number}.png")
    images = pipeline.open_images(tmp_path)
    pool = hkm.ingest(np.array([[0.0, 0], [3, 4], [3, 5], [30, 0]]), tmp_path / "p.zarr")
    spread = pipeline.measure(images, pool, np.arange(4), 0)
    assert spread.n_colors == pytest.approx(np.exp(-(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))))
    assert spread.nearest == pytest.approx((5 + 1 + 1 + np.hypot(27, 4)) / 4)


def test_mistakes_are_told_before_anything_is_embedded(folder: Path, tmp_path: Path) -> None:
    hog = image_encoder("hog")
    with pytest.raises(InputError, match="subset=121 should be at most 120"):
        pipeline.run(folder, tmp_path / "out", encoder=hog, config=CONFIG, n_drawn=121)
    with pytest.raises(InputError, match="n_clusters"):
        pipeline.run(folder, tmp_path / "out", encoder=hog, config=hkm.Config.from_flags((200, 6)), n_drawn=5)
    with pytest.raises(InputError, match="n_images=49 should be at least 50"):
        pipeline.default_config(49)
    assert not (tmp_path / "out").exists()
