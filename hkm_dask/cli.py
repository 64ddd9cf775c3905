"""The `hkm` command: each subcommand reads its arguments, calls one public function, and prints what came of it."""

# Whatever takes long to import is imported inside the commands, so that `hkm --help` answers at once.
from __future__ import annotations

import functools
import json
import logging
import shlex
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

if TYPE_CHECKING:
    from types import FrameType

    from hkm_dask.compute.runner import Runner
    from hkm_dask.config import Config

_ARGUMENTS = "hkm_dask.arguments"
_DEBUG = "hkm_dask.debug"


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is to unwind whatever Ctrl-C unwinds."""


class _Group(click.Group):
    """A group that lists its commands in the order in which people use them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class _Commands(_Group):
    """A group whose commands end in one clear line, whatever happens to them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from hkm_dask.errors import HkmError

        try:
            with _signals_unwind():
                return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            _tell_how_to_go_on(ctx)
            ctx.exit(128 + (signal.SIGTERM if isinstance(interruption, _Terminated) else signal.SIGINT))
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except HkmError as error:
            _fail(ctx, str(error).splitlines())
        except MemoryError:
            _fail(ctx, ["memory=exhausted should suffice; lower --memory-limit, or use fewer --workers"])
        except OSError as error:
            _fail(ctx, [f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)])
        except Exception as error:
            _fail(ctx, [f"{type(error).__name__}: {error} (a defect; --debug shows where)"])


def _fail(ctx: click.Context, lines: Sequence[str]) -> NoReturn:
    if ctx.meta.get(_DEBUG):
        click.echo(traceback.format_exc(), err=True, nl=False)
    for line in lines or ["it failed without saying why; --debug shows where"]:
        click.echo(f"Error: {line}", err=True)
    ctx.exit(1)


def _tell_how_to_go_on(ctx: click.Context) -> None:
    arguments = [word for word in ctx.meta[_ARGUMENTS] if word != "--restart"]
    resumes = ctx.invoked_subcommand in ("cluster", "embed")
    kept = "what is finished is kept; to resume" if resumes else "nothing half-written is left; to start again"
    click.echo(f"\nInterrupted: {kept}, run\n  {ctx.info_name} {shlex.join(arguments)}", err=True)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM both leave every context on their way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _would_be_lost(frame):
        main = threading.main_thread().ident
        again = threading.Timer(0.05, signal.pthread_kill, (main, number))
        again.daemon = True
        again.start()
        return
    # While a cluster is closed under their feet, Dask's own coroutines complain of it with tracebacks.
    for name in ("asyncio", "distributed"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


def _would_be_lost(frame: FrameType | None) -> bool:
    """Whether what is raised in a frame may not arrive, or leave something half done that another thread waits for.

    A callback of the compiler swallows it, and a module that was half imported fails in another place. Where it passes
    through `exec` of a string, as in some imports, CPython ends the process by the signal, whoever caught it.
    """
    while frame is not None:
        # The outermost frame of `python -c` is a string, too, and no reason to wait.
        if frame.f_back and frame.f_code.co_filename.startswith(("<frozen importlib", "<string>")):
            return True
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("numba", "llvmlite"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _children_deaf_to_ctrl_c() -> Iterator[None]:
    """Have processes that are started here leave Ctrl-C to this one, which closes them.

    A terminal sends it to all of them at once, and workers would die of it with tracebacks. They inherit the mask of
    the thread that starts them. Here, Ctrl-C waits until the end of the context.
    """
    from multiprocessing import resource_tracker

    # Where a worker is what first needs it, starting it would lift the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _PerLevel(click.ParamType):
    """One value for all levels, or several with commas between them, one per level."""

    def __init__(self, name: str, *, words: Sequence[str] = (), many: bool = False) -> None:
        self.name = name
        self.words = words
        self.many = many

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            values = tuple(item if item in self.words else int(item) for item in str(value).split(","))
        except ValueError:
            rule = " or ".join(["whole numbers with commas between them", *self.words])
            self.fail(f"{value!r} should be {rule}; write it like {self.name}", param, ctx)
        return values if self.many or len(values) > 1 else values[0]


class _Size(click.ParamType):
    """A size like 4GiB, in bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from dask.utils import parse_bytes

        try:
            size = int(parse_bytes(value))
        except ValueError:
            size = 0
        if size <= 0:
            self.fail(f"memory_limit={value!r} should be a size above 0; write it like 4GiB", param, ctx)
        return size


