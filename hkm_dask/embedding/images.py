"""Images to be embedded: a folder of files, with its subfolders, or a `.zip` of them."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple, overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hkm_dask.data.ids import ID_PIECE_ROWS, NO_COLUMNS, check_unicode
from hkm_dask.data.layout import MIB
from hkm_dask.errors import InputError, first_few
from hkm_dask.events import emit
from hkm_dask.untrusted import open_regular, read_regular, reading

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
STAGE = "check"
#: Pixels of an image, told by its header before any is decoded: from here on Pillow warns of an attack.
MAX_PIXELS = 89_478_485
#: Scans of a progressive JPEG of so many pixels; in each all of them may be visited. Most have ten.
MAX_SCANS = 20
_JPEG_SCAN = b"\xff\xda"
#: Bytes of images that are read at once; of photographs, a few.
READ_BYTES = 256 * MIB
#: Bytes of an image file, as many as so many pixels take with 6 bytes each.
MAX_FILE_BYTES = 512 * MIB
#: Methods of a .zip that are bounded by the size it tells.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: Thumbnails that are kept, of some 10 kB each.
_KEPT_THUMBNAILS = 4096


class Files(NamedTuple):
    """Image files of a folder or an archive."""

    states: list[tuple[str, str]]  # path of every file from the root, with slashes, and what shows that it was changed
    read: Callable[[str], bytes]  # reads the file of a path; several threads may call it at once


def _folder_files(root: Path) -> Files:
    """Files in a folder and its subfolders; hidden ones do not count, links to folders are not followed."""
    states = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                state = path.stat()
                states.append((path.relative_to(root).as_posix(), f"{state.st_size},{state.st_mtime_ns}"))
    return Files(states, lambda name: read_regular(root / name, MAX_FILE_BYTES))


def _zip_files(path: Path) -> Files:
    """Files in a ``.zip``; hidden ones do not count."""
    with reading(f"folder={path} should be a folder or a .zip file, it cannot be read", "copy it again"):
        open_regular(path).close()
        archive = zipfile.ZipFile(path)
    states = []
    for info in archive.infolist():
        hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(info.filename).parts)
        if not info.is_dir() and not hidden:
            states.append((info.filename, f"{info.file_size},{info.CRC}"))
    return Files(states, lambda name: read_zipped(archive, name))


def read_zipped(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a file of an archive; ValueError where it is too large or packed in another way, KeyError if missing."""
    info = archive.getinfo(name)
    if info.file_size > MAX_FILE_BYTES:
        raise ValueError(f"it has {info.file_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    if info.compress_type not in _ZIP_METHODS:
        raise ValueError("it is packed, but not by deflate")
    return archive.read(info)


class Images:
    """Images of a folder or an archive, in the order of their paths; a source for `hkm_dask.embedding.embed.embed`.

    Their paths from the root, `names`, are the ids. The fingerprint is of the paths, and of size and time of each file
    (in an archive: size and checksum).
    """

    columns = NO_COLUMNS

    def __init__(self, files: Files, names: Sequence[str], name: str) -> None:
        self._files, self.names, self.name = files, list(names), name
        states = dict(files.states)
        lines = "\n".join(f"{name},{states[name]}" for name in self.names)
        self.fingerprint = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def __len__(self) -> int:
        """Tell how many images there are."""
        return len(self.names)

    def ids(self) -> Iterator[np.ndarray]:
        """Yield the paths of all images, in pieces."""
        for start in range(0, len(self), ID_PIECE_ROWS):
            yield np.array(self.names[start : start + ID_PIECE_ROWS], dtype=object)

    def read(self, first: int, last: int) -> Sequence[np.ndarray]:
        """Read the images from `first` up to `last`, each uint8 of shape (height, width, 3): red, green and blue.

        Upright as the camera noted; the first frame of what moves. An `InputError` names one that cannot be read.
        Those beyond `READ_BYTES` are read when they are asked for, each time, so that a few are in memory together.
        """
        names, images, n_bytes = self.names[first:last], list[np.ndarray](), 0
        while len(images) < len(names) and n_bytes < READ_BYTES:
            images.append(self._read(names[len(images)]))
            n_bytes += images[-1].nbytes
        later = names[len(images) :]
        return _Images(self._read, images, later) if later else images

    def _read(self, name: str) -> np.ndarray:
        problem = f"{self.name}: image={name} should be readable, it is not"
        with reading(problem, "fix it, or leave out all such images with skip_unreadable (--skip-unreadable)"):
            return decode(self._files.read(name))

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Read images by their row numbers, in any order; see `read`."""
        return [self.read(int(row), int(row) + 1)[0] for row in rows]


class _Images(Sequence[np.ndarray]):
    """Images in memory, and after them some that are read when they are asked for."""

    def __init__(self, read: Callable[[str], np.ndarray], images: Sequence[np.ndarray], later: Sequence[str]) -> None:
        self._read, self._images, self._later = read, images, later

    def __len__(self) -> int:
        return len(self._images) + len(self._later)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        here = len(self._images)
        if isinstance(index, slice):
            numbers = range(len(self))[index]
            if numbers.step < 0:
                return [self[number] for number in numbers]
            images = [self._images[number] for number in numbers if number < here]
            return _Images(self._read, images, [self._later[number - here] for number in numbers if number >= here])
        number = range(len(self))[index]
        return self._images[number] if number < here else self._read(self._later[number - here])


def decode(data: bytes, at_least: int | None = None) -> np.ndarray:
    """Decode an image file into red, green and blue, uint8 of shape (height, width, 3).

    A JPEG that is to be scaled down to `at_least` pixels a side may be decoded to fewer than it has, which is faster.
    `ValueError` where it is no image, its values have no range that is known, or its header tells of more than
    `MAX_PIXELS`; where it is cut short, whatever Pillow raises.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (4, 3), "red").save(file, "PNG")
    >>> decode(file.getvalue()).shape
    (3, 4, 3)
    """
    try:
        opened = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        raise ValueError("it is no image of a known kind") from None  # Pillow names the memory it lies in
    with opened as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"it has {width} × {height} pixels, more than {MAX_PIXELS:,}; scale it down")
        n_scans = data.count(_JPEG_SCAN) if image.format in ("JPEG", "MPO") else 1
        if n_scans * width * height > MAX_SCANS * MAX_PIXELS:
            raise ValueError(f"it has {n_scans} scans of {width} × {height} pixels; save it again")
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F"):
            raise ValueError(f"its mode is {upright.mode}, whose range is not known")
        if upright.mode.startswith("I;16"):
            # Pillow itself would cut off all that is brighter than 255 of 65535.
            gray = (np.asarray(upright) >> 8).astype(np.uint8)
            return np.repeat(gray[:, :, None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


@functools.cache
def _formats() -> list[str]:
    """Formats that Pillow decodes itself, whatever a file is called: for EPS it would run Ghostscript."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def open_images(path: str | os.PathLike[str], *, skip_unreadable: bool = False, threads: int | None = None) -> Images:
    """Open images to be embedded, sorted by path.

    They lie in a folder or its subfolders, or in a ``.zip``: ``.jpg``, ``.png``, ``.webp``, ``.bmp``, ``.gif``,
    ``.tif``, ``.ppm``. Other files are left out, and counted in a warning. With `skip_unreadable` images that cannot be
    read are left out, instead of being refused when they are met: every image is then decoded once beforehand, by one
    thread per core or `threads`. InputError when there are no images.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "b").mkdir()
    ...     for name in ("b/2.png", "a.png"):
    ...         Image.new("RGB", (4, 3)).save(Path(folder, name))
    ...     open_images(folder).names
    ['a.png', 'b/2.png']
    """
    root = Path(path).absolute()
    if not root.exists():
        raise InputError(f"folder={root} does not exist; check the path")
    files = _folder_files(root) if root.is_dir() else _zip_files(root)
    names, left_out = [], Counter[str]()
    for name, _ in files.states:
        if name.lower().endswith(SUFFIXES):
            names.append(name)
        else:
            left_out[PurePosixPath(name).suffix or PurePosixPath(name).name] += 1
    if not names:
        raise InputError(f"folder={root} has no images ({', '.join(SUFFIXES)}); check the path")
    if left_out:
        kinds = first_few([kind for kind, _ in left_out.most_common()])
        emit("warning", message=f"{left_out.total():,} files that are no images by their name ({kinds}) were left out")
    check_unicode(names, f"folder={root}")  # before they are ids
    images = Images(files, sorted(names), str(root))
    return _readable(images, files, threads) if skip_unreadable else images


