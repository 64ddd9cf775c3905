"""Images to be embedded: a folder of files, with its subfolders, or a `.zip` of them."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from hkm_dask.data.ids import NO_COLUMNS
from hkm_dask.errors import InputError
from hkm_dask.events import emit

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
STAGE = "check"
_NAMED = 5
_ID_PIECE = 2**16
# What Pillow raises on files that are cut short, altered or no images: it promises no more than OSError.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, MemoryError, zipfile.BadZipFile)


class Files(ABC):
    """Where image files lie.

    Attributes
    ----------
    names : list of str
        Paths of all files from the root, with slashes.
    states : list of str
        What of each file shows that it was changed.
    """

    names: list[str]
    states: list[str]

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read one file; several threads may call it at once."""


class FolderFiles(Files):
    """Files in a folder and its subfolders; hidden ones do not count, links to folders are not followed.

    Parameters
    ----------
    root : Path
        The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names, self.states = [], []
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                if not name.startswith(".") and path.is_file():
                    state = path.stat()
                    self.names.append(path.relative_to(root).as_posix())
                    self.states.append(f"{state.st_size},{state.st_mtime_ns}")

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        return (self.root / name).read_bytes()


class ZipFiles(Files):
    """Files in a ``.zip``; hidden ones do not count.

    Parameters
    ----------
    path : Path
        The archive.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(
                f"folder={path} should be a .zip file, it cannot be read ({error}); copy it again"
            ) from error
        self.names, self.states = [], []
        for info in self._archive.infolist():
            parts = PurePosixPath(info.filename).parts
            if not info.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in parts):
                self.names.append(info.filename)
                self.states.append(f"{info.file_size},{info.CRC}")

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        return self._archive.read(name)


class Images:
    """Images of a folder or an archive, in the order of their paths; a source for `hkm_dask.embedding.embed.embed`.

    Parameters
    ----------
    files : Files
        Where they lie.
    names : sequence of str
        Which of them.
    name : str
        What to call them all.

    Attributes
    ----------
    names : list of str
        Path of every image from the root; the ids.
    fingerprint : str
        Of the paths, and of size and time of each file (in an archive: size and checksum).
    columns : dict
        Empty: nothing else is known of them.
    """

    columns = NO_COLUMNS

    def __init__(self, files: Files, names: Sequence[str], name: str) -> None:
        self._files, self.names, self.name = files, list(names), name
        states = dict(zip(files.names, files.states, strict=True))
        lines = "\n".join(f"{name},{states[name]}" for name in self.names)
        self.fingerprint = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def __len__(self) -> int:
        """Tell how many images there are."""
        return len(self.names)

    def ids(self) -> Iterator[np.ndarray]:
        """Yield the paths of all images, in pieces."""
        for start in range(0, len(self), _ID_PIECE):
            yield np.array(self.names[start : start + _ID_PIECE], dtype=object)

    def read(self, first: int, last: int) -> list[np.ndarray]:
        """Read the images from `first` up to `last`.

        Parameters
        ----------
        first, last : int
            ``0 <= first <= last <= len(self)``.

        Returns
        -------
        list of np.ndarray of uint8, shape (height, width, 3)
            Red, green and blue, upright as the camera noted; the first frame of what moves.

        Raises
        ------
        InputError
            When one cannot be read, naming it.
        """
        images = []
        for name in self.names[first:last]:
            try:
                images.append(decode(self._files.read(name)))
            except _UNREADABLE as error:
                raise InputError(
                    f"{self.name}: image={name} should be readable, it is not ({_reason(error)}); mend it, or leave "
                    "all such images out with skip_unreadable (--skip-unreadable)"
                ) from error
        return images

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Read images by their row numbers, in any order; see `read`."""
        return [self.read(int(row), int(row) + 1)[0] for row in rows]


def decode(data: bytes) -> np.ndarray:
    """Decode one image file.

    Parameters
    ----------
    data : bytes
        The file.

    Returns
    -------
    np.ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    OSError
        When it is no image, or cut short.
    ValueError
        When its values have no range that is known, or it is large enough to be an attack.

    Examples
    --------
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (4, 3), "red").save(file, "PNG")
    >>> decode(file.getvalue()).shape
    (3, 4, 3)
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("I", "F"):
                raise ValueError(f"its mode is {upright.mode}, whose range is not known")
            if upright.mode.startswith("I;16"):
                # Pillow itself would cut off all that is brighter than 255 of 65535.
                gray = (np.asarray(upright) >> 8).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            return np.asarray(upright.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def open_images(path: str | os.PathLike[str], *, skip_unreadable: bool = False, threads: int | None = None) -> Images:
    """Open images to be embedded.

    Parameters
    ----------
    path : path-like
        A folder with images in it or in its subfolders, or a ``.zip`` of them: ``.jpg``, ``.png``, ``.webp``, ``.bmp``,
        ``.gif``, ``.tif``, ``.ppm``. Other files are left out, and counted in a warning.
    skip_unreadable : bool, default False
        Leave out images that cannot be read, instead of refusing them when they are met. Every image is then decoded
        once beforehand.
    threads : int, optional
        Threads that do so; by default one per core.

    Returns
    -------
    Images
        Sorted by path.

    Raises
    ------
    InputError
        When there are no images.

    Examples
    --------
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
    files: Files = FolderFiles(root) if root.is_dir() else ZipFiles(root)
    names = sorted(name for name in files.names if name.lower().endswith(SUFFIXES))
    left_out = Counter(
        PurePosixPath(name).suffix or PurePosixPath(name).name
        for name in files.names
        if not name.lower().endswith(SUFFIXES)
    )
    if not names:
        raise InputError(f"folder={root} has no images ({', '.join(SUFFIXES)}); check the path")
    if left_out:
        kinds = ", ".join(kind for kind, _ in left_out.most_common(_NAMED)) + (", …" if len(left_out) > _NAMED else "")
        emit("warning", message=f"{left_out.total():,} files that are no images by their name ({kinds}) were left out")
    images = Images(files, names, str(root))
    return _readable(images, files, threads) if skip_unreadable else images


def _readable(images: Images, files: Files, threads: int | None) -> Images:
    """Decode all images, and keep those for which it works."""

    def works(name: str) -> bool:
        try:
            decode(files.read(name))
        except _UNREADABLE:
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
        named = ", ".join(unreadable[:_NAMED]) + (", …" if lost > _NAMED else "")
        emit("warning", message=f"{lost} images that cannot be read were left out: {named}")
    return Images(files, kept, images.name)


def _reason(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