@dataclass(frozen=True)
class _Where:
    """Where work runs, as the command line has it."""

    workers: int | None
    local_cuda: bool
    cuda_preset: Literal["performance", "capacity"]
    scheduler: str | None
    scheduler_file: Path | None
    memory_limit: int | None

    @contextmanager
    def connect(self) -> Iterator[Runner]:
        from hkm_dask.compute import cluster

        starts_workers = self.workers is not None or self.local_cuda
        place = cluster.connect(
            workers=self.workers,
            local_cuda=self.local_cuda,
            cuda_preset=self.cuda_preset,
            scheduler=self.scheduler,
            scheduler_file=self.scheduler_file,
            memory_limit=self.memory_limit,
        )
        with ExitStack() as stack:
            with _children_deaf_to_ctrl_c() if starts_workers else nullcontext():
                runner = stack.enter_context(place)
            if runner.dashboard:
                click.echo(f"Dask dashboard: {runner.dashboard}", err=True)
            yield runner


def _where_work_runs(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where its work runs; it gets them as ``where``."""

    @click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Run on N single-threaded processes.")
    @click.option("--local-cuda", is_flag=True, help="Run on the GPUs of this machine, one worker each.")
    @click.option(
        "--cuda-preset",
        type=click.Choice(["performance", "capacity"]),
        help="With --local-cuda: memory pool and fast transport (the default), or room for more rows.",
    )
    @click.option("--scheduler", metavar="ADDRESS", help="Run on the Dask cluster of this scheduler.")
    @click.option("--scheduler-file", type=_PATH, metavar="FILE", help="The same, by the file the scheduler wrote.")
    @click.option("--memory-limit", type=_Size(), metavar="SIZE", help="What one worker may hold, like 4GiB.")
    @functools.wraps(command)
    def with_where(
        *args: Any,
        workers: int | None,
        local_cuda: bool,
        cuda_preset: Literal["performance", "capacity"] | None,
        scheduler: str | None,
        scheduler_file: Path | None,
        memory_limit: int | None,
        **kwargs: Any,
    ) -> None:
        places = {
            "--workers": workers,
            "--local-cuda": local_cuda or None,
            "--scheduler": scheduler,
            "--scheduler-file": scheduler_file,
        }
        given = [name for name, value in places.items() if value is not None]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} are different places to run; keep one of them.")
        if cuda_preset and not local_cuda:
            raise click.UsageError("--cuda-preset is for the workers that --local-cuda starts; give both or neither.")
        preset = cuda_preset or "performance"
        command(*args, where=_Where(workers, local_cuda, preset, scheduler, scheduler_file, memory_limit), **kwargs)

    return with_where


_PATH = click.Path(path_type=Path)


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG] = True


def _debug_option() -> click.Option:
    help_text = "Show the traceback of an error."
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help=help_text)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib import metadata

        try:
            version = metadata.version("hkm-dask")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        click.echo(f"hkm {version}")
        ctx.exit()


def _command(*examples: str, group: click.Group | None = None) -> Callable[[Callable[..., None]], click.Command]:
    """Register a command of a group, with ``--debug`` last of its options and its examples below them."""
    epilog = "\b\nExample:\n" + "\n".join(f"  {example}" for example in examples)

    def register(function: Callable[..., None]) -> click.Command:
        command = (group or main).command(epilog=epilog)(function)
        command.params.append(_debug_option())
        return command

    return register


@click.group(
    cls=_Commands,
    params=[_debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExample:\n  hkm ingest embeddings.npy pool.zarr\n"
    "  hkm cluster pool.zarr tree.zarr --n-clusters 2000,400,100\n"
    "  hkm sample tree.zarr --size 10000 --out subset.npy",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main() -> None:
    """Balanced, diverse subsets of huge pools of embeddings, by hierarchical k-means with resampling.

    Where work runs is chosen on each command: threads of this process, or --workers, --local-cuda, --scheduler.
    """


@_command(
    "hkm demo",
    "hkm demo --out here --quick",
)
@click.option(
    "--out", type=_PATH, metavar="DIR", default=Path("hkm-demo"), show_default=True, help="Where to put what it makes."
)
@click.option("--quick", is_flag=True, help="Less data: seconds instead of minutes.")
@_where_work_runs
def demo(out: Path, quick: bool, where: _Where) -> None:
    """Go the whole way on real photographs.

    Photographs are cut into patches, which become a pool, a tree, a balanced subset and pictures of them.
    """
    from hkm_dask.view.demo import run_demo
    from hkm_dask.view.progress import show_progress

    with show_progress(), where.connect() as runner:
        made = run_demo(out, quick=quick, client=runner.client, memory_limit=where.memory_limit)
    click.echo(str(made))


@_command(
    "hkm ingest a.npy b.npy pool.zarr",
    "hkm ingest shards/ pool.zarr --dtype float16 --normalize",
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("pool", type=_PATH, metavar="POOL.zarr")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="Store as this; the sources' own by default.")
@click.option("--normalize", is_flag=True, help="Scale every row to unit length.")
@click.option("--ids", metavar="COLUMN", help="The column that has the ids.")
@click.option("--column", metavar="NAME", help="The column or array that has the embeddings.")
@click.option("--drop-nonfinite", is_flag=True, help="Leave out rows with NaN or Inf instead of refusing them.")
@click.option("--chunk-mb", type=float, metavar="N", help="Size of a storage chunk in MiB.")
@_where_work_runs
def ingest(sources: tuple[str, ...], pool: Path, where: _Where, **options: Any) -> None:
    """Turn embeddings into a pool.

    A pool is one Zarr store with checksums. SOURCE is an .npy or .npz file, a folder of .npy shards, or a Zarr array
    or group; several are put one after the other.
    """
    from hkm_dask.io.ingest import ingest as run_ingest
    from hkm_dask.view import info
    from hkm_dask.view.progress import show_progress

    with show_progress(), where.connect() as runner:
        run_ingest(list(sources), pool, client=runner.client, **options)
    click.echo(info.render(info.describe(pool)))


@main.group(
    cls=_Group,
    params=[_debug_option()],
    epilog="\b\nExample:\n  hkm embed text texts.jsonl pool.zarr --model all-MiniLM-L6-v2/\n"
    "  hkm embed image photos/ pool.zarr --model hog",
)
def embed() -> None:
    """Turn texts or images into a pool of embeddings.

    Items are streamed through a model in this process, on a GPU where torch sees one. Interrupted, the same command
    resumes. On a finished pool it computes nothing.
    """


def _embedding_options(batch_size: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of every embedding."""
    options = [
        click.option(
            "--dtype",
            type=click.Choice(["float16", "float32"]),
            default="float16",
            show_default=True,
            help="Store as this.",
        ),
        click.option("--normalize", is_flag=True, help="Scale every embedding to unit length."),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=batch_size,
            show_default=True,
            metavar="N",
            help="Items that go through the model at once.",
        ),
        click.option("--device", metavar="NAME", help="Where the model runs, like cuda:1; a GPU if there is one."),
        click.option(
            "--chunk-mb", type=float, metavar="N", help="Size of a storage chunk in MiB, the step of resuming."
        ),
        click.option("--restart", is_flag=True, help="Begin again, whatever is there of the pool."),
    ]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return give


