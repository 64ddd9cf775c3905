"""Verification of a pool: values, statistics, fingerprint, ids and columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data import layout
from hkm_dask.data.ids import id_keys, repeated
from hkm_dask.data.pool_writer import Stats, measure
from hkm_dask.data.verify import MAX_LINES, Verification
from hkm_dask.data.verify_chunks import ChunkReader, broken_rule, named_rows

#: Bytes of rows processed together, few enough for the cache.
_PIECE_BYTES = layout.MIB
#: Number of ids compared at once.
_IDS_AT_ONCE = 2**26
_ID_REMEDY = "give every row a unique id, and make the pool again"


def check_pool(attributes: Mapping[str, Any], reader: ChunkReader, found: Verification) -> None:
    """Read a whole pool, and compare it with its attributes."""
    n_samples = _check_embeddings(attributes, reader, found)
    if n_samples is None:
        return
    columns = attributes.get("columns") or []
    names = [layout.IDS] if attributes.get("has_ids") else []
    names += [str(name) for name in columns] if isinstance(columns, list) else []
    for name in names:
        shape = reader.arrays[name].spec.shape if name in reader.arrays else None
        if shape is None:
            found.add(name, "missing", "is missing, though the pool's attributes name it")
        elif shape != (n_samples,):
            found.add(name, "shape", f"shape={shape} should be ({n_samples},), one value per row")
        elif name == layout.IDS:
            _check_ids(reader, found)
        mask = reader.arrays.get(f"{name}{layout.MISSING_SUFFIX}")
        if mask is not None and mask.spec.shape != (n_samples,):
            found.add(f"{name}{layout.MISSING_SUFFIX}", "shape", f"shape={mask.spec.shape} should be ({n_samples},)")
    if len(names) > len([layout.IDS] if attributes.get("has_ids") else []):
        found.checks["columns"] = ", ".join(name for name in names if name != layout.IDS)


def _check_embeddings(attributes: Mapping[str, Any], reader: ChunkReader, found: Verification) -> int | None:
    """Read the embeddings, and compare them with the pool's attributes; returns the number of rows."""
    name = layout.EMBEDDINGS
    if name not in reader.arrays:
        found.add(name, "missing", "cannot be read: it is missing, or its metadata are damaged")
        return None
    array = reader.arrays[name]
    spec = array.spec
    if len(spec.shape) != 2 or 0 in spec.shape or spec.dtype not in (np.float16, np.float32):
        found.add(name, "shape", f"{spec.dtype} of shape {spec.shape} should be float16 or float32 (samples, features)")
        return None

    def look(start: int, rows: NDArray[np.floating]) -> Stats:
        stats, step = Stats(np.zeros(spec.shape[1])), max(1, _PIECE_BYTES // spec.row_bytes)
        for low in range(0, len(rows), step):
            piece = rows[low : low + step]
            stats.add(measure(piece, piece, np.arange(start + low, start + low + len(piece))))
        stats.checksums.append(array.checksum(start // spec.chunk_rows))
        return stats

    total = Stats(np.zeros(spec.shape[1]))
    for _, stats in reader.fold([name], look):
        if stats.nonfinite:
            rule = "values should be finite, without NaN and Inf"
            found.add(name, "finite", broken_rule(array, rule, np.concatenate(stats.nonfinite)))
        total.add(stats)
    if name not in reader.damaged and not total.nonfinite:
        _compare(attributes, total, reader, found)
    return spec.shape[0]


def _compare(attributes: Mapping[str, Any], total: Stats, reader: ChunkReader, found: Verification) -> None:
    spec = reader.arrays[layout.EMBEDDINGS].spec
    shape = (spec.shape[0], spec.shape[1])
    measured = {
        "fingerprint": layout.array_fingerprint(spec, np.array(total.checksums)),
        "max_abs": total.max_abs,
        "n_zero_rows": total.n_zero_rows,
    }
    for name, value in measured.items():
        stored = attributes.get(name)
        if stored != value:
            found.add("", name, f"{name}={stored} should be {value}, by the embeddings; the attributes were altered")
    mean = total.total / shape[0]
    if layout.MEAN not in reader.arrays or reader.arrays[layout.MEAN].spec.shape != mean.shape:
        found.add(layout.MEAN, "missing", f"should be present, with {spec.shape[1]} numbers, one per feature")
    elif (stored := reader.whole(layout.MEAN)) is not None:
        # The stored mean is float32, and float64 sums depend on their order.
        wrong = ~(np.abs(stored - mean) <= 2.0**-23 * np.abs(mean) + 1e-9 * total.max_abs)
        if wrong.any():
            feature = int(wrong.argmax())
            fact = f"{stored[feature]:.9g} should be {mean[feature]:.9g} at feature {feature}"
            found.add(layout.MEAN, "mean", f"is not the mean of the embeddings: {fact}, {wrong.sum()} features differ")
    if found.sound:
        found.checks["values"] = (
            f"{shape[0]:,} × {shape[1]:,} {spec.dtype}, no NaN or Inf; mean, largest value {total.max_abs:.6g}, "
            f"{total.n_zero_rows:,} zero rows and fingerprint as stored"
        )


# -- ids ---------------------------------------------------------------------------------------------------------------


def _check_ids(reader: ChunkReader, found: Verification) -> None:
    """Check that no id occurs twice, by 64-bit keys, in several passes if they are too many for memory."""
    name, n_ids = layout.IDS, reader.arrays[layout.IDS].spec.shape[0]
    n_turns = -(-n_ids // _IDS_AT_ONCE)
    twice = []
    for turn in range(n_turns):

        def of_turn(start: int, ids: NDArray[Any], turn: int = turn) -> NDArray[np.int64]:
            keys = id_keys(ids)
            return keys.copy() if n_turns == 1 else keys[keys % n_turns == turn]

        keys = np.concatenate([np.empty(0, np.int64), *(made for _, made in reader.fold([name], of_turn))])
        if name in reader.damaged:
            return
        twice.append(repeated(keys))
    keys = np.concatenate(twice)
    if len(keys) > MAX_LINES:
        found.add(name, "many", f"{len(keys):,} ids should come once, they come more often", remedy=_ID_REMEDY)
    if not (len(keys) and _tell_repeated(keys[:MAX_LINES], reader, found)):
        found.checks[name] = f"{n_ids:,}, none twice"


def _tell_repeated(keys: NDArray[np.int64], reader: ChunkReader, found: Verification) -> bool:
    """Report ids that occur more than once, among those with these keys, and their rows; tells if there are any."""
    rows_of: dict[Any, list[int]] = {}

    def candidates(start: int, ids: NDArray[Any]) -> list[tuple[Any, int]]:
        places = np.flatnonzero(np.isin(id_keys(ids), keys))
        return list(zip(ids[places].tolist(), (places + start).tolist(), strict=True))

    for _, pairs in reader.fold([layout.IDS], candidates):
        for value, row in pairs:
            rows_of.setdefault(value, []).append(row)
    twice = {value: rows for value, rows in rows_of.items() if len(rows) > 1}
    for value, rows in twice.items():
        what = f"id {value!r:.80} should come once, it comes {len(rows)} times: {named_rows(rows)}"
        found.add(layout.IDS, "repeated", what, remedy=_ID_REMEDY)
    return bool(twice)
