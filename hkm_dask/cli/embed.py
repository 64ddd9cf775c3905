"""The commands `hkm embed text`, `hkm embed image` and `hkm embed raster`."""

# Slow imports are inside the commands, so that `hkm --help` answers at once.
from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from hkm_dask.cli.groups import OrderedGroup, command_of, debug_option
from hkm_dask.cli.options import DTYPE, PATH, PerLevel, with_options
from hkm_dask.cli.output import Output, output_option


@click.group(
    cls=OrderedGroup,
    params=[debug_option()],
    epilog="\b\nExample:\n  hkm embed text texts.jsonl pool.zarr --model all-MiniLM-L6-v2/\n"
    "  hkm embed image photos/ pool.zarr --model hog\n"
    "  hkm embed raster scenes/ pool.zarr --size 256 --model dinov2-large/",
)
def embed() -> None:
    """Embed texts, images or rasters into a pool.

    Items are streamed through a model in this process, on a GPU if torch finds one. If interrupted, run the same
    command again to resume. Nothing is computed for a finished pool.
    """


def _embedding_options(batch_size: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return with_options(
        click.option("--dtype", type=DTYPE, default="float16", help="Storage type."),
        click.option("--normalize", is_flag=True, help="Scale every embedding to unit length."),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=batch_size,
            metavar="N",
            help="Items per model call.",
        ),
        click.option(
            "--device", metavar="NAME", help="Device of the model, like cuda:1.  [default: a GPU if available]"
        ),
        click.option(
            "--chunk-mb",
            type=float,
            metavar="N",
            help="Storage chunk size in MiB; resuming starts after the last finished chunk.",
        ),
        click.option("--restart", is_flag=True, help="Start again, and replace the existing pool."),
        output_option,
    )


_image_model_option = click.option(
    "--model",
    required=True,
    metavar="DIR|hog|cells",
    help="Folder of a transformers or timm model, or a descriptor without weights: hog (edges and colors) or cells "
    "(colors only).",
)


@command_of(
    embed,
    "hkm embed text texts.txt pool.zarr --model all-MiniLM-L6-v2/",
    "hkm embed text shards/ pool.zarr --model DIR --column raw_content --ids url",
)
@click.argument("source", type=PATH, metavar="INPUT")
@click.argument("pool", type=PATH, metavar="POOL.zarr")
@click.option("--model", type=PATH, required=True, metavar="DIR", help="Folder of a sentence-transformers model.")
@click.option("--column", metavar="NAME", help="Key or column of the texts.  [default: text]")
@click.option("--ids", metavar="COLUMN", help="Key or column of the ids.")
@click.option("--skip-empty", is_flag=True, help="Leave out empty texts instead of failing.")
@_embedding_options(32)
def text(
    source: Path, pool: Path, model: Path, batch_size: int, device: str | None, output: Output, **options: Any
) -> None:
    """Embed texts.

    INPUT is a .txt file with one text per line, a .jsonl or .parquet file, or a folder of such files. The model
    truncates texts that are longer than its limit.
    """
    from hkm_dask.embedding.encoders import SORTED_BATCHES, text_encoder
    from hkm_dask.embedding.models import model_folder
    from hkm_dask.embedding.texts import open_texts

    _check_before_long_passes(partial(model_folder, model), "input", [source], options["chunk_mb"])
    with _embedding_into(pool, output) as run_embed:
        texts = open_texts(source, **_taken(options, "column", "ids", "skip_empty"))
        encoder = text_encoder(model, batch_size=batch_size, device=device)
        run_embed(texts, pool, encoder, batch_size=SORTED_BATCHES * batch_size, **options)


@command_of(
    embed,
    "hkm embed image photos/ pool.zarr --model hog",
    "hkm embed image photos.zip pool.zarr --model dinov2-large/ --batch-size 64",
)
@click.argument("folder", type=PATH, metavar="FOLDER")
@click.argument("pool", type=PATH, metavar="POOL.zarr")
@_image_model_option
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be read instead of failing.")
@_embedding_options(64)
def image(
    folder: Path, pool: Path, model: str, skip_unreadable: bool, device: str | None, output: Output, **options: Any
) -> None:
    """Embed images.

    FOLDER is a folder of images, with subfolders, or a .zip file of images. Their paths become the ids.
    """
    from hkm_dask.embedding.encoders import image_encoder
    from hkm_dask.embedding.images import open_images

    _check_before_long_passes(partial(_check_image_model, model), "folder", [folder], options["chunk_mb"])
    with _embedding_into(pool, output) as run_embed:
        images = open_images(folder, skip_unreadable=skip_unreadable)
        run_embed(images, pool, image_encoder(model, device=device), **options)


