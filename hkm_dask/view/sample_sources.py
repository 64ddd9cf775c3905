"""Where the captions, ids, columns and images of samples come from."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from hkm_dask.data import layout
from hkm_dask.data.chunks import open_array
from hkm_dask.data.kept_chunks import KeptChunks
from hkm_dask.data.objects import location
from hkm_dask.data.pool import Pool
from hkm_dask.embedding.images import ImageFiles
from hkm_dask.errors import InputError
from hkm_dask.view.texts import Column, Lines, Records, Texts

#: Columns used as captions unless one is named, and as paths of images instead of ids.
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "TEXT")
PATH_COLUMNS = ("image_path", "file_name", "filename", "path", "image")
#: Bytes of ids and columns that are cached.
_KEPT_BYTES = 256 << 20


class SampleSources:
    """Captions, images and metadata of samples, by row numbers below `n_rows`; ids and columns come from `pool`.

    `captions` is a file with one text per row, or the name of a column; `images` a folder or a ``.zip`` of image files,
    named by the ids or by a column. With `wait`, a large file of captions is indexed before this returns, not in the
    background. Raises InputError if captions or images do not exist, or have another number of rows.
    """

    def __init__(
        self, n_rows: int, pool: Pool | None = None, captions: str | os.PathLike[str] | None = None,
        images: str | os.PathLike[str] | None = None, *, wait: bool = False,
    ) -> None:  # fmt: skip
        self.n_rows, self.pool = n_rows, pool
        self.ids: Column | None = None
        self.columns: dict[str, Column] = {}  # except captions
        if pool is not None:
            cache = KeptChunks(_KEPT_BYTES)
            for name in pool.columns:
                read = partial(pool.column_piece, name)  # masks missing values
                self.columns[name] = Column(open_array(location(pool.path) / name), cache, read, n_rows)
            if pool.has_ids:
                self.ids = Column(open_array(location(pool.path) / layout.IDS), cache, n_rows=n_rows)
        by_column = (self.columns[name] for name in PATH_COLUMNS if name in self.columns)
        self.image_names = next(by_column, self.ids)
        self.captions: Texts | None = None
        self._open_captions(captions, wait)
        self.images = None if images is None else ImageFiles(images)
        if self.images is not None and self.image_names is None:
            raise InputError(
                f"images={os.fspath(images or '')} should go with a pool whose ids, or a column "
                f"{' or '.join(PATH_COLUMNS)}, name the files; make it with `hkm embed image` or `hkm ingest --ids`, "
                "or give its path with --pool"
            )

    def _open_captions(self, captions: str | os.PathLike[str] | None, wait: bool) -> None:
        names, self.captions_of = tuple(self.columns), ""
        named = captions if captions is not None else next((c for c in CAPTION_COLUMNS if c in names), None)
        if named in names:
            self.captions, self.captions_of = self.columns.pop(str(named)), f"column {named}"
        elif captions is not None and (path := Path(captions)).exists():
            is_records = path.is_dir() or path.suffix.lower() in (".jsonl", ".parquet")
            self.captions = Records(path, self.n_rows) if is_records else Lines(path, self.n_rows, wait=wait)
            self.captions_of = f"captions of {path.name}"
        elif captions is not None:
            known = ", ".join(names) or "none"
            rule = f"should be a file with one text per sample, or a column of the pool ({known})"
            raise InputError(f"captions={os.fspath(captions)} {rule}; check the name")
