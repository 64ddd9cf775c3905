"""The configurations equal the paper's settings, and so do the commands in their comments."""

import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.hierarchy.level_plans import resample_size

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# Samples; clusters at the end of each level; how many of these each first cluster is split into; m; r.
# Web images, simulation and rings: all given. Text and satellite: m and r assumed, as the comments of the files say.
TABLE = {
    "web-images": (743_000_000, (10**7, 500_000, 50_000, 10_000), (100, 1, 1, 1), (0, 10, 10, 10), (None, 10, 5, 3)),
    "web-images-finer": (
        743_000_000,
        (2 * 10**7, 800_000, 80_000, 20_000),
        (200, 1, 1, 1),
        (0, 10, 10, 10),
        (None, 10, 5, 3),
    ),
    "ccnet-1": (641_000_000, (10**7, 500_000, 50_000), (100, 1, 1), (0, 10, 10), (None, 10, 5)),
    "ccnet-2": (789_000_000, (10**7, 500_000, 50_000), (100, 1, 1), (0, 10, 10), (None, 10, 5)),
    "satellite": (18_000_000, (500_000, 50_000, 10_000), (1, 1, 1), (0, 10, 10), (None, 5, 2)),
    "simulation": (9000, (3000, 1000, 300), (1, 1, 1), (10, 10, 10), (2, 2, 2)),
    "rings": (29_700, (1000, 300), (1, 1), (10, 10), (15, 2)),
}
each_setting = pytest.mark.parametrize("name", TABLE)


def commands_of(name: str) -> list[list[str]]:
    """Give the `hkm` commands in the comments of a file, as words."""
    comments = "\n".join(
        line.removeprefix("#") for line in (CONFIGS / f"{name}.yaml").read_text("utf-8").splitlines() if line[:1] == "#"
    )
    lines = comments.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip().startswith("hkm ")]


def test_every_row_of_the_table_has_its_file() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(TABLE)


@each_setting
def test_a_file_says_what_the_paper_says(name: str) -> None:
    n_samples, n_clusters, n_splits, n_resamples, r = TABLE[name]
    config = hkm.Config.from_yaml(CONFIGS / f"{name}.yaml")
    assert tuple(level.n_centroids for level in config.levels) == n_clusters
    assert tuple(level.n_splits for level in config.levels) == n_splits
    assert tuple(level.n_resamples for level in config.levels) == n_resamples
    for level, n, wanted in zip(config.levels, (n_samples, *n_clusters), r, strict=False):
        assert level.n_resamples == 0 or resample_size(level, n) == wanted
    assert {level.max_iter for level in config.levels} == {50}
    assert {level.resample_strategy for level in config.levels} == {"closest"}
    assert (config.metric, config.seed, config.subset) == ("l2", 0, None)
    config.check(n_samples)


@each_setting
def test_the_commands_in_the_comments_work(name: str) -> None:
    clusters = [words for words in commands_of(name) if words[1] == "cluster"]
    assert len(clusters) >= 2, "the whole pool, and a smaller one"
    for words in clusters:
        assert words[words.index("--config") + 1] == f"configs/{name}.yaml"
        overrides = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
        assert len(overrides) == words.count("--set")
        hkm.Config.from_yaml(CONFIGS / f"{name}.yaml", overrides)


@each_setting
def test_a_smaller_pool_keeps_the_mean_sizes(name: str) -> None:
    n_samples, n_clusters, *_ = TABLE[name]
    *_, last = [words for words in commands_of(name) if words[1] == "cluster"]
    overrides = [value for flag, value in itertools.pairwise(last) if flag == "--set"]
    smaller = [level.n_centroids for level in hkm.Config.from_yaml(CONFIGS / f"{name}.yaml", overrides).levels]
    found = re.search(
        r"^# A smaller pool, say of ([\d,]+):", (CONFIGS / f"{name}.yaml").read_text("utf-8"), re.MULTILINE
    )
    assert found
    pool = int(found[1].replace(",", ""))
    wanted = np.divide((n_samples, *n_clusters[:-1]), n_clusters)
    assert np.divide((pool, *smaller[:-1]), smaller) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(("name", "size"), [("simulation", 300), ("rings", 1000)])
def test_the_small_settings_run(name: str, size: int, tmp_path: Path) -> None:
    n_samples, n_clusters, *_ = TABLE[name]
    points = np.random.default_rng(0).uniform(-3, 3, (n_samples, 2)).astype(np.float32)
    shorter = [f"levels.{t + 1}.{words}" for t in range(len(n_clusters)) for words in ("max_iter=2", "n_resamples=1")]
    config = hkm.Config.from_yaml(CONFIGS / f"{name}.yaml", shorter)
    tree = hkm.build_hierarchy(points, tmp_path / "tree.zarr", config)
    assert tree.hkm.n_clusters == n_clusters
    assert len(np.unique(hkm.sample(tree, size))) == size
