"""Images to be embedded: the files in a folder and its subfolders, or in a `.zip`."""

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
#: Most pixels per image, checked in the header before decoding: from here on Pillow warns of a decompression bomb.
MAX_PIXELS = 89_478_485
#: Most scans of a progressive JPEG of `MAX_PIXELS`, since each may visit all pixels. Most files have ten.
MAX_SCANS = 20
_JPEG_SCAN = b"\xff\xda"
#: Bytes of decoded images that are read at once; a few photographs.
READ_BYTES = 256 * MIB
#: Most bytes of an image file: `MAX_PIXELS` at 6 bytes each.
MAX_FILE_BYTES = 512 * MIB
#: Compression methods of a .zip whose output is bounded by the declared size.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: Cached thumbnails, of about 10 kB each.
_KEPT_THUMBNAILS = 4096


class Files(NamedTuple):
    """Image files of a folder or an archive."""

    states: list[tuple[str, str]]  # path of every file from the root, with slashes, and a stamp that reveals changes
    read: Callable[[str], bytes]  # reads the file with a path; thread-safe


def _folder_files(root: Path) -> Files:
    """List the files in a folder and its subfolders, without hidden ones; links to folders are not followed."""
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
    """List the files in a ``.zip``, without hidden ones."""
    with reading(f"folder={path} should be a folder or a .zip file, but cannot be read", "copy it again"):
        open_regular(path).close()
        archive = zipfile.ZipFile(path)
    states = []
    for info in archive.infolist():
        hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(info.filename).parts)
        if not info.is_dir() and not hidden:
            states.append((info.filename, f"{info.file_size},{info.CRC}"))
    return Files(states, lambda name: read_zipped(archive, name))


def read_zipped(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a file of an archive; ValueError if it is too large or its compression unsupported, KeyError if missing."""
    info = archive.getinfo(name)
    if info.file_size > MAX_FILE_BYTES:
        raise ValueError(f"it has {info.file_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    if info.compress_type not in _ZIP_METHODS:
        raise ValueError("it is compressed with a method other than deflate")
    return archive.read(info)


class Images:
    """Images of a folder or an archive, sorted by path; a source for `hkm_dask.embedding.embed.embed`.

    The ids are `names`, their paths from the root. The fingerprint covers the paths and the size and time of each file
    (in an archive, size and checksum).
    """

    columns = NO_COLUMNS

    def __init__(self, files: Files, names: Sequence[str], name: str) -> None:
        self._files, self.names, self.name = files, list(names), name
        states = dict(files.states)
        lines = "\n".join(f"{name},{states[name]}" for name in self.names)
        self.fingerprint = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def ids(self) -> Iterator[np.ndarray]:
        """Yield the paths of all images, in pieces."""
        for start in range(0, len(self), ID_PIECE_ROWS):
            yield np.array(self.names[start : start + ID_PIECE_ROWS], dtype=object)

    def read(self, first: int, last: int) -> Sequence[np.ndarray]:
        """Read the images `first` to `last` (exclusive), each as RGB, uint8 of shape (height, width, 3).

        Images are rotated according to their EXIF data; of animations, the first frame is read. Raises InputError for
        an unreadable image. Images beyond `READ_BYTES` are read when accessed, each time, so that few are in memory.
        """
        names, images, n_bytes = self.names[first:last], list[np.ndarray](), 0
        while len(images) < len(names) and n_bytes < READ_BYTES:
            images.append(self._read(names[len(images)]))
            n_bytes += images[-1].nbytes
        later = names[len(images) :]
        return _Images(self._read, images, later) if later else images

    def _read(self, name: str) -> np.ndarray:
        problem = f"{self.name}: image={name} should be readable, but is not"
        with reading(problem, "fix it, or leave out all such images with skip_unreadable (--skip-unreadable)"):
            return decode(self._files.read(name))

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Read images by row number, in any order; see `read`."""
        return [self.read(int(row), int(row) + 1)[0] for row in rows]


class _Images(Sequence[np.ndarray]):
    """Images in memory, followed by images that are read when accessed."""

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
    """Decode an image file as RGB, uint8 of shape (height, width, 3).

    With `at_least`, a JPEG may be decoded at a lower resolution, at least that many pixels per side, which is faster.
    Raises ValueError if the data is not an image, its value range is unknown, or its header gives more than
    `MAX_PIXELS`; for truncated data, whatever Pillow raises.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (4, 3), "red").save(file, "PNG")
    >>> decode(file.getvalue()).shape
    (3, 4, 3)
    """
    try:
        opened = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        raise ValueError("it is not an image of a supported format") from None  # Pillow's message has a memory address
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
            # Pillow would clip values above 255 of 65535.
            gray = (np.asarray(upright) >> 8).astype(np.uint8)
            return np.repeat(gray[:, :, None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


@functools.cache
def _formats() -> list[str]:
    """List the formats that Pillow decodes itself, independent of file names; for EPS it would run Ghostscript."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def open_images(path: str | os.PathLike[str], *, skip_unreadable: bool = False, threads: int | None = None) -> Images:
    """Open images to be embedded, sorted by path.

    They are in a folder or its subfolders, or in a ``.zip``: ``.jpg``, ``.png``, ``.webp``, ``.bmp``, ``.gif``,
    ``.tif``, ``.ppm``. Other files are ignored and counted in a warning. With `skip_unreadable`, unreadable images are
    left out instead of raising an error later: every image is decoded once in advance, by one thread per core or by
    `threads`. Raises InputError if there are no images.

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
        emit("warning", message=f"{left_out.total():,} files without an image suffix ({kinds}) were left out")
    check_unicode(names, f"folder={root}")  # before they become ids
    images = Images(files, sorted(names), str(root))
    return _readable(images, files, threads) if skip_unreadable else images


def _readable(images: Images, files: Files, threads: int | None) -> Images:
    """Decode all images and keep those that can be decoded."""

    def works(name: str) -> bool:
        try:
            decode(files.read(name))
        except Exception:  # Pillow does not document what it raises for arbitrary bytes
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
        emit("warning", message=f"{lost} images that cannot be read were skipped: {first_few(unreadable)}")
    return Images(files, kept, images.name)


class ImageFiles:
    """Read access to image files by name, in a folder or a ``.zip``: only those inside it, within size limits.

    Raises InputError if `path` is neither.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._archive: zipfile.ZipFile | None = None
        if not self.path.is_dir():
            with reading(f"images={path} should be a folder or a .zip file, but cannot be read", "check the path"):
                open_regular(self.path).close()
                self._archive = zipfile.ZipFile(self.path)
        self._root = self.path.resolve()
        self.jpeg = lru_cache(maxsize=_KEPT_THUMBNAILS)(self._jpeg)

    def _jpeg(self, name: str, size: int) -> bytes:
        """Make a JPEG of at most `size` pixels per side; raises InputError if there is no such image inside."""
        with reading(f"image={name[:200]!r} should be an image in {self.path}", "fix it, or leave it out"):
            pixels = decode(self.read(name), at_least=size)
        image, file = Image.fromarray(pixels), io.BytesIO()
        image.thumbnail((size, size))
        image.save(file, "JPEG", quality=85)
        return file.getvalue()

    def read(self, name: str) -> bytes:
        """Read a file; raises ValueError, or whatever reading raises, if there is no such file inside."""
        if self._archive is not None:
            return read_zipped(self._archive, name)
        target = (self._root / name).resolve()  # an absolute name replaces the folder
        if not target.is_relative_to(self._root):
            raise ValueError("its name, or a link, points outside the folder")
        return read_regular(target, MAX_FILE_BYTES)
