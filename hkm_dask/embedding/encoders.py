"""Choice of the encoder for texts or images: a model folder, or a descriptor that needs no weights."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from hkm_dask.embedding.descriptors import Cells, Hog
from hkm_dask.embedding.embed import Encoder
from hkm_dask.embedding.models import (
    enough_memory,
    folder_fingerprint,
    loading,
    model_folder,
    pick_device,
    quiet_transformers,
    require,
)
from hkm_dask.errors import InputError
from hkm_dask.events import emit

__all__ = ["DESCRIPTORS", "Cells", "Hog", "TextEncoder", "image_encoder", "text_encoder"]

#: Encoders of images that need no weights, by their names in `image_encoder`.
DESCRIPTORS: dict[str | os.PathLike[str], type[Encoder]] = {"hog": Hog, "cells": Cells}
EXTRA = "text"
TEXT_BATCH = 32
# Batches of texts that are sorted by length together, to reduce padding.
SORTED_BATCHES = 16


def image_encoder(model: str | os.PathLike[str], *, device: str | None = None) -> Encoder:
    """Open an encoder of images, uint8 arrays of shape (height, width, 3).

    `model` is "hog" or "cells", a descriptor that needs no weights (edges and colors, or colors only; see
    `hkm_dask.embedding.descriptors`), or the folder of a transformers or timm model, which runs on `device`, e.g.
    ``"cuda:1"``, by default on CUDA if torch sees a GPU, otherwise on the CPU. Raises InputError if the folder does not
    exist or the library it needs is not installed.

    >>> image_encoder("hog").n_features, image_encoder("cells").n_features
    (372, 192)
    """
    if model in DESCRIPTORS:
        return DESCRIPTORS[model]()
    from hkm_dask.embedding.image_models import TimmEncoder, TransformersEncoder

    folder, config = model_folder(model)
    kind = TimmEncoder if "architecture" in config and "model_type" not in config else TransformersEncoder
    return kind(folder, device)


def text_encoder(
    model: str | os.PathLike[str], *, batch_size: int = TEXT_BATCH, device: str | None = None
) -> TextEncoder:
    """Open an encoder of texts; see `TextEncoder`."""
    return TextEncoder(model, batch_size=batch_size, device=device)


class TextEncoder(Encoder):
    """A sentence-transformers model loaded from its folder, with ``modules.json``.

    For a plain transformers folder it uses mean pooling, with a warning. The model truncates texts longer than its
    ``max_seq_length`` tokens and processes `batch_size` at once. Give `embed` several times as many: they are sorted
    by length to reduce padding. `device` is as in `image_encoder`. Raises InputError if the folder is not a model, or
    sentence-transformers is not installed.
    """

    def __init__(
        self, model: str | os.PathLike[str], *, batch_size: int = TEXT_BATCH, device: str | None = None
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} should be at least 1; leave it out")
        folder, _ = model_folder(model)
        sentence_transformers = require("sentence_transformers", EXTRA)
        self._torch = require("torch", EXTRA)
        self.device = pick_device(self._torch, device)
        if not (folder / "modules.json").exists():
            emit("warning", message=f"{folder} has no modules.json: its tokens are averaged")
        with loading(folder, "sentence-transformers"), quiet_transformers():
            self._model = sentence_transformers.SentenceTransformer(
                str(folder), device=str(self.device), local_files_only=True
            )
        self.batch_size = batch_size
        self.name = str(folder)
        self.fingerprint = folder_fingerprint(folder, "text-1")
        self.n_features = self.encode(["a"]).shape[1]

    def encode(self, prepared: Sequence[str]) -> np.ndarray:
        """Embed texts."""
        with enough_memory(self._torch, self.device):
            embedded = self._model.encode(
                list(prepared), batch_size=self.batch_size, convert_to_numpy=True, show_progress_bar=False
            )
        return np.asarray(embedded, dtype=np.float32)
