"""Model folders are found and identified, and missing files are named."""

import sys
from pathlib import Path

import pytest

from hkm_dask.embedding.models import folder_fingerprint, model_folder, pick_device, require
from hkm_dask.errors import InputError


def test_a_model_folder_has_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model=.* has no config.json; give the folder"):
        model_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert model_folder(tmp_path) == (tmp_path, {"model_type": "vit"})


def test_the_fingerprint_follows_content_names_and_use(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = folder_fingerprint(tmp_path)
    for ignored in ("README.md", ".cache/x", "__pycache__/y.pyc"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_text("z")
    assert folder_fingerprint(tmp_path) == before != folder_fingerprint(tmp_path, "another use")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights").write_bytes(bytes(100))
    with_weights = folder_fingerprint(tmp_path)
    (tmp_path / "sub" / "weights").write_bytes(bytes(99) + b"1")
    altered = folder_fingerprint(tmp_path)
    (tmp_path / "sub" / "weights").rename(tmp_path / "sub" / "other")
    assert len({before, with_weights, altered, folder_fingerprint(tmp_path)}) == 4


def test_a_package_that_fails_on_import_is_told_from_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('built for another torch')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"broken_module cannot be imported \(RuntimeError: built for another torch\)"):
        require("broken_module", "images")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is not installed; pip install 'hkm-dask\[images\]'"):
        require("timm", "images")
    assert require("json", "text").loads("1") == 1


def test_devices_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra images")
    assert pick_device(torch, "cpu").type == "cpu"
    assert pick_device(torch, None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="device=abacus should be one that torch finds"):
        pick_device(torch, "abacus")
