"""Small files that would need gigabytes or minutes are refused at once, in a process with 1 GiB of free memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BOMBS = """
import io, json, os, struct, sys, time, tracemalloc, zipfile, zlib
from pathlib import Path
import numpy as np
import zarr
from PIL import Image
import rasterio
from hkm_dask.config import Config
from hkm_dask.data.rows import as_rows
from hkm_dask.embedding.images import open_images
from hkm_dask.embedding.raster_patches import open_windows
from hkm_dask.embedding.texts import open_texts
from hkm_dask.errors import HkmError
from hkm_dask.hierarchy.source import open_source
from hkm_dask.ingestion.ingest import ingest
from pipelines.fuzz.bench import limit_memory

MIB = 2**20
ROWS = np.ones((3, 2), np.float32)

def aliases(folder):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(f'*a{n - 1}' for _ in range(9))}]" for n in range(1, 16)]
    folder.joinpath("a.yaml").write_text("\\n".join([*lines, "levels: [{n_clusters: *a15}]"]))
    Config.from_yaml(folder / "a.yaml")

def merges(folder):
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n}\\n  <<: [{', '.join(f'*a{n - 1}' for _ in range(9))}]" for n in range(1, 9)]
    folder.joinpath("a.yaml").write_text("\\n".join([*lines, "levels: [{n_clusters: 3}]"]))
    Config.from_yaml(folder / "a.yaml")

def deep_yaml(folder):
    folder.joinpath("a.yaml").write_text("levels: " + "[" * 100_000)
    Config.from_yaml(folder / "a.yaml")

def deep_json(folder):
    folder.joinpath("a.json").write_text("{}")
    Config.from_json("[" * 10**6)

def many_levels(folder):
    folder.joinpath("a.yaml").write_text("levels:\\n" + "  - {n_clusters: 5}\\n" * 2_500)
    Config.from_yaml(folder / "a.yaml")

def many_levels_in_python(folder):
    Config(levels=[{"n_clusters": 5}] * 20_000)

def long_yaml(folder):
    with folder.joinpath("a.yaml").open("wb") as file:
        file.truncate(2**40)
    Config.from_yaml(folder / "a.yaml")

def long_number(folder):
    folder.joinpath("a.yaml").write_text("seed: 0x" + "f" * 100_000)
    Config.from_yaml(folder / "a.yaml")

