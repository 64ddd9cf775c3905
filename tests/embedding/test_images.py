"""Images are RGB in the order of their paths, from a folder or a .zip; unreadable ones are named."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hkm_dask.embedding.descriptors import Hog
from hkm_dask.embedding.images import Images, decode, open_images
from hkm_dask.errors import InputError
from hkm_dask.events import subscribe


def picture(seed: int, size: tuple[int, int] = (9, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def bytes_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def all_ids(images: Images) -> list[str]:
    return [name for piece in images.ids() for name in piece.tolist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images at three depths, and what is none."""
    root = tmp_path / "photos"
    for number, name in enumerate(["b/2.png", "b/10.png", "a.png", "c/d/é ü.png", "B.PNG", "b.bmp"]):
        save(root / name, picture(number))
    (root / "notes.txt").write_text("no image")
    (root / "LICENSE").write_text("no image")
    for hidden in (".hidden.png", ".cache/1.png"):
        save(root / hidden, picture(0))
    return root


ORDER = ["B.PNG", "a.png", "b.bmp", "b/10.png", "b/2.png", "c/d/é ü.png"]


def pack(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(folder))
        archive.writestr("__MACOSX/a.png", b"no image")
    return target


def test_images_are_sorted_by_path_whatever_their_depth(folder: Path) -> None:
    told: list[str] = []
    with subscribe(lambda event: told.append(str(event.fields.get("message")))):
        images = open_images(folder)
    assert (images.names, all_ids(images), len(images)) == (ORDER, ORDER, 6)
    seeds = [4, 2, 5, 1, 0, 3]
    for found, seed in zip(images.read(0, 6), seeds, strict=True):
        np.testing.assert_array_equal(found, picture(seed))
    np.testing.assert_array_equal(images.take(np.array([4, 0]))[0], picture(0))
    assert told == ["2 files without an image suffix (.txt, LICENSE) were left out"] or told == [
        "2 files without an image suffix (LICENSE, .txt) were left out"
    ]


def test_a_zip_is_as_good_as_its_folder(folder: Path, tmp_path: Path) -> None:
    images, packed = open_images(folder), open_images(pack(folder, tmp_path / "photos.zip"))
    assert packed.names == images.names
    for ours, theirs in zip(images.read(1, 6), packed.read(1, 6), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_real_images_in_a_zip(real_data: Callable[[str], Path]) -> None:
    images = open_images(real_data("cifar10_10k.zip"))
    assert len(images) == 10_000
    assert images.names[0] == "airplane/0000.jpg"
    assert {image.shape for image in images.read(9_990, 10_000)} == {(32, 32, 3)}


RED = Image.new("RGB", (4, 2), (255, 0, 0))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes_of(Image.new("L", (4, 2), 9)), (2, 4, 9, 9, 9)),
        (bytes_of(Image.new("1", (4, 2), 1)), (2, 4, 255, 255, 255)),
        (bytes_of(Image.new("LA", (4, 2), (9, 50))), (2, 4, 9, 9, 9)),
        (bytes_of(Image.new("RGBA", (4, 2), (1, 2, 3, 99))), (2, 4, 1, 2, 3)),
        (bytes_of(RED.quantize(2)), (2, 4, 255, 0, 0)),
        (bytes_of(Image.new("CMYK", (4, 2), (0, 255, 255, 0)), "TIFF"), (2, 4, 255, 0, 0)),
        (bytes_of(Image.fromarray(np.full((2, 4), 0x8000, np.uint16))), (2, 4, 128, 128, 128)),
        (bytes_of(RED, "WEBP", lossless=True), (2, 4, 255, 0, 0)),
        (bytes_of(RED, "TIFF", exif=exif(6)), (4, 2, 255, 0, 0)),
        (bytes_of(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 2), "blue")]), (2, 4, 255, 0, 0)),
    ],
    ids=["gray", "black-white", "gray-alpha", "alpha", "palette", "cmyk", "gray-16", "webp", "upright", "moving"],
)
def test_whatever_the_mode_the_image_is_rgb(data: bytes, expected: tuple[int, ...]) -> None:
    found = decode(data)
    assert found.dtype == np.uint8
    assert (*found.shape[:2], *found[0, 0].tolist()) == expected
    assert found.flags.c_contiguous


def test_a_camera_held_upright_gives_an_upright_image() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255  # top left as stored; orientation 6 says that it belongs to the top right
    found = decode(bytes_of(Image.fromarray(pixels), "PNG", exif=exif(6)))
    assert found.shape == (3, 2, 3)
    assert found[0, 1].tolist() == [255, 255, 255]


def spoil(folder: Path) -> list[str]:
    good = bytes_of(Image.fromarray(picture(7, (40, 40))), "JPEG")
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "float.tif").write_bytes(bytes_of(Image.fromarray(np.zeros((3, 3), np.float32)), "TIFF"))
    (folder / "text.jpg").write_text("no image at all")
    flipped = bytearray(bytes_of(Image.fromarray(picture(8))))
    flipped[45] ^= 0xFF
    (folder / "flipped.png").write_bytes(flipped)
    return ["cut.jpg", "empty.png", "flipped.png", "float.tif", "text.jpg"]