@_command(
    "hkm embed text texts.txt pool.zarr --model all-MiniLM-L6-v2/",
    "hkm embed text shards/ pool.zarr --model DIR --column raw_content --ids url",
    group=embed,
)
@click.argument("source", type=_PATH, metavar="INPUT")
@click.argument("pool", type=_PATH, metavar="POOL.zarr")
@click.option("--model", type=_PATH, required=True, metavar="DIR", help="Folder of a sentence-transformers model.")
@click.option("--column", metavar="NAME", help="The key or column that has the texts.  [default: text]")
@click.option("--ids", metavar="COLUMN", help="The key or column that has the ids.")
@click.option("--skip-empty", is_flag=True, help="Leave out empty texts instead of refusing them.")
@_embedding_options(32)
def text(
    source: Path,
    pool: Path,
    model: Path,
    column: str | None,
    ids: str | None,
    skip_empty: bool,
    batch_size: int,
    device: str | None,
    **options: Any,
) -> None:
    """Embed texts.

    INPUT is a .txt file with a text on each line, a .jsonl or .parquet file, or a folder of one of these kinds. Texts
    beyond the longest that the model takes are cut by it.
    """
    from hkm_dask.io.encoders import SORTED_BATCHES, text_encoder
    from hkm_dask.io.models import model_folder
    from hkm_dask.io.texts import open_texts

    model_folder(model)  # before a long pass over the texts
    with _embedding_into(pool) as run_embed:
        texts = open_texts(source, column=column, ids=ids, skip_empty=skip_empty)
        encoder = text_encoder(model, batch_size=batch_size, device=device)
        run_embed(texts, pool, encoder, batch_size=SORTED_BATCHES * batch_size, **options)


