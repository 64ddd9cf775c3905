"""Representation of samples on a page: a caption, and a thumbnail if there are images."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.view.report.markup import Markup, element, line
from hkm_dask.view.sample_sources import SampleSources
from hkm_dask.view.texts import Column

#: Most characters of a caption, pixels of a thumbnail, and most bytes of all thumbnails of a page.
CAPTION, SIDE, MAX_BYTES = 120, 56, 3 * 2**20

Texts = Callable[[NDArray[np.int64]], Sequence[str | None]]
Read = Callable[[str], bytes]


class Samples:
    """Captions and thumbnails of the rows on a page, fetched together by `load`.

    `known_by` says what the captions are. Unreadable images, and those for which the page has no room, are counted.
    """

    def __init__(self, texts: Texts, known_by: str, names: Column | None = None, read: Read | None = None) -> None:
        self._texts, self._names, self._read = texts, names, read
        self.known_by, self.has_images = known_by, read is not None
        self._captions: dict[int, str] = {}
        self._thumbnails: dict[int, str] = {}
        self.n_unreadable = self.n_left_out = 0

    def load(self, rows: Iterable[int]) -> None:
        """Fetch captions and thumbnails of rows, the most important first; thumbnails stop when the page is full."""
        wanted = list(dict.fromkeys(int(row) for row in rows))
        if not wanted:
            return
        numbers = np.array(wanted, np.int64)
        for row, text in zip(wanted, self._texts(numbers), strict=True):
            self._captions[row] = line(text or "", CAPTION)
        if self._names is None or self._read is None:
            return
        paths, n_bytes = self._names.take(numbers), 0
        for done, (row, path) in enumerate(zip(wanted, paths, strict=True), 1):
            if n_bytes >= MAX_BYTES:
                self.n_left_out += 1
                continue
            try:
                self._thumbnails[row] = thumbnail(self._read(str(path)))
                n_bytes += len(self._thumbnails[row])
            except Exception:  # Pillow does not document what it raises for arbitrary bytes
                self.n_unreadable += 1
            emit("progress", stage="images", done=done, total=len(wanted))
        if not self._thumbnails:
            raise InputError(
                f"images should hold the pool's images, but none of them can be read, as {paths[0]!r}; "
                "give the folder or .zip that contains them"
            )

    def caption(self, row: int) -> str:
        """Return the caption of a loaded row."""
        return self._captions[int(row)]

    def picture(
        self, row: int, *, width: float = SIDE, x: float | None = None, y: float | None = None
    ) -> Markup | None:
        """Refer to the thumbnail of a row in `definitions`, within an SVG at `x` and `y`; None if it has none."""
        row = int(row)
        if row not in self._thumbnails:
            return None
        use = element("use", href=f"#s{row}")
        box = f"0 0 {SIDE} {SIDE}"
        return element(
            "svg", element("title", self.caption(row)), use, class_="thumb", role="img", aria_label=self.caption(row),
            viewBox=box, width=width, height=width, x=x, y=y,
        )  # fmt: skip

    def definitions(self) -> Markup:
        """Return all thumbnails, each once, for the beginning of the page."""
        images = [
            element("image", id=f"s{row}", width=SIDE, height=SIDE, href=f"data:image/webp;base64,{data}")
            for row, data in self._thumbnails.items()
        ]
        return element("svg", element("defs", images), class_="definitions", aria_hidden="true", width=0, height=0)


def thumbnail(data: bytes) -> str:
    """Crop an image file to its center square, SIDE pixels wide, as base64-encoded WebP."""
    from PIL import Image, ImageOps

    from hkm_dask.embedding.images import decode

    small = ImageOps.fit(Image.fromarray(decode(data)), (SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=72, method=4)
    return base64.b64encode(out.getvalue()).decode("ascii")


def open_samples(
    pool: Pool | None, n_samples: int, *, captions: str | os.PathLike[str] | None, images: str | os.PathLike[str] | None
) -> Samples:
    """Choose captions and thumbnails for the rows; raises InputError if captions or images do not fit."""
    known = SampleSources(n_samples, pool, captions, images, wait=True)
    names, read = (None, None) if known.images is None else (known.image_names, known.images.read)
    if known.captions is not None:
        return Samples(known.captions.take, known.captions_of, names, read)
    if known.ids is not None:
        return Samples(known.ids.take, "ids", names, read)
    texts: Texts = names.take if names is not None else lambda rows: [f"row {row:,}" for row in rows]
    return Samples(texts, "rows", names, read)
