"""The options that say how to cluster, shared by the commands that do it and that plan it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.options import PATH, Count, LocalPath, PerLevel, with_options

if TYPE_CHECKING:
    from hkm_dask.config import Config

#: Gives a command the options that `read_settings` takes.
settings_options = with_options(
    click.option("--config", type=PATH, metavar="FILE", help="The settings, as YAML."),
    click.option(
        "--n-clusters",
        type=PerLevel("2000,400,100", many=True),
        metavar="K,K,...",
        help="Clusters of each level, level 1 first.",
    ),
    click.option(
        "--n-resamples", type=PerLevel("10 or 0,10,10"), metavar="M|M,M,...", help="Resampling steps.  [default: 10]"
    ),
    click.option(
        "--resample-size",
        type=PerLevel("auto or 10,3,3", words=["auto"]),
        metavar="R|R,R,...",
        help="Members each cluster gives to resampling.  [default: auto, half the mean cluster size]",
    ),
    click.option(
        "--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Any setting, like levels.1.max_iter=20."
    ),
    click.option("--seed", type=int, metavar="N", help="Keys every random number.  [default: 0]"),
    click.option("--metric", type=click.Choice(["l2", "cosine"]), help="The distance.  [default: l2]"),
    click.option(
        "--subset",
        type=LocalPath(),
        metavar="FILE",
        help="Cluster only these rows: a file of `hkm dedup` or `hkm sample`.",
    ),
    click.option(
        "--fit-sample",
        type=Count(),
        metavar="N",
        help="Fit on N rows, taken at random; then give all rows their clusters.",
    ),
)


def read_settings(
    n_clustered: Callable[[str | None, int | None], int],
    note: Callable[[str], None],
    *,
    config: Path | None,
    n_clusters: tuple[int, ...] | None,
    n_resamples: int | tuple[int, ...] | None,
    resample_size: int | str | tuple[int | str, ...] | None,
    overrides: tuple[str, ...],
    **given: Any,
) -> Config:
    """Read the settings of a run from its options, or take those advised.

    `n_clustered` gets a subset and a sample to fit on, and gives the rows that are clustered; `note` gets what is to
    be said aloud.
    """
    if config is not None and n_clusters is not None:
        raise click.UsageError("Give --config FILE or --n-clusters K,K,..., not both; neither takes the advice.")
    import json

    from hkm_dask.config import Config

    if config is None:
        of_levels: dict[str, Any] = {
            "n_resamples": n_resamples, "resample_size": resample_size, "overrides": overrides,
        }  # fmt: skip
        if n_clusters is not None:
            return Config.from_flags(n_clusters, **of_levels, **given)
        return _advised(n_clustered(given["subset"], given["fit_sample"]), note, **of_levels, **given)
    if n_resamples is not None or resample_size is not None:
        raise click.UsageError(
            "--n-resamples and --resample-size go with --n-clusters; beside --config, use --set levels.1.n_resamples=5"
        )
    # An option beats the file, and --set beats both.
    chosen = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items() if value is not None]
    return Config.from_yaml(config, [*chosen, *overrides])


def _advised(n_rows: int, note: Callable[[str], None], **given: Any) -> Config:
    """The settings for so many rows, said aloud."""
    from hkm_dask.config import Config

    config = Config.advised(n_rows, **given)
    words: dict[str, list[Any]] = {
        "--n-clusters": [level.n_clusters for level in config.levels],
        "--n-resamples": [level.n_resamples for level in config.levels],
        "--resample-size": [level.resample_size for level in config.levels],
    }
    for name in ("--n-resamples", "--resample-size"):  # one value will do where all are the same
        words[name] = words[name] if len({*words[name]}) > 1 else words[name][:1]
    options = " ".join(f"{name} {','.join(map(str, values))}" for name, values in words.items())
    note(f"For {n_rows:,} {'row' if n_rows == 1 else 'rows'}, as advised: {options}")
    note(Config.reason_of_advice(n_rows))
    note("Options or a --config FILE change it; `hkm info` shows all settings.")
    return config
