"""Image models from transformers or timm folders, each with the preprocessing of its library."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from hkm_dask.embedding.embed import Encoder
from hkm_dask.embedding.models import (
    enough_memory,
    folder_fingerprint,
    loading,
    pick_device,
    quiet_transformers,
    require,
)
from hkm_dask.errors import InputError

EXTRA = "images"
PREPROCESSOR = "preprocessor_config.json"
# Height and width of two gray images of different aspect ratios, which show the input size of a model.
_PROBES = ((64, 64), (64, 96))


class _TorchEncoder(Encoder):
    """Base class of torch image encoders; `prepare` returns float32 arrays (3, height, width)."""

    use: ClassVar[str]  # changed whenever the same model gives other embeddings

    def __init__(self, folder: Path, device: str | None) -> None:
        self.name = str(folder)
        self._torch = require("torch", EXTRA)
        self.device = pick_device(self._torch, device)
        self._model = self._load(folder).eval().to(self.device)
        self.fingerprint = folder_fingerprint(folder, self.use)
        probes = self.prepare([np.full((*shape, 3), 128, np.uint8) for shape in _PROBES])
        shapes = {probe.shape for probe in probes}
        if len(shapes) > 1:
            raise InputError(
                f"model={self.name} should bring all images to one size, it makes {sorted(shapes)} of {_PROBES}; "
                f"add crop_size to {PREPROCESSOR}"
            )
        self.n_features = self.encode(probes[:1]).shape[1]

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        with enough_memory(self._torch, self.device), self._torch.inference_mode():
            pixels = self._torch.from_numpy(np.stack(prepared)).to(self.device, self._model.dtype)
            embedded: np.ndarray = self._embed(pixels).flatten(1).float().cpu().numpy()
        return embedded

    @abstractmethod
    def _load(self, folder: Path) -> Any:
        """Load the model of a folder and its preprocessing."""

    @abstractmethod
    def _embed(self, pixels: Any) -> Any:
        """Return one vector per image of a batch, on the device."""


class TransformersEncoder(_TorchEncoder):
    """An image model of transformers, such as DINOv2, loaded from its folder.

    The embedding is the one that the model family is compared by: projected features if there are any (CLIP, SigLIP),
    otherwise the class token after the last layer (ViT, DINOv2), otherwise the model's own pooling (ConvNeXt, Swin).

    The folder has ``config.json``, weights and ``preprocessor_config.json``. Raises InputError if transformers is not
    installed, the folder is incomplete, weights are missing and would be random, or the preprocessing does not give all
    images one size.
    """

    use = "transformers-2"

    def _load(self, folder: Path) -> Any:
        if not (folder / PREPROCESSOR).exists():
            raise InputError(f"model={folder} has no {PREPROCESSOR}; copy it from the model's source")
        transformers = require("transformers", EXTRA)
        with loading(folder, "transformers"), quiet_transformers():
            # Pillow's arithmetic, so that results do not depend on whether torchvision is installed: `use_fast`
            # selects it before transformers 5, `backend` since then.
            self._processor = transformers.AutoImageProcessor.from_pretrained(
                str(folder), local_files_only=True, use_fast=False, backend="pil"
            )
            loaded, facts = transformers.AutoModel.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True
            )
        names = {name for name, _ in loaded.named_parameters()}
        self._projects = hasattr(loaded, "get_image_features")
        self._has_token = any(name.endswith("cls_token") for name in names)
        missing = [name for name in facts["missing_keys"] if not (self._has_token and name.startswith("pooler."))]
        if missing:
            raise InputError(
                f"model={folder}: n_missing_weights={len(missing)} should be 0, e.g. {min(missing)}; copy the model "
                "again"
            )
        return loaded

    def prepare(self, items: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Preprocess images for the model with the image processor of its folder."""
        pixels = self._processor(images=list(items), input_data_format="channels_last")["pixel_values"]
        return [np.asarray(image, dtype=np.float32) for image in pixels]

    def _embed(self, pixels: Any) -> Any:
        if self._projects:
            features = self._model.get_image_features(pixel_values=pixels)
            # A tensor before transformers 5, an output that holds it since then.
            return getattr(features, "pooler_output", features)
        output = self._model(pixel_values=pixels)
        if self._has_token:
            return output.last_hidden_state[:, 0]
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state.mean(1) if pooled is None else pooled


class TimmEncoder(_TorchEncoder):
    """An image model of timm, loaded from its folder: its features before the classifier.

    The folder has the form of timm models on the Hugging Face hub: ``config.json`` with ``architecture`` and
    ``pretrained_cfg``, and weights. Raises InputError if timm or torchvision is not installed, or the folder is
    incomplete.
    """

    use = "timm-2"

    def _load(self, folder: Path) -> Any:
        timm = require("timm", EXTRA)
        with loading(folder, "timm"):
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
        loaded.dtype = next(loaded.parameters()).dtype
        self._transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
        return loaded

    def prepare(self, items: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Preprocess images with timm's transform for the model."""
        return [self._transform(Image.fromarray(item)).numpy() for item in items]

    def _embed(self, pixels: Any) -> Any:
        return self._model(pixels)
