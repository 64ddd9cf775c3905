"""All parsers of external bytes: how to write valid input for each, and how to read it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from PIL import Image

from hkm_dask.compute.runner import Runner
from hkm_dask.config import Config, Level
from hkm_dask.data import layout, store
from hkm_dask.data.chunks import CHECKSUMS_FILE
from hkm_dask.data.pool import open_pool
from hkm_dask.data.rows import as_rows
from hkm_dask.embedding.images import open_images
from hkm_dask.embedding.models import model_folder
from hkm_dask.embedding.raster_patches import open_windows
from hkm_dask.embedding.texts import open_texts
from hkm_dask.hierarchy.level_arrays import create_row_arrays, write_cluster_arrays, write_row_arrays
from hkm_dask.hierarchy.source import open_source
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.view.info import describe, render

CONFIG = """\
# Two levels, and what YAML can do.
seed: 3
metric: l2
dtype: float32
subset: rows.npy
levels:
  - &first
    n_clusters: 100_000
    n_splits: 10
    resample_size: auto
    tol: 1e-4
  - <<: *first
    n_clusters: 20
    init: k-means++
    tol: 0.0
"""
ROWS = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
TEXTS = ["one text", "zwei", "  drei ", "七", "five \u2028 and more"]
_TREE = Config(levels=(Level(n_clusters=4, n_resamples=1), Level(n_clusters=2, n_resamples=0)))


@dataclass(frozen=True)
class Parser:
    """One parser: a function that writes valid input to a folder, and one that reads it and may write to another."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path, Path], object]


# --- settings and stores ----------------------------------------------------------------------------------------------


def _read_config(folder: Path, out: Path) -> None:
    config = Config.from_yaml(folder / "run.yaml")
    assert Config.from_json(config.to_json()) == config


def _write_pool(folder: Path) -> None:
    ingest(ROWS, folder / "a.zarr", ids=[f"id {row}" for row in range(len(ROWS))], chunk_mb=12 * 16 / 2**20)


def _read_pool(folder: Path, out: Path) -> None:
    facts = describe(folder / "a.zarr")
    assert render(facts).replace("\n", "").isprintable()
    json.dumps(facts, allow_nan=False)
    pool = open_pool(folder / "a.zarr")
    pool.rows().read(0, pool.n_samples)
    pool.ids(np.arange(pool.n_samples))
    as_rows(folder / "a.zarr")


def _write_tree(folder: Path) -> None:
    """Write a tree without running k-means, whose kernels take seconds to compile."""
    root = folder / "a.zarr"
    facts = {"config": _TREE.to_json(), "seed": 0, "metric": "l2", "pool": "", "pool_fingerprint": "0", "software": "x"}
    store.create_group(root, {"format": layout.TREE_FORMAT, "format_version": layout.FORMAT_VERSION, **facts})
    labels = np.arange(len(ROWS), dtype=np.int32) % 4
    for level, below in ((1, labels), (2, np.arange(4, dtype=np.int32) % 2)):
        group, k = root / f"level_{level}", int(below.max()) + 1
        create_row_arrays(group, level, len(below), 8)
        write_row_arrays(group, below, np.ones(len(below), np.float32))
        with Runner() as runner:
            write_cluster_arrays(group, level, ROWS[:k], [np.array([3.0, 2.0])], runner)
        store.mark_complete(group, {"seconds": 0.5})
    store.mark_complete(root, {"seconds": 1.5})


def _read_tree(folder: Path, out: Path) -> None:
    facts = describe(folder / "a.zarr")
    assert render(facts).replace("\n", "").isprintable()
    json.dumps(facts, allow_nan=False)
    arrays = TreeArrays(open_hierarchy(folder / "a.zarr"))
    for name in ("labels", "distances", "sizes", "members", "centroids"):
        arrays.read(1, name)


