"""Image models from folders: preprocessing and embeddings equal those of transformers and timm."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hkm_dask.embedding.embed import embed
from hkm_dask.embedding.encoders import image_encoder
from hkm_dask.embedding.images import open_images
from hkm_dask.embedding.models import folder_fingerprint
from hkm_dask.errors import InputError

SHAPES = [(40, 30), (33, 90), (300, 250), (64, 64), (31, 37)]


def images(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


# --- models of transformers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("torch", reason="needs the extra images")
    return pytest.importorskip("transformers", reason="needs the extra images")


@pytest.fixture(scope="module")
def save(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any, Any]]:
    """Save a tiny model of random weights; give its folder, the model and transformers' own image processor."""
    import torch

    shared = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    tiny = {**shared, "intermediate_size": 32}

    def make(kind: str) -> tuple[Path, Any, Any]:
        torch.manual_seed(0)
        model, config = {
            "dinov2": (transformers.Dinov2Model, lambda: transformers.Dinov2Config(**shared)),
            "vit": (transformers.ViTModel, lambda: transformers.ViTConfig(**tiny)),
            "clip": (
                transformers.CLIPModel,
                lambda: transformers.CLIPConfig(
                    vision_config=tiny,
                    text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
                    projection_dim=12,
                ),
            ),
            "siglip": (transformers.SiglipVisionModel, lambda: transformers.SiglipVisionConfig(**tiny)),
            "convnext": (
                transformers.ConvNextModel,
                lambda: transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 24], depths=[1, 1, 1, 1]),
            ),
        }[kind]
        folder = tmp_path_factory.mktemp(kind)
        built = model(config()).eval()
        square = kind in ("vit", "siglip")
        processor = _processor(transformers, square, 64 if kind == "convnext" else 28)
        built.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder, built, processor

    return make


def _processor(transformers: Any, square: bool, side: int) -> Any:
    # Since transformers 5 those without torchvision have names of their own.
    name = "ViTImageProcessor" if square else "BitImageProcessor"
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    crop = {"height": side, "width": side}
    return kind(size=crop) if square else kind(size={"shortest_edge": side + 4}, crop_size=crop)


@pytest.mark.parametrize("kind", ["dinov2", "vit", "clip", "siglip", "convnext"])
def test_embeddings_equal_transformers_own(save: Callable[..., tuple[Path, Any, Any]], kind: str) -> None:
    import torch

    folder, model, processor = save(kind)
    encoder = image_encoder(folder, device="cpu")
    pixels = processor(images=images(), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    np.testing.assert_allclose(np.stack(encoder.prepare(images())), pixels.numpy(), atol=2e-6)
    with torch.inference_mode():
        if kind == "clip":
            out = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        elif kind in ("dinov2", "vit"):
            out = model(pixel_values=pixels).last_hidden_state[:, 0]
        else:
            out = model(pixel_values=pixels).pooler_output
    expected = out.flatten(1).numpy()
    assert encoder.n_features == expected.shape[1]
    np.testing.assert_allclose(encoder(images()), expected, rtol=1e-4, atol=1e-5)


def test_a_folder_of_images_into_a_pool(save: Callable[..., tuple[Path, Any, Any]], tmp_path: Path) -> None:
    folder, _, _ = save("dinov2")
    for number, image in enumerate(images()):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    encoder = image_encoder(folder, device="cpu")
    pool = embed(open_images(tmp_path), tmp_path / "p.zarr", encoder, dtype="float32", batch_size=2)
    expected = np.concatenate([encoder(images()[start : start + 2]) for start in (0, 2, 4)])
    np.testing.assert_array_equal(pool.rows().read(0, 5), expected)
    # Nothing is embedded again by the same model, and nothing is mixed with those of another.
    assert embed(open_images(tmp_path), pool.path, image_encoder(folder), dtype="float32", batch_size=2) == pool
    other, _, _ = save("vit")
    with pytest.raises(InputError, match=rf"encoder: {encoder.fingerprint[:12]} there, [0-9a-f]{{12}} asked for"):
        embed(open_images(tmp_path), pool.path, image_encoder(other), dtype="float32", batch_size=2)


def test_weights_that_would_be_random_are_refused(save: Callable[..., tuple[Path, Any, Any]], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder, _, _ = save("dinov2")
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    lost = next(name for name in weights if name.endswith("attention.attention.query.weight"))
    del weights[lost]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"n_missing_weights=1 should be 0, e\.g\. encoder\.layer\.0\.\S+; copy the model again"
    ):
        image_encoder(copy)
    assert folder_fingerprint(copy) != folder_fingerprint(folder)


def test_folders_that_lack_something_are_refused(save: Callable[..., tuple[Path, Any, Any]], tmp_path: Path) -> None:
    folder, _, _ = save("dinov2")
    for name, message in (
        ("preprocessor_config.json", "has no preprocessor_config.json; copy it"),
        ("model.safetensors", r"should be a model of transformers \(.*\); check the folder"),
        ("config.json", "has no config.json; give the folder"),
    ):
        copy = shutil.copytree(folder, tmp_path / name)
        (copy / name).unlink()
        with pytest.raises(InputError, match=message):
            image_encoder(copy)
    copy = shutil.copytree(folder, tmp_path / "kind")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "nonsense"}))
    with pytest.raises(InputError, match="should be a model of transformers"):
        image_encoder(copy)
    with pytest.raises(InputError, match="device=cuda:77 should be one that torch finds"):
        image_encoder(folder, device="cuda:77")


CROP = {"height": 28, "width": 28}


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 28, "do_center_crop": True}, 28),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 28}, 28),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 28}, "crop_pct": 0.875}, 28),
    ],
)
def test_older_and_richer_processors_are_understood(
    save: Callable[..., tuple[Path, Any, Any]], tmp_path: Path, config: dict[str, Any], shape: int
) -> None:
    folder = shutil.copytree(save("dinov2")[0], tmp_path / "copy")
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    encoder = image_encoder(folder, device="cpu")
    assert {pixels.shape for pixels in encoder.prepare(images())} == {(3, shape, shape)}
    assert encoder(images()).shape == (5, encoder.n_features)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "do_center_crop": False},
            r"should bring all images to one size, it makes \[\(3, 28, 28\), \(3, 28, 42\)\] .*; add crop_size",
        ),
        (
            {"image_processor_type": "NoImageProcessor", "size": CROP},
            r"should be a model of transformers \(.*\); check",
        ),
    ],
)
def test_preprocessing_that_makes_no_batches_is_refused(
    save: Callable[..., tuple[Path, Any, Any]], tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(save("dinov2")[0], tmp_path / "copy")
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        image_encoder(folder)


# --- models of timm ---------------------------------------------------------------------------------------------------


def test_embeddings_equal_timms_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra images")
    try:
        import timm
    except (ImportError, RuntimeError):  # the second where torchvision was built for another torch
        pytest.skip("needs timm and a torchvision that fits torch")
    torch.manual_seed(0)
    shape = {"input_size": (3, 64, 64), "crop_pct": 0.9}
    options: dict[str, Any] = {"img_size": 64, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, pretrained_cfg_overlay=shape, **options).eval()
    timm.models.save_for_hf(model, tmp_path, model_args=options)
    encoder = image_encoder(tmp_path, device="cpu")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pixels = torch.stack([transform(Image.fromarray(image)) for image in images()])
    np.testing.assert_allclose(np.stack(encoder.prepare(images())), pixels.numpy(), atol=2e-6)
    with torch.inference_mode():
        expected = model(pixels).numpy()
    np.testing.assert_allclose(encoder(images()), expected, rtol=1e-4, atol=1e-4)
