"""The `hkm` command: each subcommand parses its arguments, calls one public function, and prints the result."""

# Slow imports are inside the commands, so that `hkm --help` answers at once.
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
    """Select balanced, diverse subsets of large pools of embeddings by hierarchical k-means with resampling.

    By default, a command uses threads of this process. Use --workers, --local-cuda or --scheduler to run it elsewhere.
    """


@command_of(main, "hkm demo", "hkm demo --out here --quick")
@click.option("--out", type=PATH, metavar="DIR", default=Path("hkm-demo"), help="Folder for the output.")
@click.option("--quick", is_flag=True, help="Use less data: seconds instead of minutes.")
@place_options
def demo(out: Path, quick: bool, place: Place) -> None:
    """Run all steps on two real photographs.

    The photographs are cut into patches. The command makes a pool, a tree and a balanced subset of them, and pictures.
    """
    from hkm_dask.demo.demo import run_demo
    from hkm_dask.view.progress import show_progress

    with show_progress(name="hkm demo"), place.connect() as runner:
        made = run_demo(out, quick=quick, client=runner.client, memory_limit=place.memory_limit)
    click.echo(str(made))


@command_of(main, "hkm ingest a.npy b.npy pool.zarr", "hkm ingest table/ pool.zarr --ids id --keep url")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("pool", type=STORE, metavar="POOL.zarr")
@click.option("--dtype", type=DTYPE, help="Storage type.  [default: that of the sources]", show_default=False)
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
    help="Further columns to store in the pool and write to subsets.",
)
@click.option("--drop-nonfinite", is_flag=True, help="Leave out rows with NaN or Inf instead of failing.")
@click.option("--chunk-mb", type=float, metavar="N", help="Storage chunk size in MiB.")
@overwrite_option
@output_option
@place_options
def ingest(sources: tuple[str, ...], pool: Location, place: Place, output: Output, **options: Any) -> None:
    """Convert embeddings into a pool.

    A pool is a Zarr store with checksums. SOURCE is an .npy, .npz, .parquet, .arrow or .safetensors file, a folder of
    such files, a folder written by clip-retrieval or by Hugging Face's save_to_disk, or a Zarr array or group. Several
    sources are concatenated.
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
@click.option("--threshold", type=float, required=True, metavar="COS", help="Minimum cosine of near-duplicates.")
@click.option(
    "--out", type=STORE, required=True, metavar="FILE", help="File for the rows kept: .npy, .parquet, .csv or .txt."
)
@click.option(
    "--keep",
    type=click.Choice(["closest", "random", "best"]),
    default="closest",
    help="Row kept per group: closest to its centroid, random, or best by a column.",
)
@click.option(
    "--by", metavar="COLUMN", help="With --keep best: keep the largest value, or the smallest with a leading -."
)
@click.option("--subset", type=PATH, metavar="FILE", help="Compare only these rows of the pool.")
@click.option("--removed", type=STORE, metavar="FILE", help="Also write the rows removed, in the same formats.")
@click.option("--groups", type=STORE, metavar="FILE.parquet", help="Also write the groups of near-duplicates.")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Random seed.")
@pool_option
@overwrite_option
@output_option
@place_options
def dedup(
    store: Location, threshold: float, out: Location, keep: str, by: str | None, subset: Path | None,
    removed: Location | None, groups: Location | None, seed: int, pool: Location | None, overwrite: bool,
    output: Output, place: Place,
) -> None:  # fmt: skip
    """Keep one row per group of near-duplicates.

    Finds all pairs of rows whose cosine is at least the threshold; connected pairs form a group. Use the file of --out
    with hkm cluster --subset, and that of --removed with hkm sample --exclude-ids. Given a tree, only the rows that it
    clusters are compared.
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
@click.option("--restart", is_flag=True, help="Start again, and replace the existing tree.")
@output_option
@place_options
def cluster(pool: Location, tree: Location, restart: bool, place: Place, output: Output, **settings: Any) -> None:
    """Cluster a pool into a tree.

    Without --config and --n-clusters, the recommended numbers of clusters for this many rows are used and printed.
    If interrupted, run the same command again to resume. A finished tree is reported as already complete.
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
        # A complete tree needs no computation, so no workers are started: it matches the settings, or is refused. The
        # exception is an interrupted restart, whose unfinished tree is beside the complete one.
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
@click.option("--tree", type=STORE, metavar="TREE.zarr", help="Tree whose clusters are counted.")
@click.option("--pool", type=STORE, metavar="POOL.zarr", help="Pool, if there is no tree.")
@click.option("--threshold", type=float, default=0.95, metavar="COS", help="Minimum cosine of near-duplicates.")
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=1000,
    metavar="N",
    help="Number of pool rows whose distances are measured.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Random seed of these rows.")
@click.option("--memory-limit", type=Size(), metavar="SIZE", help="Memory limit of this process, like 4GiB.")
@output_option
def compare(
    a: Location, b: Location, tree: Location | None, pool: Location | None, threshold: float, sample: int, seed: int,
    memory_limit: int | None, output: Output,
) -> None:  # fmt: skip
    """Compare two subsets of a pool.

    A and B are files written by hkm sample or hkm dedup (.npy, .parquet, .csv or .txt), the pool itself, or a tree for
    the rows it clusters. The comparison shows sizes, overlap, coverage and evenness of the clusters at every level,
    distances from the pool to each subset, near-duplicates within each, and the pool's columns.
    """
    with output.progress():
        from hkm_dask.curation import compare as curation

        found = curation.compare(
            a, b, tree=tree, pool=pool, threshold=threshold, sample=sample, seed=seed, memory_limit=memory_limit
        )
    output.answer(found.facts, str(found))


@command_of(main, "hkm info pool.zarr", "hkm info tree.zarr --json")
@click.argument("store", type=STORE, metavar="STORE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(store: Location, as_json: bool) -> None:
    """Describe a pool, a tree or an assignment.

    Shows sizes, levels, settings, history, and whether the store is complete.
    """
    Output(as_json).describe(store)


@command_of(main, "hkm export tree.zarr rows.parquet", "hkm export pool.zarr rows.parquet --xy --embeddings")
@click.argument("store", type=STORE, metavar="POOL.zarr|TREE.zarr|NEW.zarr")
@click.argument("out", type=STORE, metavar="OUT.parquet")
@click.option("--embeddings", is_flag=True, help="Include the embeddings, as a column of vectors.")
@click.option("--xy", is_flag=True, help="Include x and y, the first two principal components, for a scatter plot.")
@pool_option
@overwrite_option
@output_option
def export(store: Location, out: Location, output: Output, **options: Any) -> None:
    """Write all rows of a pool, tree or assignment as Parquet.

    The columns are row, id, the columns of the pool, and, for a tree or an assignment, the cluster at every level and
    the distance to the level-1 centroid. The table is written block by block and may be larger than memory.
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
@click.option("--restart", is_flag=True, help="Start again, and replace OUT.zarr.")
@output_option
@place_options
def assign(tree: Location, pool: Location, out: Location, restart: bool, place: Place, output: Output) -> None:
    """Assign new samples to the clusters of a tree.

    OUT.zarr holds their clusters as level_1, level_2 and so on, their Euclidean distance to the level-1 centroid, and
    their ids; xarray.open_zarr opens it. The tree does not change. If interrupted, run the same command again to
    resume.
    """
    with output.run(place) as runner:
        from hkm_dask.hierarchy import assignment

        assignment.assign(tree, pool, out, client=runner.client, memory_limit=place.memory_limit, restart=restart)
    output.describe(out)