def _sealed(read: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    """Recompute all digests after the damage, as an attacker would, and then read."""

    def read_sealed(folder: Path, out: Path) -> None:
        with suppress(Exception):  # the metadata are no longer readable at all
            for file in sorted((folder / "a.zarr").rglob("zarr.json"), key=lambda file: -len(file.parts)):
                _seal(file)
        read(folder, out)

    return read_sealed


def _seal(file: Path) -> None:
    metadata = json.loads(file.read_bytes())
    attributes, copies = metadata["attributes"], metadata.get("consolidated_metadata", {}).get("metadata", {})
    if layout.FINGERPRINT in attributes and (spec := layout.parse_array_spec(metadata)) is not None:
        checksums = np.fromfile(file.with_name(CHECKSUMS_FILE), dtype="<u4")
        attributes[layout.FINGERPRINT] = layout.array_fingerprint(spec, checksums)
    if layout.DIGEST in attributes:
        for name in copies:
            copies[name] = json.loads((file.parent / name / file.name).read_bytes())
        attributes[layout.DIGEST] = layout.metadata_digest(attributes, copies)
    file.write_text(json.dumps(metadata))


def _write_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architecture": "vit", "layers": [1, 2, {"size": 3}]}))


# --- tables of embeddings ---------------------------------------------------------------------------------------------


def _write_zarr(zarr_format: Any, **options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        group = zarr.create_group(str(folder / "a.zarr"), zarr_format=zarr_format)
        array = group.create_array("x", shape=ROWS.shape, dtype=ROWS.dtype, **{"chunks": (6, 4), **options})
        array[:] = ROWS
        ids = group.create_array("number", shape=(len(ROWS),), dtype="i4", chunks=(9,), fill_value=-1)
        ids[:] = np.arange(len(ROWS))

    return write


def _ingest(name: str, **options: Any) -> Callable[[Path, Path], None]:
    def read(folder: Path, out: Path) -> None:
        ingest(folder / name, out / "pool.zarr", **options)

    return read


def _write_npz(folder: Path) -> None:
    np.savez(folder / "a.npz", x=ROWS, name=np.arange(len(ROWS)))


def _write_packed_npz(folder: Path) -> None:
    np.savez_compressed(folder / "a.npz", x=ROWS, name=np.array([f"n {row}" for row in range(len(ROWS))]))


def _write_parquet_ids(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("img_emb", "metadata"):
        (folder / "a" / name).mkdir(parents=True)
    np.save(folder / "a" / "img_emb" / "img_emb_0.npy", ROWS)
    kinds = pa.array([f"kind {row}" for row in range(len(ROWS))]).dictionary_encode()
    pq.write_table(pa.table({"path": kinds}), folder / "a" / "metadata" / "metadata_0.parquet")


def _write_table(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names, numbers = [f"n {row}" for row in range(len(ROWS))], list(range(len(ROWS)))
        table = pa.table({"x": ROWS.tolist(), "name": names, "n": [None, *numbers[1:]]})
        if name.endswith(".parquet"):
            pq.write_table(table, folder / name, row_group_size=9)
            return
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=9)

    return write


def _write_csv_ids(folder: Path) -> None:
    cells = [f'{row},"kind, {row}",{row / 2},{row % 2 > 0}' for row in range(len(ROWS))]
    (folder / "a.csv").write_text("\n".join(["id,kind,score,odd", *cells, ""]), encoding="utf-8")


def _ingest_with_csv(folder: Path, out: Path) -> None:
    ingest(ROWS, out / "b.zarr", ids_file=folder / "a.csv", ids="id", keep=["kind", "score", "odd"])


def _write_safetensors(folder: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": list(ROWS.shape), "data_offsets": [0, ROWS.nbytes]}}
    text = json.dumps(header).encode()
    (folder / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + ROWS.astype("<f4").tobytes())


def _read_subset(folder: Path, out: Path) -> None:
    open_source(ROWS, Config(subset=str(folder / "rows.npy"), levels=[{"n_clusters": 2}]))


# --- texts, images, rasters -------------------------------------------------------------------------------------------


def _write_texts(suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = folder / f"a{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table({"text": TEXTS, "n": range(len(TEXTS))}), path, row_group_size=2)
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)))
        else:
            path.write_text("\n".join(TEXTS), encoding="utf-8")

    return write


def _read_texts(suffix: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, out: Path) -> None:
        for skip in (True, False):
            texts = open_texts(folder / f"a{suffix}", ids=None if suffix == ".txt" else "n", skip_empty=skip)
            texts.read(0, len(texts))
            _drain(texts.ids)

    return read


def _pictures() -> dict[str, bytes]:
    colors = (ROWS[:12].reshape(8, 6)[:, :, None] * [40, 50, 60] + 128).clip(0, 255).astype(np.uint8)
    image, pictures = Image.fromarray(colors), {}
    modes: dict[str, Sequence[str]] = {
        "PNG": ("RGB", "P", "RGBA", "I;16"), "JPEG": ("RGB", "L"), "GIF": ("P",), "WEBP": ("RGB",), "BMP": ("RGB",),
        "TIFF": ("RGB", "L"), "PPM": ("RGB",),
    }  # fmt: skip
    for kind, names in modes.items():
        for mode in names:
            file = io.BytesIO()
            wanted = Image.fromarray(colors[:, :, 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)
            wanted.save(file, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
            pictures[f"{mode.replace(';', '')}.{kind.lower()}"] = file.getvalue()
    return pictures


def _write_images(folder: Path) -> None:
    for name, data in _pictures().items():
        (folder / name).write_bytes(data)


def _read_images(folder: Path, out: Path) -> None:
    images = open_images(folder)
    images.read(0, len(images))
    open_images(folder, skip_unreadable=True, threads=1)


def _write_image_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in list(_pictures().items())[:3]:
            archive.writestr(name, data)


def _read_image_zip(folder: Path, out: Path) -> None:
    images = open_images(folder / "a.zip")
    images.read(0, len(images))
    _drain(images.ids)


def _write_rasters(folder: Path) -> None:
    import rasterio

    values = (ROWS[:16].reshape(1, 8, 8) * 40 + 128).clip(0, 255).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    place = rasterio.Affine(0.5, 0, 100.0, 0, -0.25, 50.0)
    tiled: dict[str, Any] = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate", "nodata": 0}
    for name, options in {"a": tiled, "b": {"compress": "lzw"}}.items():
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", count=1, height=32, width=32, dtype="uint8", crs="EPSG:4326",
            transform=place, **options,
        ) as raster:  # fmt: skip
            raster.write(values)
    Image.fromarray(values[0]).save(folder / "c.png")
    Image.fromarray(values[0]).save(folder / "d.jpg")


def _read_rasters(folder: Path, out: Path) -> None:
    for path in sorted(folder.iterdir()):
        windows = open_windows(path, size=16, value_range=(0, 255), max_missing=0.9)
        windows.read(0, min(len(windows), 64))
        for pieces in windows.columns.values():
            next(pieces())


def _drain(ids: Callable[[], Any] | None) -> None:
    for _ in ids() if ids is not None else ():
        pass


PARSERS = {
    parser.name: parser
    for parser in (
        Parser("config", lambda folder: (folder / "run.yaml").write_text(CONFIG), _read_config),
        Parser("pool", _write_pool, _read_pool),
        Parser("tree", _write_tree, _read_tree),
        Parser("pool-sealed", _write_pool, _sealed(_read_pool)),
        Parser("tree-sealed", _write_tree, _sealed(_read_tree)),
        Parser("model", _write_model, lambda folder, out: model_folder(folder)),
        Parser("zarr2", _write_zarr(2), _ingest("a.zarr", column="x", ids="number")),
        Parser("zarr3", _write_zarr(3), _ingest("a.zarr", column="x", ids="number")),
        Parser("sharded", _write_zarr(3, chunks=(3, 2), shards=(12, 4)), _ingest("a.zarr", column="x")),
        Parser("npy", lambda folder: np.save(folder / "a.npy", ROWS), _ingest("a.npy")),
        Parser("npz", _write_npz, _ingest("a.npz", column="x", ids="name")),
        Parser("npz-packed", _write_packed_npz, _ingest("a.npz", column="x", ids="name")),
        Parser("parquet-ids", _write_parquet_ids, _ingest("a", ids="path")),
        Parser("parquet-lists", _write_table("a.parquet"), _ingest("a.parquet", ids="name", keep=["n"])),
        Parser("csv-ids", _write_csv_ids, _ingest_with_csv),
        Parser("arrow", _write_table("a.arrow"), _ingest("a.arrow", ids="name", keep=["n"])),
        Parser("safetensors", _write_safetensors, _ingest("a.safetensors")),
        Parser("subset", lambda folder: np.save(folder / "rows.npy", np.array([1, 5, 9, 22])), _read_subset),
        Parser("txt", _write_texts(".txt"), _read_texts(".txt")),
        Parser("jsonl", _write_texts(".jsonl"), _read_texts(".jsonl")),
        Parser("parquet", _write_texts(".parquet"), _read_texts(".parquet")),
        Parser("images", _write_images, _read_images),
        Parser("image-zip", _write_image_zip, _read_image_zip),
        Parser("rasters", _write_rasters, _read_rasters),
    )
}
