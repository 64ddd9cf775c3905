"""Image models from folders of transformers or timm, with preprocessing of our own, which needs no torchvision."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hkm_dask.data.files import read_json
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
# How processors of transformers understand a size that is one number.
_SHORTEST_EDGE = ("CLIP", "ChineseCLIP", "Bit")
_SQUARE = ("ViT", "Deit", "DeiT", "Beit", "Siglip")
_UNKNOWN = ("do_pad", "crop_pct", "size_divisor", "do_thumbnail", "do_align_long_axis", "do_splits", "include_top")


@dataclass(frozen=True)
class Preprocessing:
    """What an image goes through before a model sees it: scaling, cropping, standardizing.

    Attributes
    ----------
    shortest : int or None
        Pixels of the shorter side after scaling with proportions kept.
    size : (int, int) or None
        Height and width after scaling without.
    crop : (int, int) or None
        Height and width of what is cut from the middle.
    resample : int
        Pillow's filter: 2 is bilinear, 3 bicubic.
    factor : float
        What pixels are multiplied with.
    mean, std : tuple of 3 floats
        Subtracted from them and divided by afterwards, per channel.
    round_corner : bool
        Where an odd number of pixels is cropped away: whether half a pixel is rounded to the even one, as in
        torchvision, and not cut off, as in transformers.

    Examples
    --------
    >>> preprocessing = Preprocessing(shortest=8, crop=(6, 6), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> preprocessing(np.full((10, 20, 3), 255, np.uint8)).shape
    (3, 6, 6)
    """

    shortest: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    resample: int = 3
    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    round_corner: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what the model sees."""
        shape = self.crop or self.size
        if shape is None:
            raise InputError("crop=None should be given where images keep their proportions; batches need one size")
        return shape

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Prepare one image.

        Parameters
        ----------
        image : np.ndarray of uint8, shape (height, width, 3)

        Returns
        -------
        np.ndarray of float32, shape (3, height, width)
            Of `shape`.
        """
        pixels = self._cropped(self._resized(image))
        mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (self.mean, self.std))
        return (pixels.transpose(2, 0, 1).astype(np.float32) * np.float32(self.factor) - mean) / std

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if self.size is not None:
            height, width = self.size
        elif self.shortest is not None:
            # The longer side is rounded down, as torchvision and transformers do.
            longer = int(self.shortest * max(height, width) / min(height, width))
            height, width = (self.shortest, longer) if height <= width else (longer, self.shortest)
        if (height, width) == image.shape[:2]:
            return image
        return np.asarray(Image.fromarray(image).resize((width, height), self.resample))

    def _cropped(self, image: np.ndarray) -> np.ndarray:
        height, width = self.shape
        rest = image.shape[0] - height, image.shape[1] - width
        if min(rest) < 0:
            raise InputError(f"image={image.shape[1]}×{image.shape[0]} should be at least {width}×{height}; enlarge it")
        top, left = (round(pixels / 2) if self.round_corner else pixels // 2 for pixels in rest)
        return image[top : top + height, left : left + width]


def read_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Understand the ``preprocessor_config.json`` of transformers.

    Parameters
    ----------
    config : mapping
        The parsed file.

    Returns
    -------
    Preprocessing

    Raises
    ------
    InputError
        Where it asks for what we do not do, all at once.

    Examples
    --------
    >>> size, crop = {"shortest_edge": 256}, {"height": 224, "width": 224}
    >>> read_preprocessing({"size": size, "crop_size": crop, "do_normalize": False}).shape
    (224, 224)
    """
    problems = [
        f"{PREPROCESSOR}: {key}={config[key]} should be left out, we do not do it; embed with a script of your own, "
        "and `hkm ingest` what it wrote"
        for key in _UNKNOWN
        if config.get(key)
    ]
    shortest, size = _read_size(config, problems) if config.get("do_resize", True) else (None, None)
    crop = None
    if config.get("do_center_crop", "crop_size" in config):
        crop = _pair(config.get("crop_size"))
        if crop is None:
            problems.append(f"{PREPROCESSOR}: crop_size={config.get('crop_size')} should have height and width; add it")
    if crop is None and size is None and not problems:
        problems.append(f"{PREPROCESSOR}: crop_size=None should be given, batches need one size; add it")
    values: dict[str, Any] = {}
    if config.get("do_normalize", "image_mean" in config):
        values = {name: tuple(config.get(f"image_{name}") or ()) for name in ("mean", "std")}
        problems += [
            f"{PREPROCESSOR}: image_{name}={value} should be 3 numbers; add them"
            for name, value in values.items()
            if len(value) != 3
        ]
    if problems:
        raise InputError(problems)
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    return Preprocessing(shortest, size, crop, int(config.get("resample", 3)), factor, **values)


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and {"height", "width"} <= set(value):
        return int(value["height"]), int(value["width"])
    return None


def _read_size(config: Mapping[str, Any], problems: list[str]) -> tuple[int | None, tuple[int, int] | None]:
    """Tell the length of the shorter side, or height and width."""
    size = config.get("size")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    if isinstance(size, int) and kind.startswith(_SHORTEST_EDGE):
        return size, None
    if isinstance(size, int) and kind.startswith(_SQUARE):
        return None, (size, size)
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"]), None
    if isinstance(size, Mapping) and (pair := _pair(size)):
        return None, pair
    problems.append(f'{PREPROCESSOR}: size={size} should be {{"shortest_edge": …}} or height and width; write it so')
    return None, None


class _TorchEncoder(Encoder):
    """What encoders of images by a torch model have in common."""

    def __init__(self, model: Any, preprocessing: Preprocessing, device: str | None) -> None:
        self._torch = require("torch", EXTRA)
        self.preprocessing = preprocessing
        self.device = pick_device(self._torch, device)
        self._model = model.eval().to(self.device)
        self.n_features = self.encode([np.zeros((3, *preprocessing.shape), np.float32)]).shape[1]

    def prepare(self, items: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Scale, crop and standardize images: float32 arrays of shape (3, height, width)."""
        return [self.preprocessing(item) for item in items]

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
        When transformers is missing, the folder lacks something, or weights are missing that would be random.
    """

    def __init__(self, model: str | os.PathLike[str], *, device: str | None = None) -> None:
        folder, _ = model_folder(model)
        config = read_json(folder / PREPROCESSOR)
        if config is None:
            raise InputError(
                f"model={folder} should hold a {PREPROCESSOR}, there is none; copy it from where the model is"
            )
        preprocessing = read_preprocessing(config)
        require("torch", EXTRA)
        transformers = require("transformers", EXTRA)
        try:
            with quiet_transformers():
                loaded, facts = transformers.AutoModel.from_pretrained(
                    str(folder), local_files_only=True, output_loading_info=True
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
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
        self.fingerprint = folder_fingerprint(folder, "transformers-1")
        super().__init__(loaded, preprocessing, device)

    def _embed(self, pixels: Any) -> Any:
        if self._projects:
            found = self._model.get_image_features(pixel_values=pixels)
            # Until transformers 5 a tensor, since then an output that holds it.
            return getattr(found, "pooler_output", found)
        found = self._model(pixel_values=pixels)
        if self._has_token:
            return found.last_hidden_state[:, 0]
        pooled = getattr(found, "pooler_output", None)
        return found.last_hidden_state.mean(1) if pooled is None else pooled


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
        torch = require("torch", EXTRA)
        timm = require("timm", EXTRA)
        try:
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"model={folder} should be a model of timm ({reason}); check the folder") from error
        loaded.dtype = next(loaded.parameters()).dtype
        self.name = str(folder)
        self.fingerprint = folder_fingerprint(folder, "timm-1")
        super().__init__(loaded, timm_preprocessing(timm.data.resolve_model_data_config(loaded)), device)
        assert torch is self._torch

    def _embed(self, pixels: Any) -> Any:
        return self._model(pixels)


def timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Understand the data configuration of a timm model.

    Parameters
    ----------
    config : mapping
        What ``timm.data.resolve_model_data_config`` gives.

    Returns
    -------
    Preprocessing

    Raises
    ------
    InputError
        Where it asks for what we do not do.

    Examples
    --------
    >>> found = timm_preprocessing({"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.9,
    ...                             "crop_mode": "center", "mean": (0.5,) * 3, "std": (0.5,) * 3})
    >>> found.shortest, found.crop
    (248, (224, 224))
    """
    _, height, width = config["input_size"]
    crop_mode, name = config.get("crop_mode", "center"), str(config.get("interpolation", "bicubic"))
    filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
    if name not in filters or crop_mode not in ("center", "squash") or (height != width and crop_mode == "center"):
        raise InputError(
            f"config.json: input_size={height}×{width}, crop_mode={crop_mode}, interpolation={name} should be square, "
            "center or squash, and a filter of Pillow; embed with a script of your own, and `hkm ingest` what it wrote"
        )
    percent = float(config.get("crop_pct") or 1.0)
    scaled = [math.floor(side / percent) for side in (height, width)]
    return Preprocessing(
        shortest=scaled[0] if crop_mode == "center" else None,
        size=(scaled[0], scaled[1]) if crop_mode == "squash" else None,
        crop=(height, width),
        resample=filters[name],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        round_corner=True,
    )