@command_of(
    main,
    "hkm update tree.zarr pool.zarr table/ --ids id --skip-known",
    "hkm update tree.zarr pool.zarr new.npy --ids-file new.csv --ids id",
)
@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.argument("pool", type=STORE, metavar="POOL.zarr")
@click.argument("new", type=STORE, nargs=-1, metavar="NEW...")
@ids_option
@ids_file_option
@column_option
@click.option("--skip-known", is_flag=True, help="Leave out samples whose ids are in the pool already.")
@output_option
@place_options
def update(
    tree: Location, pool: Location, new: tuple[Location, ...], place: Place, output: Output, **options: Any
) -> None:
    """Add new samples to a tree and its pool.

    Nothing is clustered again: each sample is assigned to the nearest level-1 centroid, and centroids do not move. NEW
    are pools, or anything hkm ingest reads. Their rows are appended to the pool, so row numbers and subsets stay valid.
    TREE.zarr and POOL.zarr are replaced when both are complete; to resume, run the same command again. Without NEW, the
    tree is updated to a pool that has grown with another tree, or has another path now.

    --ids, --ids-file, --column and --skip-known apply only to NEW that are not pools. The pool's columns are read from
    them, or from the table of --ids-file.
    """
    with output.run(place) as runner:
        from hkm_dask.data.pool import open_pool
        from hkm_dask.hierarchy.tree.tree import open_hierarchy
        from hkm_dask.ingestion.update import update as run_update

        run_update(tree, pool, *new, client=runner.client, memory_limit=place.memory_limit, **options)
    grown, n_samples = open_hierarchy(tree), open_pool(pool).n_samples
    n_clustered = grown["level_1"].sizes["member_1"]
    n_joined = n_samples - int((grown.attrs.get("updates") or [{"n_samples": n_samples}])[-1]["n_samples"])
    held = f"{n_samples:,}" if n_clustered == n_samples else f"{n_clustered:,} of the pool's {n_samples:,}"
    text = f"{tree}: {held} samples, of which {n_joined:,} were added in the last update"
    facts = {"tree": str(tree), "n_samples": n_samples, "n_clustered": n_clustered, "n_joined": n_joined}
    output.answer(facts, f"{text}\n  to draw a new subset: hkm sample {tree} --size N --out FILE")


