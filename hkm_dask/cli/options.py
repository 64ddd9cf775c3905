"""The options that commands share: their types, where the work runs, and the settings of clustering."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hkm_dask.cli.interrupts import children_deaf_to_ctrl_c
from hkm_dask.cli.wording import in_options

if TYPE_CHECKING:
    from hkm_dask.compute.runner import Runner
    from hkm_dask.config import Config


class LocalPath(click.Path):
    """A path on this machine, never a URL."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a URL."""
        from hkm_dask.data.files import local_path

        return super().convert(local_path(value, str(param.name) if param else "path"), param, ctx)


class StorePath(LocalPath):
    """A path on this machine, or a URL in an object store."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Distinguish URLs from paths."""
        from hkm_dask.data.objects import ObjectPath, location

        place = location(value, str(param.name) if param else "path")
        return place if isinstance(place, ObjectPath) else super().convert(place, param, ctx)


class Names(click.ParamType):
    """Names separated by commas."""

    name = "NAMES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split at commas."""
        return value if isinstance(value, tuple) else tuple(name for name in map(str.strip, value.split(",")) if name)


PATH = LocalPath(path_type=Path)
STORE = StorePath(path_type=Path)
DTYPE = click.Choice(["float16", "float32"])

ids_option = click.option("--ids", metavar="COLUMN", help="Column of the ids.")
ids_file_option = click.option(
    "--ids-file",
    type=PATH,
    metavar="FILE",
    help="File of ids: .npy, .txt, or column --ids of a .csv, .tsv, .parquet or .arrow file.",
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace an existing output once the new one is complete."
)
pool_option = click.option("--pool", type=STORE, metavar="POOL.zarr", help="Current path of the tree's pool.")
column_option = click.option("--column", metavar="NAME", help="Column or array of the embeddings.")


