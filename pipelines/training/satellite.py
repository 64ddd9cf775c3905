"""Satellite (Table 7 of arXiv:2405.15613 at small scale): predict night lights from the Blue Marble.

Most patches are dark sea and ice. A network learns features from each draw without labels; a linear regression on them,
fitted on other regions, is scored on regions that neither has seen. Regions are squares of 30 degrees, so that patches
of different sets do not overlap.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hkm_dask.metrics import class_balance
from pipelines.longtail.more_pools import from_file, to_file
from pipelines.longtail.pools import Pool
from pipelines.measurements import Facts, Measurements
from pipelines.training.draws import ALL, DRAWS
from pipelines.training.network import SETTINGS, Images, Setting, features, train

#: Images of the whole Earth from Debian's package xplanet-images.
DAY, NIGHT = (Path("/usr/share/xplanet/images", f"{name}.jpg") for name in ("earth", "night"))
SIDE, STEP, REGIONS = 16, 8, (6, 12)
N_DRAWN, N_FIT = 1500, 2000
#: Mean gray levels at night that separate the classes dark, faint, lit and bright; the last two count as lit land.
LIGHTS = (0.1, 3.0, 8.0)
NAMES = ("dark", "faint", "lit", "bright")
LIT = LIGHTS[1]
TABLE = ("entropy", "error", "lit_error", "r2")


@dataclass(frozen=True)
class Patches:
    """Daytime images, of shape (n, 16, 16, 3), and log(1 + mean gray level) at night."""

    images: Images
    light: NDArray[np.float64]

    def __getitem__(self, rows: NDArray) -> Patches:
        return Patches(self.images[rows], self.light[rows])


@functools.cache
def maps() -> tuple[Images, NDArray[np.float64]]:
    """Return the image of the Earth by day, and its gray levels at night."""
    day, night = (np.asarray(Image.open(path).convert("RGB")) for path in (DAY, NIGHT))
    return day, night @ np.array([0.299, 0.587, 0.114])


def cut(day: Images, night: NDArray[np.float64], regions: NDArray[np.bool_]) -> Patches:
    """Cut the patches within the regions that are True in a grid over the map."""
    down, across = (side // n for side, n in zip(night.shape, regions.shape, strict=True))
    images, light = [], []
    for row, column in zip(*np.nonzero(regions), strict=True):
        top, left = row * down, column * across
        for y in range(top, top + down - SIDE + 1, STEP):
            for x in range(left, left + across - SIDE + 1, STEP):
                images.append(day[y : y + SIDE, x : x + SIDE])
                light.append(np.log1p(night[y : y + SIDE, x : x + SIDE].mean()))
    return Patches(np.stack(images), np.array(light))


def patches(seed: int) -> tuple[Patches, Patches, Patches]:
    """Assign regions of the Earth at random: half of them to the pool, a quarter each to fitting and scoring."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(REGIONS[0] * REGIONS[1])
    n = len(order)
    sets = []
    for chosen in np.split(order, [n // 2, 3 * n // 4]):
        regions = np.zeros(n, bool)
        regions[chosen] = True
        sets.append(cut(*maps(), regions.reshape(REGIONS)))
    pool, fit, test = sets
    return pool, fit[rng.permutation(len(fit.light))[:N_FIT]], test


def run(
    out: Path, seeds: int, *, setting: str = "cpu", device: str = "cpu", draws: Sequence[str] = tuple(DRAWS),
    n_drawn: int = N_DRAWN,
) -> Measurements:  # fmt: skip
    """Train on all draws with all seeds, except those with results in `out`; writes `satellite.jsonl`."""
    out.mkdir(parents=True, exist_ok=True)
    found = Measurements(out / "satellite.jsonl")
    for seed in range(seeds):
        keys = {name: {"draw": name, "seed": seed, "setting": setting} for name in (ALL, *draws)}
        if all(key in found for key in keys.values()):
            continue
        sets = patches(seed)
        learned = out / f"patches-{seed}.npz"
        if keys[ALL] not in found or not learned.exists():
            encoder = train(sets[0].images, SETTINGS[setting], seed, device=device)
            to_file(_embedded(sets[0], encoder, n_drawn), learned)
            found.get(keys[ALL], functools.partial(_worth, *sets, np.arange(len(sets[0].light)), encoder))
        embedded = from_file(learned)
        for name in draws:
            result = found.get(
                keys[name], functools.partial(_trained, sets, embedded, name, SETTINGS[setting], seed, device)
            )
            print(f"seed {seed} {name}: error {result['error']:.3f}, lit {result['lit_error']:.3f}", flush=True)
    return found


def classes(light: NDArray[np.float64]) -> NDArray[np.int64]:
    """Classify patches by their light at night; 0 is dark."""
    return np.digitize(np.expm1(light), LIGHTS)


def _embedded(pool: Patches, encoder: Any, n_drawn: int) -> Pool:
    seen = features(encoder, pool.images)
    return Pool("patches", seen, classes(pool.light), seen[:0], np.zeros(0, np.int64), NAMES, n_drawn)


def _trained(
    sets: tuple[Patches, Patches, Patches], embedded: Pool, name: str, setting: Setting, seed: int, device: str
) -> Facts:  # fmt: skip
    rows = DRAWS[name](embedded, seed)
    return _worth(*sets, rows, train(sets[0].images[rows], setting, seed, device=device))


def _worth(pool: Patches, fit: Patches, test: Patches, rows: NDArray[np.int64], encoder: Any) -> Facts:
    """Return error and explained variance of a linear regression of log(1 + light), on all and on lit patches."""
    linear = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 4, 11)))
    guess = linear.fit(features(encoder, fit.images), fit.light).predict(features(encoder, test.images))
    squared = np.square(guess - test.light)
    lit = test.light >= np.log1p(LIT)
    return {
        "entropy": class_balance(classes(pool.light[rows]), len(NAMES)).entropy,
        "error": float(np.sqrt(squared.mean())),
        "lit_error": float(np.sqrt(squared[lit].mean())),
        "r2": float(1 - squared.mean() / test.light.var()),
        "lit_r2": float(1 - squared[lit].mean() / test.light[lit].var()),
        "n_drawn": len(rows),
    }
