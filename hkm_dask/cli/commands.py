"""The `hkm` command: each subcommand reads its arguments, calls one public function, and prints what came of it."""

# Whatever takes long to import is imported inside the commands, so that `hkm --help` answers at once.
from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkm_dask.cli.assign import assign
from hkm_dask.cli.browse import browse
from hkm_dask.cli.compare import compare
from hkm_dask.cli.dedup import dedup
from hkm_dask.cli.embed import embed
from hkm_dask.cli.export import export
from hkm_dask.cli.groups import Commands, command_of, debug_option
from hkm_dask.cli.ingest import ingest
from hkm_dask.cli.options import PATH, STORE, Place, place_options
from hkm_dask.cli.output import Output, output_option
from hkm_dask.cli.plan import plan
from hkm_dask.cli.report import report
from hkm_dask.cli.sample import sample
from hkm_dask.cli.settings import read_settings, settings_options
from hkm_dask.cli.update import update
from hkm_dask.cli.verify import verify
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


command_of(main, "hkm ingest a.npy b.npy pool.zarr", "hkm ingest table/ pool.zarr --ids id --keep url")(ingest)
main.add_command(embed)
command_of(
    main,
    "hkm dedup pool.zarr --threshold 0.95 --out kept.npy",
    "hkm dedup tree.zarr --threshold 0.95 --out kept.npy --keep best --by score",
)(dedup)


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
command_of(main, "hkm compare a.npy b.npy --tree tree.zarr", "hkm compare pool.zarr subset.parquet --json")(compare)


@command_of(main, "hkm info pool.zarr", "hkm info tree.zarr --json")
@click.argument("store", type=STORE, metavar="STORE")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
def info(store: Location, as_json: bool) -> None:
    """Describe a pool or a tree.

    Sizes, levels, settings, history, and whether it is complete.
    """
    Output(as_json).describe(store)


command_of(main, "hkm export tree.zarr rows.parquet", "hkm export pool.zarr rows.parquet --xy --embeddings")(export)
command_of(main, "hkm assign tree.zarr new.zarr assigned.zarr", "hkm assign tree.zarr new.npy assigned.zarr")(assign)
command_of(
    main,
    "hkm update tree.zarr pool.zarr new.npy",
    "hkm update tree.zarr pool.zarr new.npy --ids-file new.csv --ids id",
)(update)
command_of(main, "hkm verify pool.zarr", "hkm verify tree.zarr --pool moved/pool.zarr")(verify)
command_of(
    main,
    "hkm report tree.zarr --out report.html",
    "hkm report tree.zarr --subset subset.npy --images photos/ --out report.html",
)(report)
command_of(main, "hkm browse tree.zarr", "hkm browse tree.zarr --images photos/ --subset subset.npy")(browse)
