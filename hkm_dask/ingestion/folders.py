"""Folders of shards: plain ones, clip-retrieval's, and those written by `save_to_disk` of Hugging Face's datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from hkm_dask.data.files import open_input, read_json
from hkm_dask.data.ids import check_id_count
from hkm_dask.data.npy import NPY_MAGIC
from hkm_dask.data.rows import NpyRows
from hkm_dask.errors import N_NAMED, HkmError, InputError, first_few
from hkm_dask.events import emit
from hkm_dask.ingestion.formats import EmbeddingTable, Wanted, choose_table, is_inside, known_of, open_each, open_file
from hkm_dask.ingestion.table_files import ParquetTable, open_table_file
from hkm_dask.ingestion.tables import list_columns

# Subfolders of the clip-retrieval layout: two kinds of shards, and metadata of each row.
CLIP_FOLDERS = ("img_emb", "text_emb")
CLIP_METADATA = "metadata"
#: Suffixes of files that may hold embeddings, in order of preference where a folder has several kinds.
_SHARD_SUFFIXES = (".npy", ".parquet", ".arrow", ".safetensors", ".npz")
#: Most left-out files whose headers are checked.
_MOST_PROBED = 1000


def natural_key(path: Path) -> list[tuple[bool, int, str]]:
    """Make a sort key that puts ``emb_2`` before ``emb_10``.

    >>> [path.name for path in sorted(map(Path, ["e_10.npy", "e_2.npy"]), key=natural_key)]
    ['e_2.npy', 'e_10.npy']
    """
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _shards(folder: Path, suffix: str, below: str = "") -> list[Path]:
    """List the files of a folder, and `below` it, in natural order, without hidden files and writers' side files."""
    found = (
        path
        for path in folder.glob(f"{below}*{suffix}")
        if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )
    shards = sorted(found, key=lambda path: [natural_key(part) for part in (*reversed(path.parents), path)])
    for path in shards:
        if not is_inside(path, folder):
            raise InputError(
                f"{path} should be in {folder}, but is a link to another place; give the folder it points to"
            )
    return shards


def open_folder(path: Path, wanted: Wanted) -> list[EmbeddingTable]:
    """Open a folder of shards; raises InputError if it has none, or if they do not belong together.

    Warns of files in the folder or below it that may also hold embeddings but are left out.
    """
    known = set[Path]()
    tables = _open_shards(path, wanted, known)
    _warn_left_out(path, known)
    return tables


def _open_shards(path: Path, wanted: Wanted, known: set[Path]) -> list[EmbeddingTable]:
    """Open the shards of a folder; adds to `known` the files that are read, or left out for a known reason."""
    for name, key in (("dataset_dict.json", "splits"), ("state.json", "_data_files")):
        if (path / name).is_file() and key in (state := read_json(path / name) or {}):
            known.update(_candidates(path))
            return _open_saved(path, wanted, state)
    for suffix in _SHARD_SUFFIXES:
        shards = _shards(path, suffix)
        if suffix == ".npy":
            if not shards and any(_shards(path / name, suffix) for name in CLIP_FOLDERS):
                return _open_clip(path, wanted, known)
            if not shards and (below := _folders_below(path)):
                return [table for folder in below for table in _open_shards(folder, wanted, known)]
            kinds = {kind for kind in map(_clip_kind, shards) if kind}
            if shards and (wanted.column or wanted.ids or wanted.keep or len(kinds) > 1):
                return _open_clip(path, wanted, known)
            tables = open_each(lambda shard: [EmbeddingTable(NpyRows(shard), str(shard))], shards)
        else:
            shards = shards or _shards(path, suffix, "**/")
            tables = open_each(lambda shard: [open_file(shard, wanted)], shards)
        known.update(shards)
        if tables:
            return tables
    held = "*.npy, *.parquet, *.arrow, *.safetensors or *.npz"
    raise InputError(f"source={path} should hold {held}, or be a Zarr store, it holds none of them; check the path")