def with_options(*options: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add several options to a command, listed in this order."""
    return lambda command: functools.reduce(lambda given, option: option(given), reversed(options), command)


class PerLevel(click.ParamType):
    """One value for all levels, or one per level, separated by commas."""

    def __init__(self, name: str, *, words: Sequence[str] = (), many: bool = False) -> None:
        self.name = name
        self.words = words
        self.many = many

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split at commas."""
        try:
            values = tuple(item if item in self.words else int(item) for item in str(value).split(","))
        except ValueError:
            rule = " or ".join(["whole numbers separated by commas", *self.words])
            self.fail(f"{value!r} should be {rule}; write it like {self.name}", param, ctx)
        return values if self.many or len(values) > 1 else values[0]


class Clusters(click.ParamType):
    """Clusters such as 2:19, separated by commas. The command checks them, to report all problems at once."""

    name = "LEVEL:NUMBER,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Split at commas."""
        return [name.strip() for name in str(value).split(",")]


class OfColumn(click.ParamType):
    """A value for one column, ``COLUMN=VALUE``, as a mapping."""

    def __init__(self, value: str, kind: Callable[[str], Any]) -> None:
        self.name = f"COLUMN={value}"
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Split at the last equals sign."""
        column, _, text = str(value).rpartition("=")
        try:
            return {column: self.kind(text)} if column and text else self.fail(f"write it like {self.name}", param, ctx)
        except ValueError:
            self.fail(f"{text!r} should be a whole number; write it like {self.name}", param, ctx)


class Size(click.ParamType):
    """A size such as 4GiB, in bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the size."""
        from dask.utils import parse_bytes

        try:
            size = int(parse_bytes(value))
        except ValueError:
            size = 0
        if size <= 0:
            self.fail(f"{value!r} should be a size above 0; write it like 4GiB", param, ctx)
        return size


class Count(click.ParamType):
    """A whole number, with an optional suffix k, M or G, and an optional minimum."""

    name = "N"

    def __init__(self, least: int | None = None) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the number."""
        # A comma has to precede three digits: many read 1,5k as 1.5k, not 15k.
        whole, decimals = r"(?:\d{1,3}(?:,\d{3}){1,9}|[\d_]{0,30}\d)", r"\.\d{1,30}"
        found = re.fullmatch(rf"([+-]?(?:{whole}(?:{decimals})?|{decimals}))([kMG]?)", str(value), re.ASCII)
        scale = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
        number = Fraction(re.sub("[_,]", "", found[1])) * scale[found[2]] if found else None
        if number is None or number.denominator > 1 or (self._least is not None and number < self._least):
            rule = "a whole number" if self._least is None else f"a whole number >= {self._least}"
            self.fail(f"{value!r} should be {rule}; write it like 743M", param, ctx)
        return int(number)


@dataclass(frozen=True)
class Place:
    """Where work runs, as given by options of the command line."""

    workers: int | None
    threads_per_worker: int | None
    local_cuda: bool
    cuda_preset: Literal["performance", "capacity"] | None
    scheduler: str | None
    scheduler_file: Path | None
    memory_limit: int | None

    def check(self) -> None:
        """Refuse options that contradict each other."""
        from hkm_dask.compute.cluster.connect import places_asked_for
        from hkm_dask.errors import InputError

        try:
            places_asked_for(self.workers, self.local_cuda, self.scheduler, self.scheduler_file)
        except InputError as error:
            raise click.UsageError(in_options(str(error), click.get_current_context().command)) from error
        if self.threads_per_worker and self.workers is None:
            raise click.UsageError("--threads-per-worker needs --workers; give both or neither.")
        if self.cuda_preset and not self.local_cuda:
            raise click.UsageError("--cuda-preset needs --local-cuda; give both or neither.")

    @contextmanager
    def connect(self, *, quiet: bool = False) -> Iterator[Runner]:
        """Start or find the workers for the context; print the address of the dashboard unless `quiet`."""
        from hkm_dask.compute.cluster.connect import connect
        from hkm_dask.events import emit

        starts_workers = self.workers is not None or self.local_cuda
        connection = connect(**{**asdict(self), "cuda_preset": self.cuda_preset or "performance"})
        with ExitStack() as stack:
            with children_deaf_to_ctrl_c() if starts_workers else nullcontext():
                runner = stack.enter_context(connection)
            if runner.dashboard:
                emit("connected", dashboard=runner.dashboard, page=runner.page)
            if runner.dashboard and not quiet:
                click.echo(f"Dask dashboard: {runner.dashboard}", err=True)
            if runner.page and not quiet:
                click.echo(f"Page about this run: {runner.page}", err=True)
            yield runner


def place_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for where work runs to a command, which gets them as ``place``."""

    @click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Run in N processes on this machine.")
    @click.option(
        "--threads-per-worker", type=click.IntRange(min=1), metavar="T", help="Threads per process.  [default: 1]"
    )
    @click.option("--local-cuda", is_flag=True, help="Run on the GPUs of this machine, one worker per GPU.")
    @click.option(
        "--cuda-preset",
        type=click.Choice(["performance", "capacity"]),
        help="With --local-cuda: memory pool and fast transport, or room for more rows.  [default: performance]",
    )
    @click.option("--scheduler", metavar="ADDRESS", help="Run on the Dask cluster with this scheduler.")
    @click.option("--scheduler-file", type=PATH, metavar="FILE", help="The same, by the scheduler's file.")
    @click.option("--memory-limit", type=Size(), metavar="SIZE", help="Memory limit of one worker, like 4GiB.")
    @functools.wraps(command)
    def with_place(*args: Any, **options: Any) -> None:
        place = Place(**{field.name: options.pop(field.name) for field in fields(Place)})
        place.check()
        command(*args, place=place, **options)

    return with_place


#: Adds the options that `read_settings` takes to a command.
settings_options = with_options(
    click.option("--config", type=PATH, metavar="FILE", help="YAML file of settings."),
    click.option(
        "--n-clusters",
        type=PerLevel("2000,400,100", many=True),
        metavar="K,K,...",
        help="Number of clusters per level, level 1 first.",
    ),
    click.option(
        "--n-resamples",
        type=PerLevel("10 or 0,10,10"),
        metavar="M|M,M,...",
        help="Number of resampling steps.  [default: 10]",
    ),
    click.option(
        "--resample-size",
        type=PerLevel("auto or 10,3,3", words=["auto"]),
        metavar="R|R,R,...",
        help="Members per cluster for resampling.  [default: auto, half the mean cluster size]",
    ),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any setting, like levels.1.max_iter=20; can be repeated.",
    ),
    click.option("--seed", type=int, metavar="N", help="Random seed.  [default: 0]"),
    click.option("--metric", type=click.Choice(["l2", "cosine"]), help="Distance.  [default: l2]"),
    click.option(
        "--subset",
        type=LocalPath(),
        metavar="FILE",
        help="Cluster only these rows, a file of `hkm dedup` or `hkm sample`.",
    ),
    click.option(
        "--fit-sample",
        type=Count(),
        metavar="N",
        help="Cluster N random rows, then assign all rows.",
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
    """Read the settings of a run from its options, or choose recommended ones.

    `n_clustered` returns the number of rows to cluster, given a subset and a sample to fit on. `note` prints a message.
    """
    if config is not None and n_clusters is not None:
        raise click.UsageError(
            "Give --config FILE or --n-clusters K,K,..., not both; without either, recommended numbers are used."
        )
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
            "--n-resamples and --resample-size need --n-clusters; with --config, use --set levels.1.n_resamples=5"
        )
    # An option overrides the file, and --set overrides both.
    overridden = {override.partition("=")[0].strip() for override in overrides}
    chosen = [
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in given.items()
        if value is not None and name not in overridden
    ]
    return Config.from_yaml(config, [*chosen, *overrides])


def _advised(n_rows: int, note: Callable[[str], None], **given: Any) -> Config:
    """Choose and print recommended settings for a number of rows."""
    from hkm_dask.config import Config

    config = Config.advised(n_rows, **given)
    words: dict[str, list[Any]] = {
        "--n-clusters": [level.n_clusters for level in config.levels],
        "--n-resamples": [level.n_resamples for level in config.levels],
        "--resample-size": [level.resample_size for level in config.levels],
    }
    for name in ("--n-resamples", "--resample-size"):  # one value if all are the same
        words[name] = words[name] if len({*words[name]}) > 1 else words[name][:1]
    options = " ".join(f"{name} {','.join(map(str, values))}" for name, values in words.items())
    note(f"For {n_rows:,} {'row' if n_rows == 1 else 'rows'}, recommended: {options}")
    note(Config.reason_of_advice(n_rows))
    note("Change it with options or --config FILE; `hkm info` shows all settings.")
    return config
