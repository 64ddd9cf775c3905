"""Image models from folders of transformers or timm, each with the preprocessing that its library gives it."""

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
# Height and width of two gray images of different proportions, which show what size a model sees.
_PROBES = ((64, 64), (64, 96))


class _TorchEncoder(Encoder):
    """What encoders of images by a torch model have in common; `prepare` makes float32 arrays (3, height, width)."""

    use: ClassVar[str]  # changes when the embeddings of the same model do

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
        """Open the model of a folder, and what prepares images for it."""

    @abstractmethod
    def _embed(self, pixels: Any) -> Any:
        """One vector for each image of a batch, on the device."""


class TransformersEncoder(_TorchEncoder):
    """An image model of transformers, such as DINOv2, from its folder.

    The embedding is what the model's family is meant to be compared by: the projected features of a model that has them
    (CLIP, SigLIP), else the class token after the last layer (ViT, DINOv2), else the model's own pooling (ConvNeXt,
    Swin).

    The folder has ``config.json``, weights and ``preprocessor_config.json``. `InputError` where transformers is
    missing, the folder lacks something, weights are missing that would be random, or its preprocessing does not bring
    images to one size.
    """

    use = "transformers-2"

    def _load(self, folder: Path) -> Any:
        if not (folder / PREPROCESSOR).exists():
            raise InputError(f"model={folder} has no {PREPROCESSOR}; copy it from the model's source")
        transformers = require("transformers", EXTRA)
        with loading(folder, "transformers"), quiet_transformers():
            # Pillow's arithmetic, so that the bits do not depend on whether torchvision is installed: `use_fast`
            # chooses it before transformers 5, `backend` since.
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
        """Bring images to what the model sees, by the image processor of its folder."""
        pixels = self._processor(images=list(items), input_data_format="channels_last")["pixel_values"]
        return [np.asarray(image, dtype=np.float32) for image in pixels]

    def _embed(self, pixels: Any) -> Any:
        if self._projects:
            features = self._model.get_image_features(pixel_values=pixels)
            # Until transformers 5 a tensor, since then an output that holds it.
            return getattr(features, "pooler_output", features)
        output = self._model(pixel_values=pixels)
        if self._has_token:
            return output.last_hidden_state[:, 0]
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state.mean(1) if pooled is None else pooled


class TimmEncoder(_TorchEncoder):
    """An image model of timm from its folder: its features before the classifier.

    The folder is as timm's models lie on the Hugging Face hub: ``config.json`` with ``architecture`` and
    ``pretrained_cfg``, and weights. `InputError` where timm or torchvision is missing, or the folder lacks something.
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
        """Bring images to what the model sees, by timm's transform for it."""
        return [self._transform(Image.fromarray(item)).numpy() for item in items]

    def _embed(self, pixels: Any) -> Any:
        return self._model(pixels)