@_command(
    "hkm embed image photos/ pool.zarr --model hog",
    "hkm embed image photos.zip pool.zarr --model dinov2-large/ --batch-size 64",
    group=embed,
)
@click.argument("folder", type=_PATH, metavar="FOLDER")
@click.argument("pool", type=_PATH, metavar="POOL.zarr")
@click.option(
    "--model",
    required=True,
    metavar="DIR|hog",
    help="Folder of a transformers or timm model; hog is a descriptor of edges and colours that needs none.",
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be read instead of refusing them.")
@_embedding_options(64)
def image(folder: Path, pool: Path, model: str, skip_unreadable: bool, device: str | None, **options: Any) -> None:
    """Embed images.

    FOLDER has images in it or in its subfolders, or is a .zip of them. Their paths become the ids.
    """
    from hkm_dask.io.encoders import image_encoder
    from hkm_dask.io.images import open_images
    from hkm_dask.io.models import model_folder

    if model != "hog":
        model_folder(model)  # before a long pass over the images
    with _embedding_into(pool) as run_embed:
        images = open_images(folder, skip_unreadable=skip_unreadable)
        run_embed(images, pool, image_encoder(model, device=device), **options)


@contextmanager
def _embedding_into(pool: Path) -> Iterator[Callable[..., object]]:
    from hkm_dask.io.embed import embed as run_embed
    from hkm_dask.view import info
    from hkm_dask.view.progress import show_progress

    with show_progress():
        yield run_embed
    click.echo(info.render(info.describe(pool)))


@_command(
    "hkm cluster pool.zarr tree.zarr --n-clusters 2000,400,100",
    "hkm cluster pool.zarr tree.zarr --config run.yaml --set levels.1.n_clusters=5000",
)
@click.argument("pool", type=_PATH, metavar="POOL.zarr")
@click.argument("tree", type=_PATH, metavar="TREE.zarr")
@click.option("--config", type=_PATH, metavar="FILE", help="The settings, as YAML.")
@click.option(
    "--n-clusters",
    type=_PerLevel("2000,400,100", many=True),
    metavar="K,K,...",
    help="Clusters of each level, level 1 first.",
)
@click.option(
    "--n-resamples", type=_PerLevel("10 or 0,10,10"), metavar="M|M,M,...", help="Resampling steps.  [default: 10]"
)
@click.option(
    "--resample-size",
    type=_PerLevel("auto or 10,3,3", words=["auto"]),
    metavar="R|R,R,...",
    help="Members each cluster gives to resampling.  [default: auto, half the mean cluster size]",
)
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Any setting, like levels.1.max_iter=20.")
@click.option("--seed", type=int, metavar="N", help="Keys every random number.  [default: 0]")
@click.option("--metric", type=click.Choice(["l2", "cosine"]), help="The distance.  [default: l2]")
@click.option("--subset", type=_PATH, metavar="IDX.npy", help="Cluster only these rows of the pool.")
@click.option("--restart", is_flag=True, help="Begin again, whatever is there of the tree.")
@_where_work_runs
def cluster(pool: Path, tree: Path, restart: bool, where: _Where, **settings: Any) -> None:
    """Build the hierarchy of clusters of a pool.

    Interrupted, the same command resumes. On a finished tree it says "already complete".
    """
    config = _config(**settings)
    from hkm_dask.data.layout import wip_path
    from hkm_dask.hierarchy.build import build_hierarchy
    from hkm_dask.view import info
    from hkm_dask.view.progress import show_progress

    if tree.exists() and not restart and not wip_path(tree).exists():
        # Nothing is computed for a tree that is there: it is the one asked for, or refused. So no workers are started.
        # Unless a restart was interrupted, whose unfinished tree lies beside it.
        build_hierarchy(pool, tree, config, memory_limit=where.memory_limit)
        click.echo(f"{tree}: already complete")
        return
    with show_progress(), where.connect() as runner:
        build_hierarchy(pool, tree, config, client=runner.client, memory_limit=where.memory_limit, restart=restart)
    click.echo(info.render(info.describe(tree)))


def _config(
    *,
    config: Path | None,
    n_clusters: tuple[int, ...] | None,
    n_resamples: int | tuple[int, ...] | None,
    resample_size: int | str | tuple[int | str, ...] | None,
    overrides: tuple[str, ...],
    seed: int | None,
    metric: str | None,
    subset: Path | None,
) -> Config:
    if (config is None) == (n_clusters is None):
        raise click.UsageError("Give either --config FILE or --n-clusters K,K,...")
    from hkm_dask.config import Config

    given = {"seed": seed, "metric": metric, "subset": None if subset is None else str(subset)}
    if config is None:
        assert n_clusters is not None
        return Config.from_flags(
            n_clusters,
            n_resamples=n_resamples,
            resample_size=resample_size,
            overrides=overrides,
            **given,  # type: ignore[arg-type]
        )
    if n_resamples is not None or resample_size is not None:
        raise click.UsageError(
            "--n-resamples and --resample-size go with --n-clusters; beside --config, use --set levels.1.n_resamples=5"
        )
    # An option beats the file, and --set beats both.
    chosen = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items() if value is not None]
    return Config.from_yaml(config, [*chosen, *overrides])


