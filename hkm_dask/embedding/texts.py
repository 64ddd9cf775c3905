"""Texts to be embedded: `.txt` with one text per line, `.jsonl`, parquet, or a folder of these; read in pieces."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.ids import NO_COLUMNS, Pieces
from hkm_dask.embedding.text_files import COLUMN, PIECE, LineFile, ParquetFile, TextFile
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.ingestion.folders import natural_key

SUFFIXES = (".txt", ".jsonl", ".parquet")
STAGE = "index"


class Texts:
    """Texts of one or several files, concatenated; a source for `hkm_dask.embedding.embed.embed`.

    The fingerprint covers the content of all files, the settings for reading them, and `known_by`, which identifies the
    origin of the ids.
    """

    columns = NO_COLUMNS

    def __init__(self, files: Sequence[TextFile], name: str, ids: Pieces | None, known_by: str = "") -> None:
        self.files, self.name, self.ids = tuple(files), name, ids
        lines = [*(file.fingerprint for file in files), known_by]
        self.fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        self._offsets = np.cumsum([0, *(len(file) for file in files)], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of texts."""
        return int(self._offsets[-1])

    def read(self, first: int, last: int) -> list[str]:
        """Read the texts `first` to `last` (exclusive); raises InputError with the position of an invalid one."""
        parts = layout.spans(self._offsets, first, last)
        return [text for number, start, stop in parts for text in self.files[number].read(start, stop)]


def open_texts(
    path: str | os.PathLike[str], *, column: str | None = None, ids: str | None = None, skip_empty: bool = False
) -> Texts:
    """Open texts to be embedded.

    One pass over each file counts, locates and fingerprints its texts; afterwards only a few are in memory at a time
    (for parquet, one row group).

    `path` is a ``.txt`` file with one text per line, a ``.jsonl`` file with one object per line, a ``.parquet`` file,
    or a folder of files of one of these kinds, read in natural order; UTF-8. `column` is the key or column of the
    texts, by default ``"text"``, and `ids` that of the ids: integers or strings. Without `ids`, rows of one file are
    identified by their numbers, or by their line numbers if some were skipped, and rows of a folder by ``"file:line"``.
    With `skip_empty`, empty texts are left out. Raises InputError if there is nothing to read, a file cannot be read,
    or there are empty texts.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.txt").write_text("one text\\nanother\\n")
    ...     texts = open_texts(f"{folder}/a.txt")
    ...     len(texts), texts.read(1, 2)
    (2, ['another'])
    """
    root = Path(path).absolute()
    paths = _find(root)
    files: list[TextFile] = []
    for done, file_path in enumerate(paths, start=1):
        files.append(_open_file(file_path, column, ids, skip_empty))
        emit("progress", stage=STAGE, done=done, total=len(paths))
    empty = [(file, place) for file in files for place in file.empty]
    if empty and not skip_empty:
        file, place = empty[0]
        raise InputError(
            f"n_empty_texts={len(empty)} should be 0, the first is {file.unit} {place} of {file.path}; fix them, or "
            "leave them out with skip_empty (--skip-empty)"
        )
    if empty:
        emit("warning", message=f"{len(empty)} empty texts were skipped")
    known_by = ids or ("" if paths == [root] else "\n".join(file_path.name for file_path in paths))
    return Texts(files, str(root), _ids(files, root, ids, skipped=bool(empty)), known_by)


def _find(root: Path) -> list[Path]:
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise InputError(f"input={root} should be .txt, .jsonl or .parquet; unpack or convert it")
        return [root]
    if not root.is_dir():
        raise InputError(f"input={root} does not exist; check the path")
    paths = [p for p in root.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    held = [suffix for suffix in SUFFIXES if any(path.suffix.lower() == suffix for path in paths)]
    if len(held) != 1:
        kinds = "several kinds: " + ", ".join(held) if held else "none"
        raise InputError(
            f"input={root} should hold files of one kind ({', '.join(SUFFIXES)}), it holds {kinds}; separate them"
        )
    return sorted(paths, key=natural_key)


def _open_file(path: Path, column: str | None, ids: str | None, skip_empty: bool) -> TextFile:
    if path.suffix.lower() == ".parquet":
        return ParquetFile(path, column, ids, skip_empty)
    if path.suffix.lower() == ".jsonl":
        return LineFile(path, column or COLUMN, skip_empty)
    for option, value in (("column", column), ("ids", ids)):
        if value is not None:
            raise InputError(f"{option}={value!r} does not apply to {path}, a .txt file has no columns; leave it out")
    return LineFile(path, None, skip_empty)


def _ids(files: Sequence[TextFile], root: Path, column: str | None, *, skipped: bool) -> Pieces | None:
    if column is not None:
        return lambda: itertools.chain.from_iterable(file.ids(column) for file in files)
    if len(files) == 1 and files[0].path == root:
        return (lambda: _pieces(files[0].places(), np.int64)) if skipped else None
    return lambda: _pieces((f"{file.path.name}:{place}" for file in files for place in file.places()), object)


def _pieces(values: Iterator[Any], dtype: Any) -> Iterator[np.ndarray]:
    while piece := list(itertools.islice(values, PIECE)):
        yield np.array(piece, dtype=dtype)