@command_of(
    embed,
    "hkm embed raster earth.jpg pool.zarr --size 16 --step 8 --bounds -180 -90 180 90 --model cells",
    "hkm embed raster scenes/ pool.zarr --size 256 --bands 4,3,2 --values 0 3000 --model dinov2-large/",
)
@click.argument("rasters", type=PATH, nargs=-1, required=True, metavar="RASTER...")
@click.argument("pool", type=PATH, metavar="POOL.zarr")
@click.option("--size", type=click.IntRange(min=1), required=True, metavar="N", help="Side of a patch in pixels.")
@click.option(
    "--step",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pixels from one patch to the next.  [default: --size, without overlap]",
)
@click.option(
    "--bands",
    type=PerLevel("4,3,2", many=True),
    metavar="R,G,B",
    help="Bands for red, green and blue, or one band for gray, counted from 1.  [default: 1,2,3, or 1]",
)
@click.option(
    "--values",
    "value_range",
    type=float,
    nargs=2,
    metavar="BLACK WHITE",
    help="Values of black and white, for rasters that do not have 8 bits.",
)
@click.option(
    "--bounds",
    type=float,
    nargs=4,
    metavar="W S E N",
    help="Edges of a raster in degrees, if it has no coordinates.",
)
@click.option(
    "--max-missing",
    type=float,
    default=1.0,
    metavar="SHARE",
    help="Leave out patches with a larger share of missing pixels.",
)
@_image_model_option
@_embedding_options(64)
def raster(
    rasters: tuple[Path, ...], pool: Path, model: str, device: str | None, output: Output, **options: Any
) -> None:
    """Embed patches of rasters.

    Each RASTER is a GeoTIFF, JPEG or PNG file, or a folder of them. They are read by windows and may be larger than
    memory. Ids like scene.tif[256x256+512+1024] give width, height, left and top. The columns raster, top, left,
    longitude and latitude are stored in the pool and written to subsets.
    """
    from hkm_dask.embedding.encoders import image_encoder
    from hkm_dask.embedding.raster_patches import open_windows

    _check_before_long_passes(partial(_check_image_model, model), "raster", rasters, options["chunk_mb"])
    with _embedding_into(pool, output) as run_embed:
        chosen = _taken(options, "size", "step", "bands", "value_range", "bounds", "max_missing")
        windows = open_windows(rasters, **chosen)
        run_embed(windows, pool, image_encoder(model, device=device), **options)


def _taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Pop the options of a source from those of a command; the rest are arguments of `embed`."""
    return {name: options.pop(name) for name in names}


def _check_before_long_passes(
    check_model: Callable[[], object], name: str, sources: Iterable[Path], chunk_mb: float | None
) -> None:
    """Report all problems that are quick to find, before reading all items."""
    from hkm_dask.data.layout import chunk_rows
    from hkm_dask.errors import InputError, check_all

    def check_source(path: Path) -> None:
        if not path.exists():
            raise InputError(f"{name}={path} does not exist; check the path")

    check_all(
        *(partial(check_source, path) for path in sources), check_model, partial(chunk_rows, 1, 1, chunk_mb=chunk_mb)
    )


def _check_image_model(model: str) -> None:
    from hkm_dask.embedding.encoders import DESCRIPTORS
    from hkm_dask.embedding.models import model_folder
    from hkm_dask.errors import InputError

    known = [str(name) for name in DESCRIPTORS]
    if model in known:
        return
    if (near := difflib.get_close_matches(model, known, n=1)) and not Path(model).exists():
        raise InputError(f"model={model} should be a model folder, {' or '.join(known)}; did you mean {near[0]}?")
    model_folder(model)


@contextmanager
def _embedding_into(pool: Path, output: Output) -> Iterator[Callable[..., object]]:
    from hkm_dask.embedding.embed import embed as run_embed

    with output.progress():
        yield run_embed
    output.describe(pool)
