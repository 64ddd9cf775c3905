"""Patches read by windows, against slices of the arrays that the rasters were written from."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from hkm_dask.embedding.raster_patches import Windows, open_windows
from hkm_dask.errors import InputError, StoreError
from tests.embedding.scenes import UTM, noise, write_tiff


def all_patches(pixels: NDArray, size: int, step: int) -> list[NDArray]:
    """Cut (height, width, 3) the plain way."""
    height, width = pixels.shape[:2]
    return [
        pixels[top : top + size, left : left + size]
        for top in range(0, height - size + 1, step)
        for left in range(0, width - size + 1, step)
    ]


@given(size=st.integers(1, 40), step=st.integers(1, 50), cuts=st.lists(st.integers(0, 3000), max_size=4))
def test_patches_are_slices_of_the_raster(scene: tuple[Path, NDArray], size: int, step: int, cuts: list[int]) -> None:
    path, pixels = scene
    step = max(step, size // 4)  # or there are thousands
    windows = open_windows(path, size=size, step=step)
    wanted = all_patches(pixels, size, step)
    assert len(windows) == len(wanted)
    edges = sorted({0, len(wanted), *(cut for cut in cuts if cut < len(wanted))})
    found = [patch for first, last in itertools.pairwise(edges) for patch in windows.read(first, last)]
    assert all(patch.shape == (size, size, 3) and patch.dtype == np.uint8 for patch in found)
    np.testing.assert_array_equal(found, wanted)


def test_several_rasters_follow_one_another(scene: tuple[Path, NDArray], tmp_path: Path) -> None:
    path, pixels = scene
    (tmp_path / "b").mkdir()
    other = noise(24, 30, 3)[::-1]
    Image.fromarray(other).save(tmp_path / "b" / "s_2.png")
    Image.fromarray(other[:20]).save(tmp_path / "b" / "s_10.png")
    windows = open_windows([path, tmp_path / "b"], size=10, step=7)
    parts = [all_patches(array, 10, 7) for array in (pixels, other, other[:20])]
    np.testing.assert_array_equal(windows.read(0, len(windows)), np.concatenate(parts))
    at = windows.positions()
    assert np.bincount(at[:, 0]).tolist() == [len(part) for part in parts]
    for row in (0, 20, len(windows) - 1):
        raster, top, left = at[row]
        np.testing.assert_array_equal(
            windows.read(row, row + 1)[0], (pixels, other, other[:20])[raster][top : top + 10, left : left + 10]
        )
    assert Path(windows.rasters[2].name).name == "s_10.png"
    assert Path(windows.rasters[2].name) != Path(windows.rasters[2].name).name


def test_ids_tell_raster_and_place(scene: tuple[Path, NDArray]) -> None:
    windows = open_windows(scene[0], size=20, step=10)
    ids = [name for piece in windows.ids() for name in piece.tolist()]
    assert len(ids) == len(windows) == len(set(ids)) == 5 * 7
    assert ids[9] == "scene.tif[20x20+20+10]"
    assert windows.positions(np.array([9])).tolist() == [[0, 10, 20]]


def test_coordinates_are_those_of_the_middle(scene: tuple[Path, NDArray], tmp_path: Path) -> None:
    windows = open_windows(scene[0], size=20, step=10)
    np.testing.assert_allclose(windows.coordinates(slice(9, 10)), [[100 + 0.5 * 30, 50 - 0.25 * 20]])
    meters = Affine(10, 0, 500_000 - 80, 0, -10, 80)  # 16 pixels of 10 m: their middle is 3° E on the equator
    utm = open_windows(write_tiff(tmp_path / "utm.tif", noise(1, 16, 16), crs=UTM, transform=meters), size=16)
    np.testing.assert_allclose(utm.coordinates(), [[3, 0]], atol=1e-9)
    raw = open_windows(write_tiff(tmp_path / "raw.tif", noise(1, 16, 16), transform=meters), size=16)
    np.testing.assert_allclose(raw.coordinates(), [[500_000, 0]])
    Image.fromarray(noise(16, 32)).save(tmp_path / "plain.png")
    assert np.isnan(open_windows(tmp_path / "plain.png", size=16).coordinates()).all()
    world = open_windows(tmp_path / "plain.png", size=16, bounds=(-180, -90, 180, 90))
    np.testing.assert_allclose(world.coordinates(), [[-90, 0], [90, 0]])


def test_columns_are_positions_and_coordinates(scene: tuple[Path, NDArray], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("hkm_dask.embedding.raster_patches.ID_PIECE_ROWS", 7)

    def columns(windows: Windows) -> dict[str, NDArray]:
        return {name: np.concatenate(list(pieces())) for name, pieces in windows.columns.items()}

    windows = open_windows(scene[0], size=8)
    found = columns(windows)
    assert list(found) == ["raster", "top", "left", "longitude", "latitude"]
    np.testing.assert_array_equal(np.stack([found[name] for name in ("raster", "top", "left")], 1), windows.positions())
    np.testing.assert_array_equal(np.stack([found["longitude"], found["latitude"]], 1), windows.coordinates())
    Image.fromarray(noise(16, 32)).save(tmp_path / "plain.png")
    assert list(columns(open_windows(tmp_path / "plain.png", size=16))) == ["raster", "top", "left"]
    raw = write_tiff(tmp_path / "raw.tif", noise(1, 16, 16))  # coordinates of which nobody says what they are
    assert columns(open_windows(raw, size=16))["x"].tolist() == [100 + 0.5 * 8]
    mixed = columns(open_windows([scene[0], raw, tmp_path / "plain.png"], size=16))
    assert "x" not in mixed
    assert mixed["longitude"][0] == 100 + 0.5 * 8
    assert np.isnan(mixed["longitude"]).tolist() == (mixed["raster"] > 0).tolist()


def test_jpeg_and_png_of_every_kind(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(noise(4, 6, 3)).resize((48, 32), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / "color.jpg", quality=95, subsampling=0)
    Image.fromarray(smooth[:, :, 0]).save(tmp_path / "gray.png")
    Image.fromarray(smooth).quantize(16).save(tmp_path / "palette.png")
    with_gaps = np.dstack([smooth, np.where(np.arange(48) < 20, 0, 255) * np.ones((32, 1))]).astype(np.uint8)
    Image.fromarray(with_gaps).save(tmp_path / "gaps.png")
    for path in sorted(tmp_path.iterdir()):
        wanted = np.array(Image.open(path).convert("RGB")).astype(int)
        if path.stem == "gaps":
            wanted[:, :20] = 0
        found = np.array(open_windows(path, size=16, step=8).read(0, 15)).astype(int)
        # Each decoder of JPEG rounds in its way, and smooths subsampled color in its own; PNG has nothing to round.
        assert np.abs(found - all_patches(wanted, 16, 8)).max() <= (2 if path.suffix == ".jpg" else 0), path.name


def test_other_types_are_scaled_as_asked(tmp_path: Path) -> None:
    values = np.array([[[0, 100, 200, 300, 1100, 5000]]], np.uint16).repeat(6, axis=1)
    path = write_tiff(tmp_path / "wide.tif", values)
    with pytest.raises(InputError, match=r"dtype=uint16 should be uint8; give value_range"):
        open_windows(path, size=6)
    (patch,) = open_windows(path, size=6, value_range=(100, 1120)).read(0, 1)
    assert patch[0].tolist() == [[gray] * 3 for gray in (0, 0, 25, 50, 250, 255)]
    holes = np.where(values > 1000, np.nan, values / 300).astype(np.float32)
    (patch,) = open_windows(write_tiff(tmp_path / "holes.tif", holes), size=6, value_range=(0, 1)).read(0, 1)
    assert patch[5, :, 1].tolist() == [0, 85, 170, 255, 0, 0]


def test_bands_are_chosen(tmp_path: Path) -> None:
    values = noise(5, 8, 8)
    path = write_tiff(tmp_path / "five.tif", values)
    np.testing.assert_array_equal(open_windows(path, size=8).read(0, 1)[0], values[:3].transpose(1, 2, 0))
    np.testing.assert_array_equal(
        open_windows(path, size=8, bands=(5, 1, 1)).read(0, 1)[0], values[[4, 0, 0]].transpose(1, 2, 0)
    )
    np.testing.assert_array_equal(open_windows(path, size=8, bands=[4]).read(0, 1)[0][:, :, 2], values[3])


@pytest.mark.parametrize("max_missing", [0.0, 0.3, 0.99, 1.0])
def test_patches_that_miss_too_much_are_left_out(tmp_path: Path, max_missing: float) -> None:
    values = noise(1, 50, 70) | 1
    values[0, np.add.outer(np.arange(50), np.arange(70)) < 60] = 0  # a corner beyond the swath
    windows = open_windows(
        write_tiff(tmp_path / "swath.tif", values, nodata=0), size=12, step=5, max_missing=max_missing
    )
    missing = np.array([(patch == 0).mean() for patch in all_patches(values[0], 12, 5)])
    everything = open_windows(tmp_path / "swath.tif", size=12, step=5)
    kept = np.flatnonzero(missing <= max_missing)
    assert len(windows) == len(kept) > 0
    np.testing.assert_array_equal(windows.positions(), everything.positions()[kept])
    np.testing.assert_array_equal(
        windows.read(3, len(kept) - 1), np.array(everything.read(0, len(everything)))[kept[3:-1]]
    )
    assert windows.fingerprint != everything.fingerprint or max_missing == 1


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "empty.tif", np.zeros((1, 20, 20), np.uint8), nodata=0)
    with pytest.raises(InputError, match=r"max_missing=0.5 should leave some patches"):
        open_windows(path, size=10, max_missing=0.5)


def test_threads_may_read_at_once(scene: tuple[Path, NDArray]) -> None:
    path, pixels = scene
    windows, wanted = open_windows(path, size=9, step=3), all_patches(pixels, 9, 3)
    starts = np.random.default_rng(1).permutation(len(wanted) - 6).tolist()
    with ThreadPoolExecutor(8) as threads:
        for start, found in zip(starts, threads.map(lambda start: windows.read(start, start + 6), starts), strict=True):
            np.testing.assert_array_equal(found, wanted[start : start + 6])


def test_the_fingerprint_follows_files_and_settings(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(3, 20, 20))
    same = [open_windows(path, size=5).fingerprint for _ in range(2)]
    others = [
        open_windows(path, size=5, step=4).fingerprint,
        open_windows(path, size=4, step=5).fingerprint,
        open_windows(path, size=5, bands=(3, 2, 1)).fingerprint,
        open_windows(path, size=5, value_range=(0, 128)).fingerprint,
    ]
    os.utime(path, ns=(1, 1))
    others.append(open_windows(path, size=5).fingerprint)
    write_tiff(path, noise(3, 20, 20), transform=Affine(0.5, 0, 101.0, 0, -0.25, 50.0))
    os.utime(path, ns=(1, 1))
    others.append(open_windows(path, size=5).fingerprint)
    assert same[0] == same[1]
    assert len({same[0], *others}) == 7


def test_a_picture_is_the_average(scene: tuple[Path, NDArray], tmp_path: Path) -> None:
    values = noise(3, 64, 96)
    windows = open_windows(write_tiff(tmp_path / "a.tif", values), size=8)
    wanted = values.reshape(3, 16, 4, 24, 4).mean(axis=(2, 4)).transpose(1, 2, 0)
    np.testing.assert_allclose(windows.picture(width=24), wanted, atol=0.51)
    assert windows.picture(width=1000).shape == (64, 96, 3)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"size": 0}, "size=0 should be at least 1"),
        ({"step": -1}, "step=-1 should be at least 1"),
        ({"bands": (1, 2)}, "bands=(1, 2) should be one or three numbers from 1"),
        ({"bands": (1, 2, 4)}, "bands=(1, 2, 4) should be among the 3 of"),
        ({"value_range": (5, 5)}, "value_range=(5, 5) should increase"),
        ({"bounds": (3, 0, 1, 1)}, "bounds=(3, 0, 1, 1) should be west, south, east, north"),
        ({"max_missing": 1.5}, "max_missing=1.5 should be between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(scene: tuple[Path, NDArray], settings: dict, line: str) -> None:
    with pytest.raises(InputError) as caught:
        open_windows(scene[0], **({"size": 8} | settings))
    assert line in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_raster_cut_short_is_an_error(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "cut.tif", noise(3, 200, 200), compress="none")
    windows = open_windows(path, size=50)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(StoreError, match=r"cut\.tif cannot be read"):
        windows.read(0, len(windows))


# Virtual memory is capped at one gigabyte above what the imports took; the raster has seven and a half.
LARGE = """
import resource, sys
import numpy as np, psutil, rasterio
from rasterio.windows import Window
from hkm_dask.embedding.raster_patches import Windows, open_windows
path, side = sys.argv[1], 50_000
tiles = dict(tiled=True, blockxsize=512, blockysize=512, sparse_ok=True, bigtiff="yes")
shape = dict(driver="GTiff", count=3, height=side, width=side, dtype="uint8")
with rasterio.open(path, "w", **shape, **tiles) as raster:
    raster.write(np.full((3, 512, 512), 7, np.uint8), window=Window(48 * 512, 48 * 512, 512, 512))
limit = psutil.Process().memory_info().vms + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
windows = open_windows(path, size=256)
across = side // 256
total = 0
for row in (0, 96, 97, across - 1):
    for first in range(row * across, (row + 1) * across, 64):
        total += sum(int(patch.sum()) for patch in windows.read(first, min(first + 64, (row + 1) * across)))
print(len(windows), total)
"""


def test_a_raster_may_be_larger_than_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LARGE, str(tmp_path / "large.tif")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == [195**2, 7 * 3 * 512**2]
