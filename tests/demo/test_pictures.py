"""Pictures: pixel-exact layout, without the global state of pyplot."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hkm_dask.demo import pictures
from hkm_dask.demo.pictures import Draw, LevelSizes, arrange, contact_sheet


@pytest.fixture
def draws() -> list[Draw]:
    rng = np.random.default_rng(0)
    return [
        Draw(
            title,
            "a caption",
            "#3b82c4",
            sheet=rng.integers(0, 256, (24, 16, 16, 3)).astype(np.uint8),
            places=(rng.uniform(0, 40, (30, 2)), np.empty((0, 2))),  # a draw may leave a photograph out
        )
        for title in ("one", "two")
    ]


@pytest.fixture
def photographs() -> list[np.ndarray]:
    return [np.full((40, 60, 3), value, np.uint8) for value in (90, 180)]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_sheet_shows_every_patch_once_and_unchanged() -> None:
    patches = np.random.default_rng(1).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    sheet = contact_sheet(patches, columns=4, scale=3, gap=2)
    assert sheet.shape == (3 * 50 - 2, 4 * 50 - 2, 3)
    found = [sheet[50 * row : 50 * row + 48 : 3, 50 * col : 50 * col + 48 : 3] for row in range(3) for col in range(4)]
    assert sorted(patch.tobytes() for patch in found) == sorted(patch.tobytes() for patch in patches)
    assert (sheet[48:50] == 255).all()


def test_columns_of_a_sheet_grow_lighter() -> None:
    patches = np.random.default_rng(2).integers(0, 256, (30, 1, 1, 3)).astype(np.uint8)
    lightness = patches[arrange(patches, columns=5)][:, :, 0, 0] @ pictures.LIGHTNESS
    assert (lightness.max(axis=0)[:-1] <= lightness.min(axis=0)[1:]).all()


def test_saved_sheets_keep_the_patches_pixel_for_pixel(draws: list[Draw], tmp_path: Path) -> None:
    pictures.save(pictures.draw_sheets(draws, columns=6), tmp_path / "sheets.png")
    image = read(tmp_path / "sheets.png")
    sheet = contact_sheet(draws[0].sheet, columns=6)
    top, left = 96, pictures.MARGIN
    np.testing.assert_array_equal(image[top : top + sheet.shape[0], left : left + sheet.shape[1]], sheet)


def test_places_are_dots_on_the_darkened_photograph(
    draws: list[Draw], photographs: list[np.ndarray], tmp_path: Path
) -> None:
    pictures.save(pictures.draw_places(draws, photographs), tmp_path / "places.png")
    image = read(tmp_path / "places.png").astype(int)
    first = image[96:136, pictures.MARGIN : pictures.MARGIN + 60]
    second = image[96:136, 2 * pictures.MARGIN + 60 : 2 * pictures.MARGIN + 120]
    yellow = (first[..., 0] > 150) & (first[..., 2] < 140)
    assert yellow.any()
    assert np.ptp(second) == 0, "nothing was drawn from the second photograph"
    assert second.max() < 90


def test_overview_and_sizes_are_drawn(draws: list[Draw], photographs: list[np.ndarray], tmp_path: Path) -> None:
    sizes = np.array([900, 30, 0, 1])  # an empty cluster has no logarithm
    level = LevelSizes(sizes, sizes // 10, np.array([3, 3, 0, 1]), np.full((4, 3), 128, np.uint8))
    pictures.save(pictures.draw_sizes([level, level]), tmp_path / "sizes.png")
    pictures.save(pictures.draw_sheets(draws, photographs, columns=6), tmp_path / "overview.png")
    for name in ("sizes.png", "overview.png"):
        image = read(tmp_path / name)
        assert (image[:10] == 255).all(), "a margin"
        assert image.std() > 10, "and something on it"


def test_pyplot_stays_out() -> None:
    code = "import sys, hkm_dask.demo.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
