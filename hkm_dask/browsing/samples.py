"""What is known of the samples: captions, ids, columns, embeddings and images, a few rows at a time."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.browsing.texts import ChunkCache, Column, Lines, Records, Texts
from hkm_dask.data import layout
from hkm_dask.data.chunks import open_array
from hkm_dask.data.pool import Pool
from hkm_dask.embedding.image_files import ImageFiles
from hkm_dask.errors import InputError
from hkm_dask.view.report.samples import CAPTION_COLUMNS, PATH_COLUMNS

#: Characters of a text that are sent to the page.
MAX_CHARACTERS = 2000


class Samples:
    """The samples of a tree, by their row numbers.

    Parameters
    ----------
    n_rows : int
        Rows of the pool.
    pool : Pool, optional
        Where ids, columns and embeddings are.
    captions : str, optional
        A text file with a line for each row, or the name of a column.
    images : str, optional
        A folder or a ``.zip`` that holds the image files, whose names are the ids, or stand in a column.

    Raises
    ------
    InputError
        Captions or images that there are not, or of another number of rows.
    """

    def __init__(
        self, n_rows: int, pool: Pool | None = None, captions: str | None = None, images: str | None = None
    ) -> None:
        self.n_rows, self.pool = n_rows, pool
        cache = ChunkCache()
        names = pool.columns if pool is not None else ()
        self.columns: dict[str, Column] = {}
        if pool is not None:
            for name in names:
                read = partial(pool.column_piece, name)  # with what is missing
                self.columns[name] = Column(open_array(Path(pool.path, name)), cache, read, n_rows)
        self.ids: Column | None = None
        if pool is not None and pool.has_ids:
            self.ids = Column(open_array(Path(pool.path, layout.IDS)), cache, n_rows=n_rows)
        self.captions: Texts | None = None
        if captions is None:
            self.captions = next((self.columns.pop(name) for name in CAPTION_COLUMNS if name in self.columns), None)
        elif captions in self.columns:
            self.captions = self.columns.pop(captions)
        elif Path(captions).exists():
            records = Path(captions).is_dir() or Path(captions).suffix.lower() in (".jsonl", ".parquet")
            self.captions = (Records if records else Lines)(captions, n_rows)
        else:
            raise InputError(f"captions={captions} should be a text file, or {_one_of(names)}; check the path")
        self.images = None if images is None else ImageFiles(images)
        self._image_names: Column | None = None
        if self.images is not None:
            by_column = (self.columns[name] for name in PATH_COLUMNS if name in self.columns)
            self._image_names = next(by_column, self.ids)
            if self._image_names is None:
                raise InputError(
                    f"images={images} should go with a pool whose ids, or a column {' or '.join(PATH_COLUMNS)}, name "
                    "the files; give such ids to `hkm ingest --ids`"
                )

    def facts(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """What the page shows of rows: ``row``, ``id``, ``caption``, ``columns`` and whether there is an ``image``."""
        ids = self.ids.values(rows) if self.ids else [None] * len(rows)
        captions = self.captions.take(rows) if self.captions else [None] * len(rows)
        columns = {name: column.values(rows) for name, column in self.columns.items()}
        return [
            {
                "row": int(row),
                "id": None if ids[i] is None else str(ids[i])[:MAX_CHARACTERS],
                "caption": None if (text := captions[i]) is None else text[:MAX_CHARACTERS],
                "columns": {name: _plain(values[i]) for name, values in columns.items()},
                "image": self.images is not None,
            }
            for i, row in enumerate(rows)
        ]

    def embedding(self, row: int) -> NDArray[np.float32]:
        """Read the embedding of a row; InputError where there is no pool or no such row."""
        if self.pool is None:
            raise InputError("pool=None should be there to look for neighbors of a row; give --pool")
        if not 0 <= row < self.n_rows:
            raise InputError(f"row={row} should be from 0 to {self.n_rows - 1}; choose another")
        self.pool.check_unchanged()
        return open_array(Path(self.pool.path, layout.EMBEDDINGS)).read(row, row + 1)[0].astype(np.float32)

    def image(self, row: int, size: int) -> bytes:
        """Read an image as JPEG of at most `size` pixels a side; InputError where there is none."""
        if self.images is None or self._image_names is None or not 0 <= row < self.n_rows:
            raise InputError(f"row={row} should have an image; give --images")
        return self.images.jpeg(str(self._image_names.values(np.array([row]))[0]), size)


def _one_of(names: tuple[str, ...]) -> str:
    return f"one of the columns {', '.join(names)}" if names else "a column of the pool, which has none"


def _plain(value: Any) -> Any:
    """Give a value as JSON can have it.

    >>> _plain(float("nan")), _plain(3), _plain("a")
    (None, 3, 'a')
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)  # beyond, a page would round it
    return None if value is None else str(value)[:MAX_CHARACTERS]