def _candidates(folder: Path) -> list[Path]:
    """List the files in a folder and below whose suffix, in any case, suggests embeddings; hidden ones are skipped."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (*_SHARD_SUFFIXES, ".feather")
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


def _warn_left_out(folder: Path, known: set[Path]) -> None:
    """Warn of files left out without being asked to, such as ``.parquet`` beside ``.npy``, or nested shards."""
    left = (path for path in _candidates(folder) if path not in known)
    found = [path.relative_to(folder) for path in islice(filter(_may_hold, islice(left, _MOST_PROBED)), N_NAMED + 1)]
    if found:
        fact = f"{folder} has other files that are not read, but may be embeddings ({first_few(found)})"
        emit("warning", message=f"{fact}; give them as separate sources to include them")


def _may_hold(path: Path) -> bool:
    """Return whether a file may hold embeddings, judging by its header, rather than ids or other metadata."""
    try:
        if path.suffix.lower() == ".npy":
            return NpyRows(path).n_rows > 0
        with open_input(path) as file:
            table = open_table_file(path, file.read(len(NPY_MAGIC)))
        return table is None or bool(list_columns(table))
    except HkmError:
        return False


def _folders_below(path: Path) -> list[Path]:
    """List the folders of ``.npy`` shards, or of clip-retrieval output, below a folder, in natural order."""
    shards = _shards(path, ".npy", "**/")
    return list(dict.fromkeys(shard.parents[shard.parent.name in CLIP_FOLDERS] for shard in shards))


# --- clip-retrieval ---------------------------------------------------------------------------------------------------


def _clip_kind(shard: Path) -> str:
    """Return the kind of embeddings that the name of a shard indicates; empty if none."""
    return next((kind for kind in CLIP_FOLDERS if shard.name.startswith(kind)), "")


def _open_clip(path: Path, wanted: Wanted, known: set[Path]) -> list[EmbeddingTable]:
    """Open a folder in the clip-retrieval layout: ``img_emb_0.npy``, ``metadata_0.parquet``, possibly in subfolders."""
    flat, names = _shards(path, ".npy"), (*CLIP_FOLDERS, CLIP_METADATA)
    known.update(flat, (file for file in _shards(path, ".parquet") if file.name.startswith(names)))
    known.update(file for name in names for suffix in (".npy", ".parquet") for file in _shards(path / name, suffix))
    if flat:
        groups = {kind: [shard for shard in flat if _clip_kind(shard) == kind] for kind in map(_clip_kind, flat)}
        if set(groups) == {""}:
            wanted.refuse(str(path), "column")
        chosen = choose_table(sorted(groups), wanted.column, path, "kinds of shards") if len(groups) > 1 else ""
        shards = groups[chosen] if chosen or "" in groups else next(iter(groups.values()))
    else:
        held = [name for name in CLIP_FOLDERS if _shards(path / name, ".npy")]
        shards = _shards(path / choose_table(held, wanted.column, path, "subfolders"), ".npy")
    tables = [NpyRows(shard) for shard in shards]
    nested = path / CLIP_METADATA
    metadata = _shards(nested, ".parquet") or [f for f in _shards(path, ".parquet") if f.name.startswith(CLIP_METADATA)]
    if not (wanted.ids or wanted.keep):
        left: tuple[str, ...] = ()
        with suppress(InputError):  # it is not asked for
            left = tuple(ParquetTable(metadata[0]).schema.names) if metadata else ()
        return [EmbeddingTable(rows, str(shard), left=left) for rows, shard in zip(tables, shards, strict=True)]
    option = f"ids={wanted.ids!r}" if wanted.ids else f"keep={','.join(wanted.keep)!r}"
    if len(metadata) != len(shards):
        inside = path.name in CLIP_FOLDERS and (path.parent / CLIP_METADATA).is_dir()
        remedy = f"give {path.parent} with column={path.name}" if inside else "give the ids as a file (ids_file)"
        raise InputError(
            f"{option}: {nested if nested.is_dir() else path} holds {len(metadata)} .parquet files, it should hold "
            f"{len(shards)}, one for each .npy of {shards[0].parent.name}; {remedy}"
        )
    opened = []
    for rows, shard, file in zip(tables, shards, metadata, strict=True):
        if file.name.startswith(CLIP_METADATA) and _number(shard) != _number(file):
            raise InputError(f"{option}: {file.name} should have the number of {shard.name}; copy what is missing")
        table = ParquetTable(file)
        check_id_count(table.n_rows, rows.n_rows, str(file))
        opened.append(EmbeddingTable(rows, str(shard), *known_of(table, wanted)))
    return opened


def _number(path: Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1


def _open_saved(path: Path, wanted: Wanted, state: Mapping[str, Any]) -> list[EmbeddingTable]:
    """Open a data set saved by Hugging Face's `datasets`, or a dictionary that contains a single one."""
    if "splits" in state:
        names = state["splits"] if isinstance(state["splits"], list) else []
        splits = [name for name in names if isinstance(name, str)]
        if len(splits) != 1:
            held = ", ".join(splits) or "no data"
            raise InputError(f"source={path} should be one data set, it holds {held}; give the folder of one")
        return open_folder(_within(path, splits[0]), wanted)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(f"source={path} is a selection of rows; write it with flatten_indices().save_to_disk()")
    files = state.get("_data_files")
    entries = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    names = [name for entry in entries if isinstance(name := entry.get("filename"), str)]
    if not names or len(names) < len(entries):
        raise InputError(f"source={path} should name its files in state.json; save it again")
    return open_each(lambda name: [open_file(_within(path, name), wanted)], names)


def _within(folder: Path, name: str) -> Path:
    path = folder / name
    if not (is_inside(path, folder) and path.exists()):
        raise InputError(f"{path} should be there, and lie in {folder}; save the data set again")
    return path
