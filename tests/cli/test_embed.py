"""`hkm embed` on texts, images and rasters."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hkm_dask.data.pool import open_pool
from hkm_dask.embedding.descriptors import Cells
from tests.cli.results import Result
from tests.embedding.pools import photographs, read_all, tidy


def test_the_command_embeds_images_and_knows_them_again(tmp_path: Path, hkm: Callable[..., Result]) -> None:
    folder = photographs(tmp_path / "photos", 5, 64)
    code, out, err = hkm("embed", "image", folder, tmp_path / "p.zarr", "--model", "hog", "--dtype", "float32")
    assert code == 0, err
    assert "samples       5" in out
    assert "features      372" in out
    assert "float32" in out
    ids = open_pool(tmp_path / "p.zarr").ids()
    assert ids is not None
    assert ids.tolist() == [f"{number:03}.jpg" for number in range(5)]
    code, again, err = hkm("embed", "image", folder, tmp_path / "p.zarr", "--model", "hog", "--dtype", "float32")
    assert (code, again) == (0, out)
    assert "already complete" in err
    code, _, err = hkm("embed", "image", folder, tmp_path / "p.zarr", "--model", "hog")
    assert code == 1
    assert "Error: dtype: float32 there, float16 asked for" in err
    assert hkm("embed", "image", folder, tmp_path / "p.zarr", "--model", "hog", "--restart")[0] == 0


def test_the_command_embeds_rasters_with_their_places(tmp_path: Path, hkm: Callable[..., Result]) -> None:
    earth = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(earth).save(tmp_path / "earth.png")
    where = ("--bounds", -180, -90, 180, 90)
    words = ("raster", tmp_path / "earth.png", tmp_path / "p.zarr", "--size", 20, "--step", 10, "--model", "cells")
    code, out, err = hkm("embed", *words, *where)
    assert code == 0, err
    assert "samples       15" in out
    assert "columns       raster, top, left, longitude, latitude" in out
    pool = open_pool(tmp_path / "p.zarr")
    wanted = Cells()([earth[top : top + 20, left : left + 20] for top in (0, 10, 20) for left in range(0, 50, 10)])
    np.testing.assert_array_equal(read_all(pool), wanted)
    np.testing.assert_allclose(pool.column("longitude"), np.tile(np.arange(-120, 121, 60), 3))
    np.testing.assert_allclose(pool.column("latitude"), np.repeat([45, 0, -45], 5))
    assert pool.ids(np.array([6])) == "earth.png[20x20+10+10]"
    code, again, err = hkm("embed", *words, *where)
    assert (code, again) == (0, out)
    assert "already complete" in err
    code, _, err = hkm("embed", *words, "--bounds", 0, 0, 10, 10)
    assert code == 1
    assert "Error: source: " in err
    code, _, err = hkm("embed", *words, *where, "--restart", "--bands", "2")
    assert code == 0, err
    gray = Cells()([np.repeat(earth[:20, :20, 1:2], 3, axis=2)])
    np.testing.assert_array_equal(read_all(open_pool(tmp_path / "p.zarr"))[:1], gray)
    # Every problem is told at once, and before anything is written.
    code, _, err = hkm("embed", *words[:2], tmp_path / "q.zarr", *words[3:], "--values", 5, 5, "--max-missing", 2)
    assert (code, err.count("Error: ")) == (1, 2)
    assert not (tmp_path / "q.zarr").exists()
    assert hkm("embed", *words, "--bands", "red")[0] == 2
    assert hkm("embed", "raster", tmp_path / "p.zarr", "--size", 20, "--model", "cells")[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("image", "photos", "--model", "hogg"),
            "model=hogg should be a model folder, hog or cells; did you mean hog?",
        ),
        (("raster", "photos", "--size", "8", "--model", "nowhere"), "nowhere is not a folder; give"),
        (("raster", "earth.tif", "--size", "8", "--model", "cells"), "earth.tif does not exist"),
        (("image", "photos", "--model", "nowhere"), "nowhere is not a folder; give"),
        (("image", "nothing", "--model", "hog"), "nothing does not exist; check the path"),
        (("text", "photos", "--model", "nowhere"), "nowhere is not a folder; give"),
        (("text", "nothing.txt", "--model", "model"), "nothing.txt does not exist; check the path"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hkm: Callable[..., Result],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", 1, 16)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    code, out, err = hkm("embed", words[0], words[1], "p.zarr", *words[2:])
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert message in err
    tidy(tmp_path, "photos", "model")


@pytest.mark.parametrize("words", [("text",), ("image",), ("raster", "--size", "8")])
def test_what_is_wrong_at_a_glance_is_told_together(
    tmp_path: Path, hkm: Callable[..., Result], words: tuple[str, ...]
) -> None:
    given = (tmp_path / "nothing", tmp_path / "p.zarr", "--model", tmp_path / "nowhere", "--chunk-mb", "-1")
    code, _, err = hkm("embed", *words, *given)
    assert code == 1
    wanted = ["nothing does not exist", "nowhere is not a folder", "--chunk-mb=-1.0 should be above 0"]
    assert [told in line for told, line in zip(wanted, err.splitlines(), strict=True)] == [True] * 3


def test_a_missing_package_is_named_with_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hkm: Callable[..., Result]
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # so that importing it fails
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"size": {"height": 8, "width": 8}}')
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    photographs(tmp_path / "photos", 1, 16)
    for kind, source, extra in (("text", "a.txt", "text"), ("image", "photos", "images")):
        code, _, err = hkm("embed", kind, tmp_path / source, tmp_path / "p.zarr", "--model", tmp_path / "model")
        assert code == 1
        assert err.splitlines()[-1].endswith(f"is not installed; pip install 'hkm-dask[{extra}]'")
    tidy(tmp_path, "model", "a.txt", "photos")