def _readable(images: Images, files: Files, threads: int | None) -> Images:
    """Decode all images, and keep those for which it works."""

    def works(name: str) -> bool:
        try:
            decode(files.read(name))
        except Exception:  # Pillow does not say what it raises on bytes that nobody wrote
            return False
        return True

    kept: list[str] = []
    step = 256
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as executor:
        for start in range(0, len(images), step):
            part = images.names[start : start + step]
            kept += [name for name, good in zip(part, executor.map(works, part), strict=True) if good]
            emit("progress", stage=STAGE, done=min(start + step, len(images)), total=len(images))
    lost = len(images) - len(kept)
    if not kept:
        raise InputError(f"{images.name}: n_readable=0 should be at least 1; none of {lost} images can be read")
    if lost:
        unreadable = sorted(set(images.names) - set(kept))
        emit("warning", message=f"{lost} images that cannot be read were left out: {first_few(unreadable)}")
    return Images(files, kept, images.name)


class ImageFiles:
    """Image files by their names, relative to a folder or as they are in a ``.zip``: only those inside, within limits.

    InputError where `path` is neither.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._archive: zipfile.ZipFile | None = None
        if not self.path.is_dir():
            with reading(f"images={path} should be a folder or a .zip file, it cannot be read", "check the path"):
                open_regular(self.path).close()
                self._archive = zipfile.ZipFile(self.path)
        self._root = self.path.resolve()
        self.jpeg = lru_cache(maxsize=_KEPT_THUMBNAILS)(self._jpeg)

    def _jpeg(self, name: str, size: int) -> bytes:
        """Make a JPEG of at most `size` pixels a side; InputError where there is no such image inside."""
        with reading(f"image={name[:200]!r} should be an image in {self.path}", "fix it, or leave it out"):
            pixels = decode(self.read(name), at_least=size)
        image, file = Image.fromarray(pixels), io.BytesIO()
        image.thumbnail((size, size))
        image.save(file, "JPEG", quality=85)
        return file.getvalue()

    def read(self, name: str) -> bytes:
        """Read a file; ValueError or whatever reading raises where there is no such file inside."""
        if self._archive is not None:
            return read_zipped(self._archive, name)
        target = (self._root / name).resolve()  # an absolute name replaces the folder
        if not target.is_relative_to(self._root):
            raise ValueError("its name, or a link, leads out of the folder")
        return read_regular(target, MAX_FILE_BYTES)
