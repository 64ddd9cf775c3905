"""Model folders: optional dependencies, fingerprints and devices."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hkm_dask.data import layout
from hkm_dask.data.files import careful, read_json
from hkm_dask.errors import ComputeError, InputError


def require(module: str, extra: str) -> Any:
    """Import an optional package; if that fails, the InputError names the extra of this package to install.

    >>> require("no_such_module", "text")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: no_such_module is not installed; pip install 'hkm-dask[text]'
    """
    try:
        return import_module(module)
    # Some packages fail in other ways: torchvision with RuntimeError if it was built for another torch.
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        problem = "is not installed" if missing else f"cannot be imported ({type(error).__name__}: {error})"
        raise InputError(f"{module} {problem}; pip install 'hkm-dask[{extra}]'") from error


def model_folder(model: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Return the absolute path of a model folder and its ``config.json``; raises InputError if it has none.

    >>> model_folder("nowhere")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: model=...nowhere is not a folder; give the folder that `save_pretrained` wrote ...
    """
    folder = Path(model).absolute()
    config = read_json(folder / "config.json")
    if config is None:
        fact = "has no config.json" if folder.is_dir() else "is not a folder"
        raise InputError(f"model={folder} {fact}; give the folder that `save_pretrained` wrote or `hf download` made")
    return folder, config


def folder_fingerprint(folder: Path, use: str = "") -> str:
    """Identify a model by the content of its folder (SHA-256) and by `use`, which changes when the embeddings do.

    Hidden files, bytecode caches and Markdown files are ignored.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.json").write_text("{}")
    ...     before = folder_fingerprint(Path(folder))
    ...     _ = Path(folder, "README.md").write_text("about")
    ...     before == folder_fingerprint(Path(folder)), len(before)
    (True, 64)
    """
    digest = hashlib.sha256(f"{use}\n".encode())
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or path.suffix == ".md" or any(p.startswith(".") or p == "__pycache__" for p in parts):
            continue
        digest.update(f"{'/'.join(parts)}\n{path.stat().st_size}\n".encode())
        with careful(lambda path=path: path.open("rb"), f"reading {path}") as file:  # type: ignore[misc]
            while block := file.read(layout.MIB):
                digest.update(block)
    return digest.hexdigest()


def pick_device(torch: Any, device: str | None) -> Any:
    """Choose the `torch.device` of a model: the given one, otherwise CUDA if torch sees a GPU, otherwise the CPU.

    Raises InputError if torch does not have the given device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={device} should be one that torch finds ({error}); use cpu, or cuda") from error
    return place


@contextmanager
def enough_memory(torch: Any, device: Any) -> Iterator[None]:
    """Turn torch's error for a batch that does not fit on a device into a ComputeError with a remedy."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ComputeError(
            f"the memory of {device} is too small for one batch; lower batch_size (--batch-size)"
        ) from error


@contextmanager
def loading(folder: Path, library: str) -> Iterator[None]:
    """Turn a library's error for an invalid model folder into an InputError with the error's first line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"model={folder} should be a model of {library} ({reason}); check the folder") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and log messages while a model is loaded; problems are checked separately."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