@command_of(main, "hkm verify pool.zarr", "hkm verify tree.zarr --pool moved/pool.zarr")
@click.argument("store", type=STORE, metavar="STORE")
@click.option("--pool", type=STORE, metavar="POOL.zarr", help="Current path of its pool.")
@click.option("--tree", type=STORE, metavar="TREE.zarr", help="Current path of the tree of an assignment.")
@click.option("--sample", type=click.IntRange(min=0), default=1000, metavar="N", help="Rows per level to recompute.")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Random seed of these rows.")
@output_option
def verify(
    store: Location, pool: Location | None, tree: Location | None, sample: int, seed: int, output: Output
) -> None:
    """Check a pool, a tree or an assignment from end to end.

    Checks every chunk and its checksum, all metadata, and consistency: of a pool's values with its statistics, ids and
    fingerprint; of labels, distances, members, sizes and inertia at every level of a tree; of an assignment with its
    tree and ids. Some rows of each level are measured again in float64 against all centroids, or those of their
    cluster's parts if it was split. It continues after a problem, and the exit code is 1 if it found any.
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
@click.option("--out", type=PATH, required=True, metavar="FILE.html", help="File for the report.")
@click.option("--subset", type=PATH, metavar="FILE", help="Subset to compare with the pool, a file of `hkm sample`.")
@pool_option
@click.option("--labels", metavar="FILE|COLUMN", help="Class of each sample: an .npy file of integers, or a column.")
@click.option("--label-names", type=PATH, metavar="FILE.json", help="Names of the classes, as JSON.")
@click.option("--captions", metavar="FILE|COLUMN", help="Caption of each sample: a file of texts, or a column.")
@click.option("--images", type=PATH, metavar="FOLDER", help="Folder or .zip of images, named by ids or a column.")
@overwrite_option
@output_option
def report(tree: Location, out: Path, output: Output, **options: Any) -> None:
    """Write an HTML report on a tree and a subset.

    The report shows settings, sizes, inertia and time of each level, a picture of the hierarchy, the subset against
    the pool by cluster and by column, near-duplicates in the subset, and warnings where curation looks harmful. It is
    one file that needs no network. Clusters are named LEVEL:NUMBER, as in hkm sample --exclude.
    """
    with output.progress():
        from hkm_dask.view.report.report import report as write_report

        target = write_report(tree, out, **options)
    size = target.stat().st_size
    output.answer({"out": str(target), "n_bytes": size}, f"{target}: {size / 2**20:.1f} MiB")


@command_of(main, "hkm browse tree.zarr", "hkm browse tree.zarr --images photos/ --subset subset.npy")
@click.argument("tree", type=STORE, metavar="TREE.zarr")
@click.option("--captions", metavar="FILE|COLUMN", help="Text file with a line per row, or a column of the pool.")
@click.option("--images", type=PATH, metavar="FOLDER|ZIP", help="Folder or .zip of images, named by the pool's ids.")
@click.option("--subset", type=PATH, metavar="FILE", help="Subset to compare with the pool, a file of `hkm sample`.")
@click.option(
    "--out",
    type=PATH,
    metavar="FILE",
    default=Path("weights.csv"),
    help="File in which marks are saved, and from which they are loaded.",
)
@pool_option
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="0 selects a free port.")
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Listen there, to admit other machines; not for shared networks.",
)
@click.option("--open", "opens", is_flag=True, help="Open the page in the web browser.")
def browse(tree: Location, opens: bool, **options: Any) -> None:
    """Browse a tree in the web browser.

    Shows clusters from the top down: sizes, samples at the center and at the border, and search by caption, id or
    embedding. You can mark clusters to exclude or weight them; hkm sample --weights reads the saved file. The page is
    for this machine only, at the printed address, until you press Ctrl-C.
    """
    from hkm_dask.browsing.browse import browse as run_browse
    from hkm_dask.view.progress import show_progress

    with show_progress():
        browser = run_browse(tree, **options)
    with browser:
        try:
            click.echo(browser.url)
            click.echo(
                "Press Ctrl-C to end. From another machine, forward the port: ssh -L PORT:127.0.0.1:PORT", err=True
            )
            if opens:
                click.launch(browser.url)
            browser.wait()
        except KeyboardInterrupt:
            if n := browser.n_unsaved:
                what = "1 mark was" if n == 1 else f"{n} marks were"
                click.echo(f"\n{what} not saved to {options['out']}", err=True)
