"""The satellite pipeline, on an island of a few pixels and, if installed, on the Blue Marble."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

import hkm_dask as hkm
from hkm_dask import cli
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import InputError
from pipelines.satellite import command as satellite

FOLDER = Path(__file__).parents[2] / "pipelines" / "satellite"
SEA, SHALLOW, ICE, SAND, FOREST = (0, 2, 53), (10, 90, 130), (240, 245, 250), (253, 214, 153), (37, 57, 3)
TINY = hkm.Config.from_flags((60, 20, 6), n_resamples=2, resample_size=2, max_iter=5)


def patch(*colors: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Stripes of some colors, as wide as each other."""
    return np.array(colors, np.uint8).repeat(60 // len(colors), axis=0)[None].repeat(16, axis=0)


def test_kinds_by_hand() -> None:
    cases = {
        "open sea": [(SEA,), (SHALLOW, SEA)],
        "ice and snow": [(ICE,)],
        "sea with ice": [(SEA, ICE)],
        "coast": [(SEA, FOREST), (SAND, SHALLOW, SEA), (ICE, SAND, SEA)],
        "land with snow": [(ICE, SAND), (ICE, ICE, FOREST)],
        "desert and steppe": [(SAND,), (SAND, SAND, FOREST)],
        "green land": [(FOREST,), (FOREST, FOREST, SAND)],
    }
    wanted = [kind for kind, patches in cases.items() for _ in patches]
    found = satellite.kinds_of(np.stack([patch(*colors) for patches in cases.values() for colors in patches]))
    assert [satellite.KINDS[number] for number in found] == wanted
    assert set(cases) == set(satellite.KINDS)


@pytest.fixture(scope="module")
def island(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sea of 256 × 256 pixels with a little sand in it, as a GeoTIFF in meters."""
    rng = np.random.default_rng(0)
    pixels = np.full((256, 256, 3), SEA, np.int64) + rng.integers(0, 3, (256, 256, 3))
    pixels[90:130, 100:150] = np.array(SAND) - rng.integers(0, 60, (40, 50, 1))
    path = tmp_path_factory.mktemp("rasters") / "island.tif"
    shape = {"driver": "GTiff", "count": 3, "height": 256, "width": 256, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", crs="EPSG:32631", transform=Affine(10, 0, 5e5, 0, -10, 0), **shape) as raster:
        raster.write(pixels.astype(np.uint8).transpose(2, 0, 1))
    return path


@pytest.fixture(scope="module")
def made(island: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    out = tmp_path_factory.mktemp("a run") / "out"
    return out, satellite.run([island], out, step=8, config=TINY, n_drawn=120)


def test_an_island_is_found(island: Path, made: tuple[Path, object]) -> None:
    out, summary = made
    assert (summary.n_patches, summary.n_clusters, summary.n_drawn) == (31**2, (60, 20, 6), 120)  # type: ignore[attr-defined]
    assert all(path.exists() for path in summary.files)  # type: ignore[attr-defined]
    pool = open_pool(out / "pool.zarr")
    at = np.stack([pool.column("top"), pool.column("left")], axis=1)
    shows_sand = ((at + 16 > (90, 100)) & (at < (130, 150))).all(axis=1)
    rows = pq.read_table(out / "subset.parquet")["row"].to_numpy()
    assert shows_sand.mean() < 0.06
    assert shows_sand[rows].mean() > 0.25


def test_the_subset_tells_places(made: tuple[Path, object]) -> None:
    table = pq.read_table(made[0] / "subset.parquet").to_pydict()
    corners = zip(table["left"], table["top"], strict=True)
    assert table["id"] == [f"island.tif[16x16+{left}+{top}]" for left, top in corners]
    assert set(table["raster"]) == {0}
    # One degree along the equator is 111.32 km, and 10 m a pixel; zone 31 has its middle at 3 degrees east.
    for name, pixels, sign, origin in (("longitude", "left", 1, 3), ("latitude", "top", -1, 0)):
        middle = (np.array(table[pixels]) + 8) * 10 / 111_320 * sign + origin
        np.testing.assert_allclose(table[name], middle, atol=2e-4)


def test_the_map_lights_what_was_kept(made: tuple[Path, object]) -> None:
    with Image.open(made[0] / "map.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert picture.width == 1600
    sandy = (pixels[..., 0] > 180) & (pixels[..., 2] < pixels[..., 0] - 60)
    sandy[:86] = False  # titles
    left, right = sandy[:, :800].sum(), sandy[:, 800:].sum()
    assert right > 2 * left


def test_a_second_run_goes_on_from_the_first(island: Path, made: tuple[Path, object]) -> None:
    out, _ = made
    before = pq.read_table(out / "subset.parquet")
    stamp = (out / "tree.zarr" / "zarr.json").stat().st_mtime_ns
    satellite.run([island], out, step=8, config=TINY, n_drawn=120)
    assert (out / "tree.zarr" / "zarr.json").stat().st_mtime_ns == stamp
    assert pq.read_table(out / "subset.parquet").equals(before)
    with pytest.raises(InputError, match="source: "):
        satellite.run([island], out, step=16, config=TINY, n_drawn=120)


def test_what_cannot_be_is_refused_before_anything_is_written(island: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"subset=5000 should be at most 961"):
        satellite.run([island], tmp_path / "out", step=8, config=TINY, n_drawn=5000)
    with pytest.raises(InputError, match=r"n_samples=256 should be >= levels.1.n_clusters=2000"):
        satellite.run([island], tmp_path / "out", step=16)
    assert not (tmp_path / "out").exists()


def test_the_command_line(
    island: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, picture = tmp_path / "out", tmp_path / "small.png"
    (tmp_path / "tiny.yaml").write_text(TINY.to_yaml())
    words = [str(island), "--out", str(out), "--config", str(tmp_path / "tiny.yaml"), "--subset", "60"]
    out.mkdir()
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["embed", "raster", str(island), str(out / "pool.zarr"), "--size", "16", "--model", "cells"])
    stamp = (out / "pool.zarr" / "zarr.json").stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", ["run.py", *words, "--picture", str(picture)])
    satellite.main()
    assert (out / "pool.zarr" / "zarr.json").stat().st_mtime_ns == stamp, "what `hkm embed` made was made again"
    assert "256 patches → 60 → 20 → 6 clusters → 60 drawn" in capsys.readouterr().out
    with Image.open(picture) as small:
        assert small.mode == "P"
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path / "nothing.tif"), "--out", str(out)])
    with pytest.raises(SystemExit, match=r"^error: raster=.*nothing.tif does not exist"):
        satellite.main()


def test_the_small_size_is_as_the_readme_says() -> None:
    config = hkm.Config.from_yaml(FOLDER / "blue-marble.yaml")
    assert [level.n_clusters for level in config.levels] == [2000, 300, 40]
    config.check(255 * 127)


def test_sea_and_ice_drown_a_random_draw_of_the_earth_but_not_the_curated_one(tmp_path: Path) -> None:
    if not satellite.BLUE_MARBLE.exists():
        pytest.skip("needs Debian's package xplanet-images")
    config = hkm.Config.from_flags((300, 60, 15), n_resamples=3, resample_size=(4, 2, 2), max_iter=10)
    summary = satellite.run([], tmp_path, size=16, step=16, config=config, n_drawn=400)
    assert summary.n_patches == 128 * 64
    shares = summary.shares
    assert all(sum(of.values()) == pytest.approx(1) for of in shares.values())
    plain = {name: of["open sea"] + of["ice and snow"] for name, of in shares.items()}
    assert plain["pool"] > 0.6
    assert plain["random"] == pytest.approx(plain["pool"], abs=0.08)
    assert plain["curated"] < 0.2
    # Of 400 patches the share of one kind has a standard error of a point and a half, and there are 15 top clusters:
    # so no kind may get rarer, and all together must get commoner by far.
    kinds = ("coast", "land with snow", "desert and steppe")
    assert all(shares["curated"][kind] > shares["pool"][kind] for kind in kinds)
    assert sum(shares["curated"][kind] for kind in kinds) > 2 * sum(shares["pool"][kind] for kind in kinds)
    assert f"{100 * shares['curated']['coast']:.1f} %" in str(summary)
    pool = open_pool(tmp_path / "pool.zarr")
    places = np.stack([pool.column("longitude"), pool.column("latitude")], axis=1)
    np.testing.assert_allclose(
        places[[0, -1]], [[-180 + 8 * 360 / 2048, 90 - 8 * 180 / 1024], [180 - 8 * 360 / 2048, 8 * 180 / 1024 - 90]]
    )
