"""Run the k-means that are installed side by side, on the same rows, in turns, and write down how they compare.

    python pipelines/benchmark/run.py --suite lloyd --data embeddings.npy --k 1000,4096 --out benchmark

Suites: lloyd (iterations 3 to 10), seeding, quality (time to the inertia of scikit-learn's 50 iterations), method (the
whole hierarchy). Without --data, rows are made. Tables are written anew after every case, the picture at the end.

With --gpu it measures the search and Lloyd's iteration on a CUDA device instead; `run.py --gpu --help` has its options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from pipelines.benchmark import gpu
from pipelines.benchmark.inputs import Data, load_rows, make_rows
from pipelines.benchmark.peers import PEERS, find_peers
from pipelines.benchmark.report import Results, describe_machine, draw_ratios, print_case, write_results
from pipelines.benchmark.suites import SUITES, Options


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="measure on a CUDA device; has options of its own")
    parser.add_argument("--suite", type=_names, default=tuple(SUITES), help=f"of {','.join(SUITES)}; default: all")
    parser.add_argument("--data", type=Path, metavar="NPY", help="rows to cluster; default: made")
    parser.add_argument("--n", type=int, help="rows to take of them, or to make; default: all, or 80000")
    parser.add_argument("--d", type=_numbers, default=(384,), help="features of made rows, one case each; default: 384")
    parser.add_argument("--k", type=_numbers, default=(1000, 4096), help="clusters, one case each; default: 1000,4096")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--patience", type=float, default=60.0, help="who takes longer (s) runs once only; default: 60")
    peers = ",".join(peer.name for peer in PEERS)
    parser.add_argument("--peers", type=_names, help=f"of {peers}; default: those installed")
    parser.add_argument(
        "--levels", type=_numbers, default=(2000, 400, 100), help="of the method; default: 2000,400,100"
    )
    parser.add_argument("--resample-sizes", type=_numbers, default=(10, 3, 3), help="likewise, r; default: 10,3,3")
    parser.add_argument("--resamples", type=int, default=10, help="likewise, m; default: 10")
    parser.add_argument("--method-n", type=int, default=40_000, help="likewise, rows drawn; default: 40000")
    parser.add_argument("--out", type=Path, default=Path("hkm-benchmark"), help="folder; default: hkm-benchmark")
    arguments = parser.parse_args()
    for option, given, known in (
        ("suite", arguments.suite, tuple(SUITES)),
        ("peers", arguments.peers or (), tuple(peer.name for peer in PEERS)),
    ):
        for name in given:
            if name not in known:
                parser.error(f"--{option}={name} should be one of {', '.join(known)}")
    if len(arguments.levels) != len(arguments.resample_sizes):
        parser.error(f"--resample-sizes should have as many numbers as --levels, {len(arguments.levels)}")
    if arguments.repeats < 1:
        parser.error(f"--repeats={arguments.repeats} should be >= 1")
    return arguments


def read_data(arguments: argparse.Namespace) -> Iterator[Data]:
    """Yield what is to be clustered.

    Parameters
    ----------
    arguments : argparse.Namespace

    Yields
    ------
    Data
    """
    if arguments.data is not None:
        yield load_rows(arguments.data, arguments.n)
    else:
        for n_features in arguments.d:
            yield make_rows(arguments.n or 80_000, n_features)


def main() -> None:
    """Run the suites."""
    if "--gpu" in sys.argv[1:]:
        return gpu.main([word for word in sys.argv[1:] if word != "--gpu"])
    arguments = parse_arguments()
    present, absent = find_peers(arguments.peers)
    console, aside = Console(), Console(stderr=True, highlight=False, soft_wrap=True)
    missing = f"not installed: {', '.join(absent) or 'none'}"
    aside.print(f"with {', '.join(peer.name for peer in present) or 'no peers'}; {missing}")
    options = Options(
        peers=tuple(present), n_clusters=arguments.k, repeats=arguments.repeats, patience=arguments.patience,
        levels=arguments.levels, resample_sizes=arguments.resample_sizes, n_resamples=arguments.resamples,
        method_rows=arguments.method_n, tell=aside.print,
    )  # fmt: skip
    # Where files lie is nobody's concern.
    settings = {name: value.name if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    results = Results(describe_machine(), tuple(absent), settings)
    if results.machine["load_average"][0] > 0.25 * results.machine["cores"]:
        aside.print(f"load_average={results.machine['load_average'][0]} should be near 0; wait until nothing else runs")
    for data in read_data(arguments):
        n_rows = len(data.rows)
        if max(arguments.k) > n_rows and set(arguments.suite) != {"method"}:
            raise SystemExit(f"--k={max(arguments.k)} should be <= {n_rows}, the rows there are; ask for fewer")
        for name in arguments.suite:
            for case in SUITES[name](data, options):
                results = replace(results, cases=(*results.cases, case))
                print_case(case, console)
                write_results(results, arguments.out)
    draw_ratios(results.cases).savefig(arguments.out / "ratios.png", dpi=120)
    console.print(f"{missing}; results in {arguments.out}", highlight=False)
    return None
