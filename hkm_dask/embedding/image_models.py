"""Image models from folders of transformers or timm, each with the preprocessing that its library gives it."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hkm_dask.embedding.embed import Encoder
from hkm_dask.embedding.models import (
    enough_memory,
    folder_fingerprint,
    model_folder,
    pick_device,
    quiet_transformers,
    require,
)
from hkm_dask.errors import InputError

EXTRA = "images"
PREPROCESSOR = "preprocessor_config.json"
# Height and width of two gray images of different proportions, which show what size a model sees.
_PROBES = ((64, 64), (64, 96))
# What the libraries raise on folders that they cannot open.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError)


class _TorchEncoder(Encoder):
    """What encoders of images by a torch model have in common."""

    def __init__(self, model: Any, device: str | None) -> None:
        self._torch = require("torch", EXTRA)
        self.device = pick_device(self._torch, device)
        self._model = model.eval().to(self.device)
        probes = self.prepare([np.full((*shape, 3), 128, np.uint8) for shape in _PROBES])
        shapes = {probe.shape for probe in probes}
        if len(shapes) > 1:
            raise InputError(
                f"model={self.name} should bring all images to one size, it makes {sorted(shapes)} of {_PROBES}; "
                f"add crop_size to {PREPROCESSOR}"
            )
        self.n_features = self.encode(probes[:1]).shape[1]

    @abstractmethod
    def prepare(self, items: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Scale, crop and standardize images: float32 arrays of shape (3, height, width)."""

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Run the model on one batch."""
        with enough_memory(self._torch, self.device), self._torch.inference_mode():
            pixels = self._torch.from_numpy(np.stack(prepared)).to(self.device, self._model.dtype)
            embedded: np.ndarray = self._embed(pixels).flatten(1).float().cpu().numpy()
        return embedded

    @abstractmethod
    def _embed(self, pixels: Any) -> Any:
        """One vector for each image of a batch, on the device."""


class TransformersEncoder(_TorchEncoder):
    """An image model of transformers, such as DINOv2, from its folder.

    The embedding is what the model's family is meant to be compared by: the projected features of a model that has them
    (CLIP, SigLIP), else the class token after the last layer (ViT, DINOv2), else the model's own pooling (ConvNeXt,
    Swin).

    Parameters
    ----------
    model : path-like
        The folder, with ``config.json``, weights and ``preprocessor_config.json``.
    device : str, optional
        E.g. ``"cuda:1"``; by default CUDA where torch sees a GPU, else the CPU.

    Raises
    ------
    InputError
        When transformers is missing, the folder lacks something, weights are missing that would be random, or its
        preprocessing does not bring images to one size.
    """

    def __init__(self, model: str | os.PathLike[str], *, device: str | None = None) -> None:
        folder, _ = model_folder(model)
        if not (folder / PREPROCESSOR).exists():
            raise InputError(f"model={folder} has no {PREPROCESSOR}; copy it from where the model is")
        require("torch", EXTRA)
        transformers = require("transformers", EXTRA)
        try:
            with quiet_transformers():
                # Pillow's arithmetic, so that the bits do not depend on whether torchvision is installed: `use_fast`
                # chooses it before transformers 5, `backend` since.
                self._processor = transformers.AutoImageProcessor.from_pretrained(
                    str(folder), local_files_only=True, use_fast=False, backend="pil"
                )
                loaded, facts = transformers.AutoModel.from_pretrained(
                    str(folder), local_files_only=True, output_loading_info=True
                )
        except _UNREADABLE as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"model={folder} should be a model of transformers ({reason}); check the folder"
            ) from error
        names = {name for name, _ in loaded.named_parameters()}
        self._projects = hasattr(loaded, "get_image_features")
        self._has_token = any(name.endswith("cls_token") for name in names)
        missing = [name for name in facts["missing_keys"] if not (self._has_token and name.startswith("pooler."))]
        if missing:
            raise InputError(
                f"model={folder}: n_missing_weights={len(missing)} should be 0, e.g. {min(missing)}; copy the model "
                "again"
            )
        self.name = str(folder)
        self.fingerprint = folder_fingerprint(folder, "transformers-2")
        super().__init__(loaded, device)

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

    Parameters
    ----------
    model : path-like
        The folder, as timm's models lie on the Hugging Face hub: ``config.json`` with ``architecture`` and
        ``pretrained_cfg``, and weights.
    device : str, optional
        E.g. ``"cuda:1"``; by default CUDA where torch sees a GPU, else the CPU.

    Raises
    ------
    InputError
        When timm or the torchvision it needs is missing, or the folder lacks something.
    """

    def __init__(self, model: str | os.PathLike[str], *, device: str | None = None) -> None:
        folder, _ = model_folder(model)
        require("torch", EXTRA)
        timm = require("timm", EXTRA)
        try:
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
        except _UNREADABLE as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"model={folder} should be a model of timm ({reason}); check the folder") from error
        loaded.dtype = next(loaded.parameters()).dtype
        self._transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
        self.name = str(folder)
        self.fingerprint = folder_fingerprint(folder, "timm-2")
        super().__init__(loaded, device)

    def prepare(self, items: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Bring images to what the model sees, by timm's transform for it."""
        return [self._transform(Image.fromarray(item)).numpy() for item in items]

    def _embed(self, pixels: Any) -> Any:
        return self._model(pixels)