def large_subset(folder):
    with folder.joinpath("a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (2**40,)})
        file.truncate(file.tell() + 2**43)
    open_source(ROWS, Config(subset=str(folder / "a.npy"), levels=[{"n_clusters": 1}]))

def packed(folder, name, shape, dtype="<f4"):
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
            left = int(np.prod(shape)) * np.dtype(dtype).itemsize
            while left:
                left -= file.write(bytes(min(left, 8 * MIB)))
        if name != "x":
            np.save(buffer := io.BytesIO(), ROWS)
            archive.writestr("x.npy", buffer.getvalue())

def npz(folder):
    packed(folder, "x", (5 * MIB, 4))
    ingest(folder / "a.npz", folder / "pool.zarr", column="x")

def npz_ids(folder):
    packed(folder, "ids", (3, ), "<U5000000")
    ingest(folder / "a.npz", folder / "pool.zarr", column="x", ids="ids")

def bzip_npz(folder):
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", bytes(64 * MIB))
    ingest(folder / "a.npz", folder / "pool.zarr")

def png(width, height):
    raw = zlib.compressobj(1)
    line = bytes(1 + 3 * width)
    data = b"".join(raw.compress(line) for _ in range(min(height, 50))) + raw.flush()
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")

def image(folder):
    folder.joinpath("a.png").write_bytes(png(13_000, 13_000))
    open_images(folder).read(0, 1)

def image_in_zip(folder):
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("a.png", "w") as file:
            for _ in range(65):
                file.write(bytes(8 * MIB))
    open_images(folder / "a.zip").read(0, 1)

def sparse_image(folder):
    with folder.joinpath("a.png").open("wb") as file:
        file.truncate(2**40)
    open_images(folder).read(0, 1)

def tiff(folder):
    options = {"driver": "GTiff", "count": 1, "height": 2**16, "width": 2**16, "dtype": "uint8"}
    tiles = {"tiled": True, "blockxsize": 2**15, "blockysize": 2**15, "sparse_ok": True}
    with rasterio.open(folder / "a.tif", "w", **options, **tiles):
        pass
    open_windows(folder / "a.tif", size=16)

def many_patches(folder):
    options = {"driver": "GTiff", "count": 1, "height": 2**20, "width": 2**20, "dtype": "uint8"}
    with rasterio.open(folder / "a.tif", "w", tiled=True, sparse_ok=True, bigtiff="yes", **options):
        pass
    open_windows(folder / "a.tif", size=2, max_missing=0.5)

def line(folder, name="a.txt"):
    with folder.joinpath(name).open("wb") as file:
        file.truncate(2**40)
    open_texts(folder / name)

def json_line(folder):
    line(folder, "a.jsonl")

def wide_json(folder):
    folder.joinpath("a.jsonl").write_text('{"text": "a", "b": [' + "{}," * 5 * 10**6 + "0]}\\n")
    open_texts(folder / "a.jsonl").read(0, 1)

def metadata(folder):
    folder.joinpath("a.zarr").mkdir()
    with folder.joinpath("a.zarr", "zarr.json").open("wb") as file:
        file.truncate(2**40)
    as_rows(folder / "a.zarr")

def chunk(folder):
    array = zarr.create_array(str(folder / "a.zarr"), shape=(4, 4), chunks=(4, 4), dtype="f4", zarr_format=2)
    array[:] = 1
    text = (folder / "a.zarr" / ".zarray").read_text()
    (folder / "a.zarr" / ".zarray").write_text(text.replace("4,\\n", f"{2**40},\\n", 3))
    rows = as_rows(folder / "a.zarr")
    rows.read(0, 1)

made = sys.argv[1:]
limit_memory()
for name in made:
    folder = Path("work", name)
    folder.mkdir(parents=True)
    start = time.process_time()
    try:
        globals()[name](folder)
        told = "worked"
    except HkmError as error:
        told = str(error)
    except BaseException as error:
        told = f"defect {type(error).__name__}: {error}"[:300]
    left = sorted(path.name for path in folder.iterdir() if path.name[:2] != "a.")
    print(json.dumps([name, told, left]), flush=True)
"""

REFUSALS = {
    "aliases": "config='work/aliases/a.yaml' should be a configuration; it has more than 20,000 values",
    "merges": "config='work/merges/a.yaml' should be a configuration; it has more than 20,000 values",
    "deep_yaml": "config='work/deep_yaml/a.yaml' should be a configuration; it is nested deeper than 20",
    "deep_json": "should be a JSON object; take it from Config.to_json",
    "many_levels": "levels=2500 levels should be at most 64; leave some out",
    "many_levels_in_python": "levels=20000 levels should be at most 64; leave some out",
    "long_yaml": "should be a configuration; it has 1,099,511,627,776 bytes, more than 262,144",
    "long_number": "should be a configuration; the value in line 1 has 100,002 characters, more than 4,096",
    "large_subset": "a.npy should be at most 3 row numbers, it has 1099511627776; drop some",
    "npz": "a.npz[x]: n_bytes=83886208 should be at most 100 times the ",
    "npz_ids": "a.npz[ids]: dtype=<U5000000 should have at most 16777216 bytes; give shorter ids",
    "bzip_npz": "a.npz[x.npy] is compressed with a method that NumPy does not use; save it with numpy.savez",
    "image": "image=a.png should be readable, but is not (it has 13000 × 13000 pixels, more than 89,478,485; scale it",
    "image_in_zip": "image=a.png should be readable, but is not (it has 545,259,520 bytes, more than 536,870,912)",
    "sparse_image": "image=a.png should be readable, but is not (it has 1,099,511,627,776 bytes, more than",
    "tiff": "a.tif: n_block_bytes=1073741824 should be at most 536870912, decoded at once; gdal_translate -co TIL",
    "many_patches": "n_patches=274877906944 should be at most 10000000000; give a larger step",
    "line": "a.txt: the line from byte 0 on should have at most 16777216 bytes; put each text on a line of its own",
    "json_line": "a.jsonl: the line from byte 0 on should have at most 16777216 bytes",
    "wide_json": "line 1 of /",
    "metadata": "zarr.json is damaged: not valid JSON (it has 1,099,511,627,776 bytes, more than 67,108,864)",
    "chunk": "cannot be read",
}


@pytest.mark.faults
@pytest.mark.timeout(120)
def test_bombs_are_refused_before_the_work(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BOMBS, *REFUSALS]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
    )
    told = {name: (text, left) for name, text, left in map(json.loads, done.stdout.splitlines())}
    assert list(told) == list(REFUSALS), done.stderr[-3000:]
    wrong = {name: told[name] for name, wanted in REFUSALS.items() if wanted not in told[name][0] or told[name][1]}
    assert not wrong
    assert all("\n" not in text for text, _ in told.values())
