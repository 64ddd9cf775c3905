"""The `hkm` command: each subcommand reads its arguments, calls one public function, and prints what came of it."""

# Whatever takes long to import is imported inside the commands, so that `hkm --help` answers at once.
from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.embed import embed
from hkm_dask.cli.groups import Commands, command_of, debug_option
from hkm_dask.cli.options import (
    DTYPE,
    PATH,
    STORE,
    Names,
    Place,
    Size,
    column_option,
    ids_file_option,
    ids_option,
    overwrite_option,
    place_options,
    pool_option,
    read_settings,
    settings_options,
)
from hkm_dask.cli.output import Output, output_option
from hkm_dask.cli.plan import plan
from hkm_dask.cli.sample import sample
from hkm_dask.version import __version__

if TYPE_CHECKING:
    from hkm_dask.data.objects import Location


@click.group(
    cls=Commands,
    params=[debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
    epilog="\b\nExample:\n  hkm ingest embeddings.npy pool.zarr\n"
    "  hkm cluster pool.zarr tree.zarr --n-clusters 2000,400,100\n"
    "  hkm sample tree.zarr --size 10000 --out subset.npy",
)
@click.version_option(__version__, message="hkm %(version)s", help="Show the version.")
def main() -> None:
    """Balanced, diverse subsets of huge pools of embeddings, by hierarchical k-means with resampling.

    Where work runs is chosen on each command: threads of this process, or --workers, --local-cuda, --scheduler.
    """


@command_of(main, "hkm demo", "hkm demo --out here --quick")
@click.option("--out", type=PATH, metavar="DIR", default=Path("hkm-demo"), help="Where to put what it makes.")
@click.option("--quick", is_flag=True, help="Less data: seconds instead of minutes.")
@place_options
def demo(out: Path, quick: bool, place: Place) -> None:
    """Go the whole way on real photographs.

    Photographs are cut into patches, which become a pool, a tree, a balanced subset and pictures of them.
    """
    from hkm_dask.demo.demo import run_demo
    from hkm_dask.view.progress import show_progress

    with show_progress(name="hkm demo"), place.connect() as runner:
        made = run_demo(out, quick=quick, client=runner.client, memory_limit=place.memory_limit)
    click.echo(str(made))


@command_of(main, "hkm ingest a.npy b.npy pool.zarr", "hkm ingest table/ pool.zarr --ids id --keep url")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("pool", type=STORE, metavar="POOL.zarr")
@click.option("--dtype", type=DTYPE, help="Store as this; the sources' own by default.")
@click.option("--normalize", is_flag=True, help="Scale every row to unit length.")
@ids_option
@ids_file_option
@column_option
@click.option(
    "--keep",
    type=Names(),
    default=(),
    show_default=False,
    metavar="COLUMN,...",
    help="Further columns to carry to the subsets.",
)
@click.option("--drop-nonfinite", is_flag=True, help="Leave out rows with NaN or Inf instead of refusing them.")
@click.option("--chunk-mb", type=float, metavar="N", help="Size of a storage chunk in MiB.")
@overwrite_option
@output_option
@place_options
def ingest(sources: tuple[str, ...], pool: Location, place: Place, output: Output, **options: Any) -> None:
    """Turn embeddings into a pool.

    A pool is one Zarr store with checksums. SOURCE is an .npy, .npz, .parquet, .arrow or .safetensors file, a folder of
    such shards, of clip-retrieval or of Hugging Face's save_to_disk, or a Zarr array or group; several are put one
    after the other.
    """
    with output.run(place) as runner:
        from hkm_dask.ingestion.ingest import ingest as run_ingest

        run_ingest(list(sources), pool, client=runner.client, **options)
    output.describe(pool)


main.add_command(embed)


@command_of(
    main,
    "hkm dedup pool.zarr --threshold 0.95 --out kept.npy",
    "hkm dedup tree.zarr --threshold 0.95 --out kept.npy --keep best --by score",
)
@click.argument("store", type=STORE, metavar="POOL.zarr|TREE.zarr")
@click.option("--threshold", type=float, required=True, metavar="COS", help="Cosine from which rows are duplicates.")
@click.option(
    "--out", type=STORE, required=True, metavar="FILE", help="Where the rows kept go: .npy, .parquet, .csv or .txt."
)
@click.option(
    "--keep",
    type=click.Choice(["closest", "random", "best"]),
    default="closest",
    help="Of each group: the row closest to its centroid, one at random, or the best by a column.",
)
@click.option(
    "--by", metavar="COLUMN", help="With --keep best: the largest value is the best; with - before it, the smallest."
)
@click.option("--subset", type=PATH, metavar="FILE", help="Look at these rows of the pool only.")
@click.option("--removed", type=STORE, metavar="FILE", help="Write the rows removed, in such a file, too.")
@click.option("--groups", type=STORE, metavar="FILE.parquet", help="Write the groups of near-duplicates, too.")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Keys every random number.")
@pool_option
@overwrite_option
@output_option
@place_options
def dedup(
    store: Location, threshold: float, out: Location, keep: str, by: str | None, subset: Path | None,
    removed: Location | None, groups: Location | None, seed: int, pool: Location | None, overwrite: bool,
    output: Output, place: Place,
) -> None:  # fmt: skip
    """Keep one row of each group of near-duplicates.

    All pairs of rows with a cosine from the threshold on are found; what they connect is a group. --out has the
    rows that are kept, for hkm cluster --subset; of a tree, only rows that it clusters are looked at. --removed is for
    hkm sample --exclude-ids.
    """
    with output.progress():
        from hkm_dask.curation import dedup as curation

        curation.check_targets(out, removed, groups, overwrite=overwrite)
    with output.run(place) as runner:
        found = curation.dedup(
            store, threshold, keep=keep, by=by, subset=subset, seed=seed, client=runner.client,
            memory_limit=place.memory_limit, pool=pool,
        )  # fmt: skip
        found.save(out, removed=removed, groups=groups, overwrite=overwrite)
    output.answer(found.facts(), f"{out}: {found}")


@command_of(
    main,
    "hkm cluster pool.zarr tree.zarr --n-clusters 2000,400,100",
    "hkm cluster pool.zarr tree.zarr --config run.yaml --set levels.1.n_clusters=5000",
)
@click.argument("pool", type=STORE, metavar="POOL.zarr")
@click.argument("tree", type=STORE, metavar="TREE.zarr")
@settings_options
@click.option("--restart", is_flag=True, help="Begin again, whatever is there of the tree.")
@output_option
@place_options
def cluster(pool: Location, tree: Location, restart: bool, place: Place, output: Output, **settings: Any) -> None:
    """Build the hierarchy of clusters of a pool.

    Without --config and --n-clusters, the numbers of clusters are those advised for so many rows; what is taken is
    printed. Interrupted, the same command resumes. On a finished tree it says "already complete".
    """
    from hkm_dask.hierarchy.source import n_clustered

    config = read_settings(partial(n_clustered, pool), output.note, **settings)
    from hkm_dask.data.layout import wip_path
    from hkm_dask.data.store import unfinished_path
    from hkm_dask.hierarchy.build import write_hierarchy
    from hkm_dask.planning.before_run import kernels_checked, plan_told
    from hkm_dask.view import info

    begun = wip_path(tree).exists() or unfinished_path(tree) == tree
    if tree.exists() and not restart and not begun:
        # Nothing is computed for a tree that is there: it is the one asked for, or refused. So no workers are started.
        # Unless a restart was interrupted, whose unfinished tree lies beside it.
        write_hierarchy(pool, tree, config, memory_limit=place.memory_limit)
        output.answer(info.describe(tree), f"{tree}: already complete")
        return
    with kernels_checked(pool, config) if place.local_cuda else nullcontext(), output.run(place) as runner:
        with plan_told(pool, config, runner) if not wip_path(tree).exists() or restart else nullcontext():
            write_hierarchy(pool, tree, config, client=runner.client, memory_limit=place.memory_limit, restart=restart)
    output.describe(tree)


command_of(
    main,
    "hkm plan pool.zarr --n-clusters 2000,400,100",
    "hkm plan --n-samples 743M --n-features 1024 --config web-images.yaml --gpu a100:128",
)(plan)
command_of(
    main,
    "hkm sample tree.zarr --size 10000 --out subset.npy",
    "hkm sample tree.zarr --size 10000 --out subset.parquet --exclude 2:19,3:4 --max-per domain=100",
)(sample)


@command_of(main, "hkm compare a.npy b.npy --tree tree.zarr", "hkm compare pool.zarr subset.parquet --json")
@click.argument("a", type=STORE, metavar="A")
@click.argument("b", type=STORE, metavar="B")
@click.option("--tree", type=STORE, metavar="TREE.zarr", help="The tree whose clusters are counted.")
@click.option("--pool", type=STORE, metavar="POOL.zarr", help="The pool, where there is no tree.")
@click.option("--threshold", type=float, default=0.95, metavar="COS", help="Cosine from which rows are duplicates.")
@click.option(
    "--sample", type=click.IntRange(min=0), default=1000, metavar="N", help="Rows of the pool to measure distances of."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Draws these rows.")
@click.option("--memory-limit", type=Size(), metavar="SIZE", help="What this process may hold, like 4GiB.")
@output_option
def compare(
    a: Location, b: Location, tree: Location | None, pool: Location | None, threshold: float, sample: int, seed: int,
    memory_limit: int | None, output: Output,
) -> None:  # fmt: skip
    """Compare two subsets of a pool.

    A and B are files that hkm sample or hkm dedup wrote (.npy, .parquet, .csv or .txt), the pool itself, or a tree for
    the rows it clusters. Told are sizes, overlap, clusters covered and how evenly at every level, how far the pool is
    from each, near-duplicates within each, and the pool's columns.
    """
    with output.progress():
        from hkm_dask.curation import compare as curation

        found = curation.compare(
            a, b, tree=tree, pool=pool, threshold=threshold, sample=sample, seed=seed, memory_limit=memory_limit
        )
    output.answer(found.facts, str(found))


@command_of(main, "hkm info pool.zarr", "hkm info tree.zarr --json")
@click.argument("store", type=STORE, metavar="STORE")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
def info(store: Location, as_json: bool) -> None:
    """Describe a pool, a tree or an assignment.

    Sizes, levels, settings, history, and whether it is complete.
    """
    Output(as_json).describe(store)


@command_of(main, "hkm export tree.zarr rows.parquet", "hkm export pool.zarr rows.parquet --xy --embeddings")
@click.argument("store", type=STORE, metavar="POOL.zarr|TREE.zarr|NEW.zarr")
@click.argument("out", type=STORE, metavar="OUT.parquet")
@click.option("--embeddings", is_flag=True, help="With the embeddings, as a column of vectors.")
@click.option("--xy", is_flag=True, help="With x and y: the first two principal components, for a scatter plot.")
@pool_option
@overwrite_option
@output_option
def export(store: Location, out: Location, output: Output, **options: Any) -> None:
    """Write all rows of a pool, a tree or an assignment as a table.

    Its columns are row, id, the columns of the pool, and of a tree or an assignment the cluster at every level and the
    distance to the level-1 centroid. It is written block by block, so it may be larger than memory.
    """
    with output.progress():
        from hkm_dask.hierarchy.table import export as run_export

        run_export(store, out, **options)
    import pyarrow.parquet as pq

    with out.open("rb") as opened, pq.ParquetFile(opened) as file:
        n_rows, columns = file.metadata.num_rows, file.schema_arrow.names
    facts = {"out": str(out), "n_rows": n_rows, "columns": columns}
    output.answer(facts, f"{out}: {n_rows:,} rows of {', '.join(columns)}")


@command_of(main, "hkm assign tree.zarr new.zarr assigned.zarr", "hkm assign tree.zarr new.npy assigned.zarr")
@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.argument("pool", type=STORE, metavar="POOL2.zarr")
@click.argument("out", type=STORE, metavar="OUT.zarr")
@click.option("--restart", is_flag=True, help="Begin again, whatever is there of OUT.zarr.")
@output_option
@place_options
def assign(tree: Location, pool: Location, out: Location, restart: bool, place: Place, output: Output) -> None:
    """Give new samples their clusters at every level of a tree.

    OUT.zarr has their clusters as level_1, level_2 and so on, their Euclidean distance to the level-1 centroid, and
    their ids; xarray.open_zarr opens it. The tree stays as it is. Interrupted, the same command resumes.
    """
    with output.run(place) as runner:
        from hkm_dask.hierarchy import assignment

        assignment.assign(tree, pool, out, client=runner.client, memory_limit=place.memory_limit, restart=restart)
    output.describe(out)


@command_of(
    main, "hkm update tree.zarr pool.zarr new.npy", "hkm update tree.zarr pool.zarr new.npy --ids-file new.csv --ids id"
)
@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.argument("pool", type=STORE, metavar="POOL.zarr")
@click.argument("new", type=STORE, nargs=-1, metavar="NEW...")
@ids_option
@ids_file_option
@column_option
@output_option
@place_options
def update(
    tree: Location, pool: Location, new: tuple[Location, ...], place: Place, output: Output, **options: Any
) -> None:
    """Let new samples join a tree and its pool.

    Nothing is clustered anew. NEW are pools, or what hkm ingest takes. Their rows lie below those of the pool, so that
    row numbers and subsets stay valid; each goes to the nearest of all level-1 centroids, which stay where they are.
    TREE.zarr and POOL.zarr are replaced when both are complete. Then renew the draw with hkm sample. Without NEW a tree
    follows its pool that has grown with another tree. Interrupted, the same command resumes.

    --ids, --ids-file and --column tell of those NEW that are no pools. The columns that the pool has are taken from
    them, or from the table of --ids-file.
    """
    with output.run(place) as runner:
        from hkm_dask.data.pool import open_pool
        from hkm_dask.hierarchy.tree.tree import open_hierarchy
        from hkm_dask.ingestion.update import update as run_update

        run_update(tree, pool, *new, client=runner.client, memory_limit=place.memory_limit, **options)
    grown, n_samples = open_hierarchy(tree), open_pool(pool).n_samples
    n_clustered = grown["level_1"].sizes["member_1"]
    updates = grown.attrs.get("updates") or [{"n_samples": n_samples}]
    n_joined = n_samples - int(updates[-1]["n_samples"])
    held = f"{n_samples:,}" if n_clustered == n_samples else f"{n_clustered:,} of the pool's {n_samples:,}"
    text = f"{tree}: {held} samples, of which {n_joined:,} joined in the last update"
    facts = {"tree": str(tree), "n_samples": n_samples, "n_clustered": n_clustered, "n_joined": n_joined}
    output.answer(facts, f"{text}\n  to renew the draw: hkm sample {tree} --size N --out FILE")


@command_of(main, "hkm verify pool.zarr", "hkm verify tree.zarr --pool moved/pool.zarr")
@click.argument("store", type=STORE, metavar="STORE")
@click.option("--pool", type=STORE, metavar="POOL.zarr", help="Where the pool of it lies now.")
@click.option("--tree", type=STORE, metavar="TREE.zarr", help="Where the tree of an assignment lies now.")
@click.option(
    "--sample", type=click.IntRange(min=0), default=1000, metavar="N", help="Rows per level to measure again."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Draws these rows.")
@output_option
def verify(
    store: Location, pool: Location | None, tree: Location | None, sample: int, seed: int, output: Output
) -> None:
    """Check a pool, a tree or an assignment from end to end.

    Every chunk and its checksum, all metadata, and what must agree: the values of a pool with their statistics, ids and
    fingerprint; labels, distances, members, sizes and inertia of every level of a tree; the clusters of an assignment
    with its tree, and its ids. Some rows of each level are measured again in float64, against all centroids. It goes on
    after a problem; the exit code is 1 where it found any.
    """
    with output.progress():
        from hkm_dask.hierarchy.verify.verify import verify as run_verify

        found = run_verify(store, pool=pool, tree=tree, sample=sample, seed=seed)
    head, *lines = str(found).splitlines()
    output.answer(found.facts(), "\n".join([click.style(head, fg="green" if found.sound else "red"), *lines]))
    if not found.sound:
        click.get_current_context().exit(1)


@command_of(
    main,
    "hkm report tree.zarr --out report.html",
    "hkm report tree.zarr --subset subset.npy --images photos/ --out report.html",
)
@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.option("--out", type=PATH, required=True, metavar="FILE.html", help="Where to write the report.")
@click.option("--subset", type=PATH, metavar="FILE", help="The draw, a file of `hkm sample`.")
@pool_option
@click.option("--labels", metavar="FILE|COLUMN", help="A class of each sample: an .npy of numbers, or a column.")
@click.option("--label-names", type=PATH, metavar="FILE.json", help="Names of the classes.")
@click.option("--captions", metavar="FILE|COLUMN", help="A caption for each sample: a file of texts, or a column.")
@click.option("--images", type=PATH, metavar="FOLDER", help="The images that ids or a column name: a folder or .zip.")
@overwrite_option
@output_option
def report(tree: Location, out: Path, output: Output, **options: Any) -> None:
    """Report on a tree and on a draw from it, as one HTML file.

    Settings, sizes, inertia and time of each level, a picture of the hierarchy, the draw against the pool by cluster
    and by column, near-duplicates left in the draw, and warnings where curation looks harmful. The file needs no other
    and no network; clusters are named LEVEL:NUMBER, as --exclude of hkm sample takes them.
    """
    with output.progress():
        from hkm_dask.view.report.report import report as write_report

        target = write_report(tree, out, **options)
    size = target.stat().st_size
    output.answer({"out": str(target), "n_bytes": size}, f"{target}: {size / 2**20:.1f} MiB")


@command_of(main, "hkm browse tree.zarr", "hkm browse tree.zarr --images photos/ --subset subset.npy")
@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.option("--captions", metavar="FILE|COLUMN", help="A line of text for each row, or a column of the pool.")
@click.option("--images", type=PATH, metavar="FOLDER|ZIP", help="Where the images are that the pool's ids name.")
@click.option("--subset", type=PATH, metavar="FILE", help="A draw to see beside the pool, a file of `hkm sample`.")
@click.option(
    "--out", type=PATH, metavar="FILE", default=Path("weights.csv"), help="Where marks are saved, and read again."
)
@pool_option
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="0 takes one that is free.")
@click.option(
    "--host", default="127.0.0.1", metavar="ADDRESS", help="Let other machines in: not on a network you share."
)
@click.option("--open", "opens", is_flag=True, help="Open the page in the web browser.")
def browse(tree: Location, opens: bool, **options: Any) -> None:
    """Walk a tree in the web browser.

    From the top down: sizes, samples in the middle and at the border of each cluster, search by caption, id or
    embedding. Clusters can be marked to be left out or reweighed; `hkm sample --weights` takes the file that is saved.
    The page is for this machine only, at the address that is printed, until Ctrl-C.
    """
    from hkm_dask.browsing.browse import browse as run_browse
    from hkm_dask.view.progress import show_progress

    with show_progress():
        browser = run_browse(tree, **options)
    with browser:
        try:
            click.echo(browser.url)
            click.echo("Ctrl-C ends it. On another machine, forward the port: ssh -L PORT:127.0.0.1:PORT", err=True)
            if opens:
                click.launch(browser.url)
            browser.wait()
        except KeyboardInterrupt:
            if n := browser.n_unsaved:
                what = "1 mark was" if n == 1 else f"{n} marks were"
                click.echo(f"\n{what} not saved to {options['out']}", err=True)
