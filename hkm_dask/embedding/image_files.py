"""Image files of a folder or a `.zip`, as thumbnails: only those inside, within limits of bytes and pixels."""

from __future__ import annotations

import io
import os
import zipfile
from functools import lru_cache
from pathlib import Path

from PIL import Image

from hkm_dask.embedding.images import MAX_FILE_BYTES, decode, read_zipped
from hkm_dask.untrusted import open_regular, read_regular, reading

#: Thumbnails that are kept, of some 10 kB each.
_KEPT = 4096


class ImageFiles:
    """Image files by their names, relative to a folder or as they are in a ``.zip``.

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
        self.jpeg = lru_cache(maxsize=_KEPT)(self._jpeg)

    def _jpeg(self, name: str, size: int) -> bytes:
        """Make a JPEG of at most `size` pixels a side; InputError where there is no such image inside."""
        with reading(f"image={name[:200]!r} should be an image in {self.path}", "mend it, or leave it out"):
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
