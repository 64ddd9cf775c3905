"""A small convolutional network, trained without labels (SimCLR, arXiv:2002.05709) or with them, and its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
#: Temperature of SimCLR's loss, and minimum share of an image in a crop: common values for small images, not tuned.
TEMPERATURE, LEAST_CROP = 0.2, 0.3
N_PROJECTED = 128
RATE, DECAY = 1e-3, 1e-4
AT_ONCE = 1000  # images whose features are computed together


@dataclass(frozen=True)
class Setting:
    """Size and training of a network: channels of its layers, images per step, and steps."""

    widths: tuple[int, ...]
    batch: int
    steps: int


#: Settings that take three minutes on two cores, and about as long or less on a GPU.
SETTINGS = {
    "cpu": Setting((32, 64, 128, 256), 128, 600),
    "gpu": Setting((64, 128, 256, 512), 512, 20_000),
    "tiny": Setting((8, 16), 32, 10),
}


def network(setting: Setting) -> Any:
    """Build a stack of 3 × 3 convolutions that each halve the image, then global average pooling."""
    from torch import nn

    layers: list[Any] = []
    for below, width in zip((3, *setting.widths), setting.widths, strict=False):
        layers += [nn.Conv2d(below, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def train(images: Images, setting: Setting, seed: int, *, device: str = "cpu") -> Any:
    """Train a network from scratch so that two views of an image have similar features, different from other images'.

    Every step uses `setting.batch` images, so that the number of images seen does not depend on the size of the set.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, height, width, 3)
    setting : Setting
    seed : int
        Seed of the weights, the order of the images, and the views.
    device : str
        Device for torch.

    Returns
    -------
    torch.nn.Module
    """
    import torch
    from torch import nn

    torch.manual_seed(seed)
    encoder = network(setting).to(device)
    width = setting.widths[-1]
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, N_PROJECTED)).to(device)
    model = nn.Sequential(encoder, head)

    def loss(some: Any, _: Any) -> Any:
        return contrast(model(torch.cat([view(some), view(some)])).float())

    _descend(model, loss, images, setting, device)
    return encoder.eval()


def train_to_classify(
    images: Images, labels: NDArray[np.int64], n_classes: int, setting: Setting, seed: int, *, device: str = "cpu"
) -> Any:
    """Train a classifier of the classes, shape (n,), from scratch, with the same views and steps as `train`.

    Returns
    -------
    torch.nn.Module
        Maps images to class scores.
    """
    import torch
    from torch import nn

    torch.manual_seed(seed)
    model = nn.Sequential(network(setting), nn.Linear(setting.widths[-1], n_classes)).to(device)
    classes = torch.from_numpy(labels).to(device)

    def loss(some: Any, chosen: Any) -> Any:
        return nn.functional.cross_entropy(model(view(some)).float(), classes[chosen])

    _descend(model, loss, images, setting, device)
    return model.eval()


def _descend(model: Any, loss: Callable[[Any, Any], Any], images: Images, setting: Setting, device: str) -> None:
    """Run the training; `loss` gets images, of shape (n, channels, height, width), and their indices."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=setting.steps)
    pixels = torch.from_numpy(images).to(device)
    model.train()
    for _ in range(setting.steps):
        chosen = torch.randint(len(pixels), (setting.batch,), device=device)
        some = pixels[chosen].permute(0, 3, 1, 2).float() / 255
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            found = loss(some, chosen)
        optimizer.zero_grad(set_to_none=True)
        found.backward()
        optimizer.step()
        schedule.step()


def contrast(projected: Any) -> Any:
    """Return SimCLR's loss of n pairs of views, of shape (2 n, d): each should identify its partner among all."""
    import torch
    from torch.nn import functional

    n = len(projected) // 2
    unit = functional.normalize(projected, dim=1)
    scores = unit @ unit.T / TEMPERATURE
    scores.fill_diagonal_(-torch.inf)
    partners = torch.arange(2 * n, device=projected.device).roll(n)
    return functional.cross_entropy(scores, partners)


def view(images: Any) -> Any:
    """Randomly crop each image, mirror half of them, jitter brightness, contrast and color, and make some gray."""
    import torch
    from torch.nn import functional

    n, device = len(images), images.device

    def between(low: float, high: float, *shape: int) -> Any:
        return low + (high - low) * torch.rand(n, *shape, device=device)

    side = between(LEAST_CROP, 1).sqrt()
    mirrored = torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    place = between(-1, 1, 2) * (1 - side)[:, None]
    zero = torch.zeros_like(side)
    across, down = torch.stack([side * mirrored, zero, place[:, 0]], 1), torch.stack([zero, side, place[:, 1]], 1)
    grid = functional.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    seen = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gray = seen.mean(dim=1, keepdim=True)
    color = torch.where(between(0, 1) < 0.2, zero, between(0.6, 1.4))
    seen = gray + (seen - gray) * color[:, None, None, None]
    middle = seen.mean(dim=(1, 2, 3), keepdim=True)
    seen = middle + (seen - middle) * between(0.6, 1.4, 1, 1, 1)
    return (seen * between(0.6, 1.4, 1, 1, 1)).clamp(0, 1)


def features(encoder: Any, images: Images) -> NDArray[np.float32]:
    """Return the features of images of shape (n, height, width, 3), as float32 of shape (n, n_features)."""
    import torch

    device = next(encoder.parameters()).device
    found = []
    with torch.inference_mode():
        for start in range(0, len(images), AT_ONCE):
            some = torch.from_numpy(images[start : start + AT_ONCE]).to(device)
            found.append(encoder(some.permute(0, 3, 1, 2).float() / 255).cpu().numpy())
    return np.concatenate(found)
