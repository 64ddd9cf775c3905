"""Raster headers, and files that cannot be opened."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hkm_dask.embedding.raster_patches import open_windows
from hkm_dask.embedding.rasters import color_table, describe_raster, list_rasters, open_raster
from hkm_dask.errors import InputError
from hkm_dask.events import Event, subscribe
from tests.embedding.scenes import ALTAI, UTM, noise, write_tiff


def test_the_header_tells_size_bands_and_place(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(4, 30, 40).astype(np.uint16), crs=UTM, nodata=0)
    raster = describe_raster(path, "a.tif", bands=(4, 2, 1))
    assert (raster.height, raster.width, raster.bands, raster.dtype) == (30, 40, (4, 2, 1), "uint16")
    assert (raster.crs, raster.transform, raster.has_gaps) == (UTM, tuple(ALTAI)[:6], True)
    assert raster.stamp == (path.stat().st_size, path.stat().st_mtime_ns)
    assert describe_raster(path, "a.tif").bands == (1, 2, 3)


def test_bounds_place_a_picture(tmp_path: Path) -> None:
    Image.fromarray(noise(20, 40, 3)).save(tmp_path / "a.png")
    raster = describe_raster(tmp_path / "a.png", "a.png", bounds=(-180, -90, 180, 90))
    corners = raster.coordinates(np.array([0.0, 20.0]), np.array([0.0, 40.0]))
    np.testing.assert_allclose(corners, [[-180, 90], [180, -90]])
    unknown = describe_raster(tmp_path / "a.png", "a.png")
    assert np.isnan(unknown.coordinates(np.zeros(2), np.zeros(2))).all()


def test_folders_are_listed_in_natural_order(tmp_path: Path) -> None:
    for name in ("s_10.tif", "s_2.JPG", "notes.txt", "s_1.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_rasters(tmp_path)] == ["s_1.png", "s_2.JPG", "s_10.tif"]


def test_palettes_are_tables_of_colors(tmp_path: Path) -> None:
    image = Image.fromarray(noise(8, 8) % 3, mode="P")
    image.putpalette([1, 2, 3, 40, 50, 60, 7, 8, 9])
    image.save(tmp_path / "a.png")
    with open_raster(tmp_path / "a.png") as data:
        table = color_table(data, 1)
    assert table is not None
    assert table[:3].tolist() == [[1, 2, 3], [40, 50, 60], [7, 8, 9]]
    Image.fromarray(noise(8, 8)).save(tmp_path / "gray.png")
    with open_raster(tmp_path / "gray.png") as data:
        assert color_table(data, 1) is None


def test_what_is_not_there_is_named(scene: tuple[Path, NDArray], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_windows([tmp_path / "nowhere.tif", tmp_path, scene[0], scene[0]], size=8)
    absent, empty, twice = caught.value.problems
    assert "nowhere.tif does not exist" in absent
    assert "has no files .tif" in empty
    assert "should be given once; leave it out" in twice
    with pytest.raises(InputError, match="rasters="):
        open_windows([], size=8)


def test_a_progressive_jpeg_is_warned_of(tmp_path: Path) -> None:
    events: list[Event] = []
    for progressive in (False, True):
        Image.fromarray(noise(100, 200, 3)).save(tmp_path / "a.jpg", progressive=progressive)
        with subscribe(events.append):
            open_windows(tmp_path / "a.jpg", size=16)
        assert len(events) == progressive
    assert "progressive JPEG" in events[0].fields["message"]
    assert "up to 0 MB" in events[0].fields["message"]  # 200 * 100 * 3 values of 2 bytes


def test_files_without_coordinates_warn_nobody(tmp_path: Path) -> None:
    Image.fromarray(noise(20, 20)).save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_windows(tmp_path / "a.png", size=16).read(0, 1)
    assert not caught


def test_every_problem_is_told_at_once(scene: tuple[Path, NDArray], tmp_path: Path) -> None:
    (tmp_path / "no.tif").write_text("no raster")
    Image.fromarray(noise(5, 50)).save(tmp_path / "thin.png")
    with pytest.raises(InputError) as caught:
        open_windows([scene[0], tmp_path / "no.tif", tmp_path / "thin.png"], size=16, bounds=(0, 0, 1, 1))
    lines = caught.value.problems
    assert len(lines) == 3
    assert "bounds=(0, 0, 1, 1) should be left out" in lines[0]
    assert "no.tif should be GeoTIFF, JPEG or PNG" in lines[1]
    assert "size=16 should be at most 5" in lines[2]


@pytest.mark.faults
def test_blocks_that_are_decoded_at_once_are_measured_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(3, 64, 64))
    describe_raster(path, "a.tif")
    monkeypatch.setattr("hkm_dask.embedding.rasters.MAX_BLOCK_BYTES", 3 * 16 * 32 - 1)
    with pytest.raises(
        InputError, match=r"a.tif: n_block_bytes=1536 should be at most 1535, decoded at once; gdal_tran"
    ):
        describe_raster(path, "a.tif")


@pytest.mark.faults
def test_a_file_is_what_its_suffix_says_and_leads_nowhere(tmp_path: Path) -> None:
    secret = write_tiff(tmp_path / "secret.tif", noise(1, 32, 32))
    text = (
        '<VRTDataset rasterXSize="32" rasterYSize="32"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    for name in ("a.tif", "a.png"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"should be GeoTIFF, JPEG or PNG, but cannot be opened"):
            describe_raster(tmp_path / name, name)