@_command(
    "hkm sample tree.zarr --size 10000 --out subset.npy",
    "hkm sample tree.zarr --size 10000 --out subset.parquet --within closest",
)
@click.argument("tree", type=_PATH, metavar="TREE.zarr")
@click.option("--size", type=int, required=True, metavar="N", help="How many rows.")
@click.option("--out", type=_PATH, required=True, metavar="FILE", help="An .npy, .parquet, .csv or .txt file to write.")
@click.option(
    "--strategy",
    type=click.Choice(["hierarchical", "flat"]),
    default="hierarchical",
    show_default=True,
    help="Share the rows out at every level, or once among the clusters of the top one.",
)
@click.option(
    "--within",
    type=click.Choice(["random", "closest", "furthest"]),
    default="random",
    show_default=True,
    help="Which members of a level-1 cluster come first.",
)
@click.option("--multiplier", type=int, default=1, show_default=True, metavar="N", help="How often a row may be taken.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Keys every random number.")
def sample(tree: Path, size: int, out: Path, **options: Any) -> None:
    """Draw a balanced subset from a tree.

    The rows are sorted, and none comes twice unless --multiplier allows it. An .npy file has their numbers in the
    pool, .txt their ids (or numbers); .parquet and .csv have both, with the cluster at every level and the distance
    to the level-1 centroid.
    """
    from hkm_dask.io import export

    export.check_target(out)
    from hkm_dask.hierarchy.sampling import sample as draw
    from hkm_dask.hierarchy.tree import open_hierarchy
    from hkm_dask.view.progress import show_progress

    with show_progress():
        opened = open_hierarchy(tree)
        rows = draw(opened, size, **options)
        export.write_subset(out, rows, opened)
    click.echo(f"{out}: {len(rows):,} rows")


@_command(
    "hkm info pool.zarr",
    "hkm info tree.zarr --json",
)
@click.argument("store", type=_PATH, metavar="STORE")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
def info(store: Path, as_json: bool) -> None:
    """Describe a pool or a tree.

    Sizes, levels, settings, history, and whether it is complete.
    """
    from hkm_dask.view.info import describe, render

    facts = describe(store)
    click.echo(json.dumps(facts, allow_nan=False, indent=2) if as_json else render(facts))


if __name__ == "__main__":
    main()
