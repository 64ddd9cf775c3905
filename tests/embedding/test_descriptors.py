"""Hog equals its definition in plain loops, and scikit-image's; Cells are plain means."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hkm_dask.embedding import descriptors
from hkm_dask.embedding.descriptors import CELLS, Cells, average_cells, describe_cells
from hkm_dask.embedding.embed import Encoder, embed
from hkm_dask.embedding.encoders import image_encoder
from hkm_dask.embedding.images import open_images
from hkm_dask.embedding.raster_patches import open_windows
from hkm_dask.errors import InputError

SIDE, CELL = 64, 16


def noise(n: int, grain: int = 8, seed: int = 0) -> np.ndarray:
    """Images with soft edges in all directions."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, SIDE // grain, SIDE // grain, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in small])


def by_loops(image: np.ndarray) -> np.ndarray:
    """Dalal and Triggs' descriptor and the cells' colors, pixel by pixel, in float64."""
    root = np.sqrt(image / 255)
    cells = np.zeros((4, 4, 9))
    for row in range(SIDE):
        for column in range(SIDE):
            best = (0.0, 0.0, 0.0)
            for channel in range(3):
                inside_y, inside_x = 0 < row < SIDE - 1, 0 < column < SIDE - 1
                dy = root[row + 1, column, channel] - root[row - 1, column, channel] if inside_y else 0.0
                dx = root[row, column + 1, channel] - root[row, column - 1, channel] if inside_x else 0.0
                best = max(best, (math.hypot(dx, dy), dy, dx), key=lambda found: found[0])
            magnitude, dy, dx = best
            angle = math.degrees(math.atan2(dy, dx)) % 180
            cells[row // CELL, column // CELL, min(int(angle // 20), 8)] += magnitude / CELL**2
    blocks = []
    for row in range(3):
        for column in range(3):
            block = cells[row : row + 2, column : column + 2].ravel()
            clipped = np.minimum(block / np.sqrt((block**2).sum() + 1e-10), 0.2)
            strength = np.sqrt((block**2).sum() / ((block**2).sum() + 0.02**2))
            blocks.append(strength * clipped / np.sqrt((clipped**2).sum() + 1e-10) / 3)
    colors = [
        0.25 * (image[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].mean(axis=(0, 1)) / 255 - 0.5)
        for row in range(4)
        for column in range(4)
    ]
    return np.concatenate([*blocks, *colors])


def test_it_equals_its_definition_in_loops() -> None:
    images = noise(3)
    found = descriptors.describe_edges(images)
    assert found.shape == (3, 372)
    assert found.dtype == np.float32
    for image, ours in zip(images, found, strict=True):
        expected = by_loops(image)
        # A pixel whose gradient lies on the border of two orientations may fall to either.
        assert np.abs(ours - expected).max() < 5e-3
        assert np.median(np.abs(ours - expected)) < 1e-7


def test_its_gradients_equal_those_of_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "FAINT", 0.0)  # scikit-image scales all blocks to one length
    feature = pytest.importorskip("skimage.feature")
    images = noise(8)
    expected = [
        feature.hog(
            image / 255,
            orientations=9,
            pixels_per_cell=(16, 16),
            cells_per_block=(2, 2),
            block_norm="L2-Hys",
            transform_sqrt=True,
            channel_axis=-1,
        )
        / 3
        for image in images
    ]
    off = np.abs(descriptors.describe_edges(images)[:, :324] - expected)
    assert off.max() < 5e-3
    assert np.median(off) < 1e-7


@pytest.mark.parametrize("degrees", [5, 30, 50, 75, 95, 110, 130, 150, 170])
def test_an_edge_falls_into_its_orientation(degrees: int) -> None:
    # Brightness grows along this direction, which is that of the gradient.
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    ramp = np.cos(math.radians(degrees)) * x + np.sin(math.radians(degrees)) * y
    gray = np.uint8(255 * ((ramp + 50) / 100).clip(0, 1) ** 2)  # its square root is what is described
    found = descriptors.describe_edges(np.repeat(gray[None, :, :, None], 3, axis=3))[0, :324].reshape(9, 4, 9)
    assert (found.sum(axis=(0, 1)).argmax()) == degrees // 20


def test_noise_in_a_clear_sky_counts_for_little() -> None:
    rng = np.random.default_rng(0)
    skies = (200 + rng.integers(-1, 2, (2, SIDE, SIDE, 1))).repeat(3, axis=3).astype(np.uint8)
    one, other = descriptors.describe_edges(skies).astype(np.float64)
    textures = descriptors.describe_edges(noise(2)).astype(np.float64)
    assert np.linalg.norm(one - other) < 0.1 * np.linalg.norm(textures[0] - textures[1])


@settings(max_examples=25)
@given(n=st.integers(1, 40), cut=st.integers(0, 40), seed=st.integers(0, 5))
def test_an_image_does_not_feel_its_neighbors(n: int, cut: int, seed: int) -> None:
    images = noise(n, seed=seed)
    cut = min(cut, n)
    encoder = descriptors.Hog()
    parts = [encoder(list(part)) for part in (images[:cut], images[cut:]) if len(part)]
    np.testing.assert_array_equal(np.concatenate(parts), encoder(list(images)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (63, 65), (64, 64), (480, 640), (2000, 3)])
def test_images_of_any_size_are_scaled(shape: tuple[int, int]) -> None:
    encoder = image_encoder("hog")
    found = encoder([np.full((*shape, 3), 100, np.uint8)])
    assert found.shape == (1, encoder.n_features) == (1, 372)
    np.testing.assert_array_equal(found[0, :324], 0)
    np.testing.assert_allclose(found[0, 324:], 0.25 * (100 / 255 - 0.5), rtol=1e-5)


@pytest.mark.parametrize("encoder", [descriptors.Hog(), descriptors.Cells()])
def test_other_arrays_than_images_are_refused(encoder: Encoder) -> None:
    for wrong in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(InputError, match=r"image=.* should be uint8 \(height, width, 3\)"):
            encoder([wrong])


def test_neighbors_of_real_images_are_more_often_of_their_class_than_chance(real_data: Callable[[str], Path]) -> None:
    images = open_images(real_data("cifar10_10k.zip"))
    rows = np.arange(0, 10_000, 10)
    x = descriptors.Hog()(images.take(rows))
    classes = np.array([images.names[row].split("/")[0] for row in rows])
    distances = (x**2).sum(axis=1) - 2 * x @ x.T
    np.fill_diagonal(distances, np.inf)
    assert (classes[distances.argmin(axis=1)] == classes).mean() > 0.2  # 0.1 by chance


# --- cells ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40))
def test_cells_are_averages_whatever_the_size(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # Every pixel cut into 8 × 8 parts: then any image divides into cells.
    parts = image.repeat(CELLS, axis=0).repeat(CELLS, axis=1).astype(float)
    plain = parts.reshape(CELLS, height, CELLS, width, 3).mean(axis=(1, 3)).reshape(-1, 3)
    np.testing.assert_allclose(average_cells(image), plain, atol=1e-9)


def test_a_pool_of_cells(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    pool = embed(open_windows(tmp_path / "a.png", size=32), tmp_path / "pool.zarr", Cells())
    cells = image.reshape(2, 8, 4, 3, 8, 4, 3).mean(axis=(2, 5)).transpose(0, 2, 1, 3, 4).reshape(6, 64, 3)
    np.testing.assert_array_equal(pool.rows().read(0, 6), describe_cells(cells)[0])
