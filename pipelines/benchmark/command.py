"""Compare the installed k-means implementations: all get the same rows and run in turns.

    python pipelines/benchmark/run.py --suite lloyd --data embeddings.npy --k 1000,4096 --out benchmark

Suites: lloyd (iterations 3 to 10), seeding, quality (time to the inertia of scikit-learn's 50 iterations), method (the
whole hierarchy). Without --data, rows are synthetic. Tables are rewritten after every case, the figure at the end.

With --against DIR, this checkout is compared with another one instead (lloyd, seeding, method). With --gpu, a CUDA
device is measured instead; see `run.py --gpu --help` for the options.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from hkm_dask.compute.backend import require_cuda
from hkm_dask.errors import ComputeError
from pipelines.benchmark import against, gpu, gpu_peers
from pipelines.benchmark.device import describe_device, measure_ceilings
from pipelines.benchmark.inputs import Data, load_rows, make_rows
from pipelines.benchmark.measure import Case, with_case
from pipelines.benchmark.peers import PEERS, find_peers
from pipelines.benchmark.report import (
    GPU_LIBRARIES,
    Results,
    describe_machine,
    draw_ratios,
    print_case,
    write_results,
)  # fmt: skip
from pipelines.benchmark.suites import SUITES, Options

_GPU_HELP = """Measure the search and Lloyd's iteration on a CUDA device, in comparison with other GPU libraries.

    python pipelines/benchmark/run.py --gpu --d 128,384,768,1024 --k 1024,4096,16384,100000 --out gpu-benchmark
    python pipelines/benchmark/run.py --gpu --suite lloyd --gigabytes 61                  # 30M × 1024, 20 iterations
    python pipelines/benchmark/run.py --gpu --suite budget --gigabytes 12 --scratch DIR   # three times the memory limit
    python pipelines/benchmark/run.py --gpu --suite split                                 # thousands of small k-means
    python pipelines/benchmark/run.py --gpu --suite "" --whole                            # hkm cluster --local-cuda

The peak rates of the device are measured first, in the same run. Tables are rewritten after every case.
"""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _new_parser(
    description: str | None, suites: Sequence[str], d: str, k: str, levels: str, resamples: int
) -> argparse.ArgumentParser:
    """Make a parser with the options common to both command lines; the defaults differ."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.benchmark", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", type=_names, default=tuple(suites), help=f"any of {','.join(suites)}; default: all")
    add("--d", type=_numbers, default=d, help=f"features of synthetic rows, one case each; default: {d}")
    add("--k", type=_numbers, default=k, help=f"numbers of clusters, one case each; default: {k}")
    add("--repeats", type=int, default=3, help="default: 3")
    add("--levels", type=_numbers, default=levels, help=f"clusters per level of the whole method; default: {levels}")
    add("--resamples", type=int, default=resamples, help=f"resamplings per level; default: {resamples}")
    add("--out", type=Path, default=Path("hkm-benchmark"), help="output folder; default: hkm-benchmark")
    return parser