@pytest.mark.faults
@pytest.mark.parametrize("packed", [False, True])
def test_an_unreadable_image_is_refused_with_its_name_or_left_out(folder: Path, tmp_path: Path, packed: bool) -> None:
    bad = spoil(folder)
    source = pack(folder, tmp_path / "photos.zip") if packed else folder
    images = open_images(source)
    for row, name in enumerate(images.names):
        if name in bad:
            with pytest.raises(InputError, match=rf"image={name} should be readable, but is not \(.+\); fix it, or"):
                images.read(row, row + 1)
        else:
            images.read(row, row + 1)
    told: list[str] = []
    with subscribe(lambda event: told.append(str(event.fields.get("message")))):
        kept = open_images(source, skip_unreadable=True, threads=3)
    assert kept.names == ORDER
    assert f"5 images that cannot be read were skipped: {', '.join(bad)}" in told
    assert kept.fingerprint != images.fingerprint
    assert len(kept.read(0, 6)) == 6


@pytest.mark.faults
def test_a_member_of_a_zip_that_was_altered_is_named(folder: Path, tmp_path: Path) -> None:
    source = pack(folder, tmp_path / "photos.zip")
    with zipfile.ZipFile(source) as archive:
        at = archive.getinfo("a.png").header_offset + 60
    data = bytearray(source.read_bytes())
    data[at] ^= 0xFF
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"image=a.png should be readable, but is not"):
        open_images(source).read(0, 6)


@pytest.mark.faults
def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; check the path"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"has no images \(.jpg, .*\); check the path"):
        open_images(tmp_path)
    with pytest.raises(InputError, match=r"notes.txt should be a folder or a .zip file, but cannot be read"):
        open_images(tmp_path / "notes.txt")
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(InputError, match="n_readable=0 should be at least 1; none of 1 images can be read"):
        open_images(tmp_path, skip_unreadable=True)


def test_the_fingerprint_tells_a_change_of_any_file(folder: Path, tmp_path: Path) -> None:
    first = open_images(folder).fingerprint
    assert open_images(folder).fingerprint == first
    (folder / "notes.txt").write_text("still no image")
    assert open_images(folder).fingerprint == first
    packed = open_images(pack(folder, tmp_path / "1.zip")).fingerprint
    save(folder / "a.png", picture(99))
    changed = open_images(folder).fingerprint
    (folder / "a.png").rename(folder / "aa.png")
    assert len({first, changed, open_images(folder).fingerprint, packed}) == 4
    assert open_images(pack(folder, tmp_path / "2.zip")).fingerprint != packed


@pytest.mark.faults
def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", picture(0))
    monkeypatch.setattr("hkm_dask.embedding.images.MAX_PIXELS", 62)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(
        InputError, match=r"image=a.png should be readable, but is not \(it has 7 × 9 pixels, more than 62; "
    ):
        open_images(tmp_path).read(0, 1)


@pytest.mark.faults
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_measured_before_they_are_read(tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkm_dask.embedding.images.MAX_FILE_BYTES", 100)
    save(tmp_path / "a.png", picture(0))
    root = pack(tmp_path, tmp_path / "a.zip") if packed else tmp_path
    with pytest.raises(
        InputError, match=r"image=a.png should be readable, but is not \(it has \d+ bytes, more than 100\)"
    ):
        open_images(root).read(0, 1)
    with pytest.raises(InputError, match="none of 1 images can be read"):
        open_images(root, skip_unreadable=True)


@pytest.mark.faults
def test_members_of_a_zip_without_a_bound_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.png", bytes_of(Image.fromarray(picture(0))))
    with pytest.raises(InputError, match="it is compressed with a method other than deflate"):
        open_images(tmp_path / "a.zip").read(0, 1)


def test_nothing_is_run_to_decode_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes_of(Image.fromarray(picture(0)), "EPS"))
    with pytest.raises(InputError, match="it is not an image of a supported format"):
        open_images(tmp_path).read(0, 1)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(0))
    (tmp_path / "a.png").rename(tmp_path / "b\udcff.png")
    with pytest.raises(InputError, match=r"'b.udcff.png' should be valid Unicode; fix it"):
        open_images(tmp_path)


@pytest.mark.faults
def test_scans_of_a_jpeg_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes_of(Image.fromarray(picture(0, (64, 64))), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    many = data[:-2] + data[last:-2] * 3000 + data[-2:]
    monkeypatch.setattr("hkm_dask.embedding.images.MAX_PIXELS", 64 * 64)
    assert decode(data).shape == (64, 64, 3)
    with pytest.raises(ValueError, match=r"it has 30\d\d scans of 64 × 64 pixels; save it again"):
        decode(many)


def test_images_that_are_too_many_for_the_memory_are_read_one_by_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(folder)
    whole, wanted = images.read(0, 6), Hog()(images.read(0, 6))
    decoded: list[int] = []
    monkeypatch.setattr("hkm_dask.embedding.images.READ_BYTES", 200)  # of 189 each
    monkeypatch.setattr("hkm_dask.embedding.images.decode", lambda data: decoded.append(len(data)) or decode(data))
    found = images.read(0, 6)
    assert (len(found), len(decoded)) == (6, 2)
    for number in (0, 1, 2, 5, -1):
        np.testing.assert_array_equal(found[number], whole[number])
    assert [image.tolist() for image in found[1:5]] == [image.tolist() for image in whole[1:5]]
    np.testing.assert_array_equal(found[::-1][0], whole[5])
    with pytest.raises(IndexError):
        found[6]
    decoded.clear()
    np.testing.assert_array_equal(Hog()(found), wanted)
    assert len(decoded) == 4
