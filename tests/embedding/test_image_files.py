"""Thumbnails of images in a folder or an archive, and of none outside it."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hkm_dask.embedding.images import ImageFiles
from hkm_dask.errors import InputError


def png(color: str, size: tuple[int, int] = (300, 200)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "red.png").write_bytes(png("red"))
    (tmp_path / "images" / "blue.png").write_bytes(png("blue"))
    (tmp_path / "images" / "cut.png").write_bytes(png("blue")[:100])
    (tmp_path / "secret.png").write_bytes(png("green"))
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "images" / "a" / "red.png", "a/red.png")
    return tmp_path


@pytest.mark.parametrize("kind", ["images", "images.zip"])
def test_thumbnails_are_small_and_of_the_right_image(folder: Path, kind: str) -> None:
    image = Image.open(io.BytesIO(ImageFiles(folder / kind).jpeg("a/red.png", 96)))
    assert (image.format, image.size) == ("JPEG", (96, 64))
    assert np.abs(np.asarray(image)[30, 30].astype(int) - [255, 0, 0]).max() < 5


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "link.png", "", "a", "none.png", "cut.png", "a\0b", "/etc/passwd"]
)
def test_what_is_no_image_inside_is_refused(folder: Path, name: str) -> None:
    name = str(folder / "secret.png") if name.startswith("/") else name
    with pytest.raises(InputError, match="should be an image in"):
        ImageFiles(folder / "images").jpeg(name, 96)