def _check_names(parser: argparse.ArgumentParser, option: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            parser.error(f"--{option}={name} should be one of {', '.join(known)}; choose one of these")


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of the CPU benchmark."""
    parser = _new_parser(__doc__, tuple(SUITES), d="384", k="1000,4096", levels="2000,400,100", resamples=10)
    add, peers = parser.add_argument, tuple(peer.name for peer in PEERS)
    add("--gpu", action="store_true", help="measure on a CUDA device; the options differ")
    add("--against", type=Path, metavar="DIR", help="compare with another checkout instead of with peers")
    add("--data", type=Path, metavar="NPY", help="rows to cluster; default: synthetic rows")
    add("--n", type=int, help="number of rows to draw or generate; default: all, or 80000")
    add("--patience", type=float, default=60.0, help="a run of more seconds is not repeated; default: 60")
    add("--peers", type=_names, help=f"any of {','.join(peers)}; default: all that are installed")
    add("--resample-sizes", type=_numbers, default=(10, 3, 3), help="r of the method, per level; default: 10,3,3")
    add("--method-n", type=int, default=40_000, help="rows drawn for the method; default: 40000")
    arguments = parser.parse_args(words)
    if arguments.against is not None and arguments.suite == tuple(SUITES):
        arguments.suite = against.SUITES
    _check_names(parser, "suite", arguments.suite, against.SUITES if arguments.against else tuple(SUITES))
    _check_names(parser, "peers", arguments.peers or (), peers)
    if len(arguments.levels) != len(arguments.resample_sizes):
        parser.error(f"--resample-sizes should have as many numbers as --levels, {len(arguments.levels)}")
    if arguments.repeats < 1:
        parser.error(f"--repeats={arguments.repeats} should be >= 1; give more")
    return arguments


def parse_gpu_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line that follows ``--gpu``."""
    suites = tuple(name for name in gpu.SUITES if name != "whole")
    parser = _new_parser(
        _GPU_HELP, suites, d="128,384,768,1024", k="1024,4096,16384,100000", levels="20000,1000,100", resamples=2
    )
    parser.prog += " --gpu"
    add, peers = parser.add_argument, gpu_peers.PEERS
    add("--n", type=int, help="rows of every case; default: as many as --gigabytes hold, or a pass of about a second")
    add("--gigabytes", type=float, default=4.0, help="size of the float16 rows; default: 4")
    add("--peers", type=_names, help=f"any of {','.join(peers)}; default: all that are installed")
    add("--seconds-per-case", type=float, default=10.0, help="approximate time for one case of a pass; default: 10")
    add("--scratch", type=Path, help="folder for pools; default: the temporary folder")
    add("--whole", action="store_true", help="also time the whole command, on the GPU and on CPU threads")
    add("--whole-n", type=int, default=5_000_000, help="rows of the whole command; default: 5000000")
    add("--whole-d", type=int, default=384, help="features of these rows; default: 384")
    add("--max-iter", type=int, default=10, help="iterations of each of its k-means; default: 10")
    arguments = parser.parse_args(words)
    _check_names(parser, "suite", arguments.suite, suites)
    _check_names(parser, "peers", arguments.peers or (), peers)
    for name in ("d", "k", "n", "gigabytes", "seconds_per_case", "repeats", "whole_n", "whole_d", "max_iter"):
        given = getattr(arguments, name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and not (math.isfinite(value) and value > 0):
                parser.error(f"--{name.replace('_', '-')}={value} should be > 0; give a larger one")
    if arguments.n is not None and arguments.n < max(arguments.k):
        parser.error(f"--n={arguments.n} should be >= {max(arguments.k)}, the largest --k; give more rows")
    return arguments


def read_data(arguments: argparse.Namespace) -> Iterator[Data]:
    """Yield the rows of the file, or synthetic rows for each number of features."""
    if arguments.data is not None:
        yield load_rows(arguments.data, arguments.n)
    else:
        for n_features in arguments.d:
            yield make_rows(arguments.n or 80_000, n_features)


def main(words: Sequence[str] | None = None) -> None:
    """Run the suites named on the command line (by default, that of this process)."""
    words = sys.argv[1:] if words is None else words
    if "--gpu" in words:
        return _run_gpu([word for word in words if word != "--gpu"])
    arguments = parse_arguments(words)
    present, absent = find_peers(arguments.peers) if arguments.against is None else ([], [])
    tell = Console(stderr=True, highlight=False, soft_wrap=True).print
    if arguments.against is None:
        tell(f"with {', '.join(peer.name for peer in present) or 'no peers'}")
    options = Options(
        peers=tuple(present), n_clusters=arguments.k, repeats=arguments.repeats, patience=arguments.patience,
        levels=arguments.levels, resample_sizes=arguments.resample_sizes, n_resamples=arguments.resamples,
        method_rows=arguments.method_n, tell=tell,
    )  # fmt: skip
    results = Results(describe_machine(), tuple(absent), _tell_command(words), _today())
    if results.machine["load_average"][0] > 0.25 * results.machine["cores"]:
        tell(f"load_average={results.machine['load_average'][0]} should be near 0; wait until the machine is idle")
    path = arguments.out / ("results" if arguments.against is None else "against")
    results = _run(_cases(arguments, options), results, path)
    if arguments.against is None:
        draw_ratios(results.cases).savefig(arguments.out / "ratios.png", dpi=120)
    return None


def _cases(arguments: argparse.Namespace, options: Options) -> Iterator[Case]:
    for data in read_data(arguments):
        n_rows = len(data.rows)
        if max(arguments.k) > n_rows and set(arguments.suite) != {"method"}:
            raise SystemExit(f"--k={max(arguments.k)} should be <= {n_rows}, the number of rows; lower it")
        if arguments.against is not None:
            yield from against.compare(arguments.against, arguments.suite, data, options)
            continue
        for name in arguments.suite:
            yield from SUITES[name](data, options)


def _run(cases: Iterable[Case], results: Results, path: Path) -> Results:
    """Print and write each case as soon as it is finished."""
    console = Console()
    write_results(results, path)
    for case in cases:
        results = replace(results, cases=with_case(results.cases, case))
        print_case(case, console, results.ceilings)
        write_results(results, path)
    missing = ", ".join(results.absent) or "none"
    console.print(f"not installed: {missing}; results in {path.parent}", highlight=False)
    return results


def _run_gpu(words: Sequence[str]) -> None:
    arguments = parse_gpu_arguments(words)
    try:
        require_cuda()
    except ComputeError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    tell = Console(stderr=True, highlight=False, soft_wrap=True).print
    participants, absent = gpu_peers.find_participants(arguments.peers)
    tell(f"with {', '.join(one.name for one in participants)}; not here: {', '.join(absent) or 'none'}")
    ceilings = measure_ceilings()
    results = Results(
        describe_machine(GPU_LIBRARIES), tuple(absent), _tell_command(["--gpu", *words]), _today(),
        device=describe_device(), ceilings=ceilings,
    )  # fmt: skip
    options = gpu.DeviceOptions(
        n_features=arguments.d, n_clusters=arguments.k, n_rows=arguments.n, gigabytes=arguments.gigabytes,
        seconds=arguments.seconds_per_case, repeats=arguments.repeats, participants=participants, ceilings=ceilings,
        scratch=arguments.scratch, whole_rows=arguments.whole_n,
        whole_features=arguments.whole_d, levels=arguments.levels, max_iter=arguments.max_iter,
        n_resamples=arguments.resamples, tell=tell,
    )  # fmt: skip
    names = (*arguments.suite, *(["whole"] if arguments.whole else []))
    _run((case for name in names for case in gpu.SUITES[name](options)), results, arguments.out / "gpu")


def _tell_command(words: Sequence[str]) -> str:
    # Without the folders of files.
    words = [Path(word).name if "/" in word else word for word in words]
    return shlex.join(["python", "pipelines/benchmark/run.py", *words])


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
