"""A Dask cluster of hosts with addresses of their own, on one machine: network namespaces behind a bridge.

    python -m pipelines.cluster.hosts EMBEDDINGS.npy --n-clusters 1000,200,50

A scheduler and three workers, one of which has a slow link, build the tree that one process builds. Then the same with
one host cut off in the middle, and another that joins. It needs Linux, root, `ip` and `tc`, and puts all away again.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import numpy as np

_NET, _PORT = "10.77.0", 8786
_numbers = itertools.count()
#: Seconds of silence after which a worker is given up, and a connection is.
_SILENCE = 15
_ENVIRONMENT = {
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{_SILENCE}s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{_SILENCE}s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": f"{_SILENCE}s",
}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A process that ends with the context."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Hosts:
    """Hosts on a bridge, numbered from 0, with the addresses 10.77.0.1 and following."""

    def __init__(self, n: int) -> None:
        # Links of earlier hosts may last a little longer than those.
        self.tag, self.n = f"h{os.getpid() % 10_000}-{next(_numbers)}", n

    def __enter__(self) -> Hosts:
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _set_up(self) -> None:
        _ip("link", "add", f"{self.tag}b", "type", "bridge")
        _ip("link", "set", f"{self.tag}b", "up")
        for i in range(self.n):
            host, outside = self.host(i), f"{self.tag}o{i}"
            _ip("netns", "add", host)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("link", "set", outside, "master", f"{self.tag}b", "up")
            for command in (["addr", "add", f"{self.address(i)}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                            ["link", "set", "lo", "up"]):  # fmt: skip
                _ip("-n", host, *command)

    def __exit__(self, *exc: object) -> None:
        for i in range(self.n):
            self.kill(i)  # sessions of sshd go on without it
            subprocess.run(["ip", "netns", "del", self.host(i)], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self.tag}b"], check=False, capture_output=True)

    def host(self, i: int) -> str:
        """Name of a host."""
        return f"{self.tag}n{i}"

    def address(self, i: int) -> str:
        """Its address."""
        return f"{_NET}.{i + 1}"

    def slow(self, i: int, rate: str) -> None:
        """Let a host send no faster than `rate`, as tc writes it."""
        shaped = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms"]
        subprocess.run(["ip", "netns", "exec", self.host(i), *shaped], check=True, capture_output=True)

    def kill(self, i: int) -> None:
        """Kill all that runs on a host."""
        found = subprocess.run(["ip", "netns", "pids", self.host(i)], check=False, capture_output=True, text=True)
        subprocess.run(["kill", "-9", *found.stdout.split()], check=False, capture_output=True)

    def cut_off(self, i: int) -> None:
        """Take the cable out: the host goes on, and nobody hears of it."""
        _ip("link", "set", f"{self.tag}o{i}", "down")

    def command(
        self, i: int, *words: str, name: str, known: Path, mounts: Mapping[str, Path] = MappingProxyType({})
    ) -> list[str]:
        """How a program runs on a host of some name, which knows the names in a file, as /etc/hosts has them.

        `mounts` are folders that it sees elsewhere.
        """
        binds = "".join(
            f"mount --bind {source} {target}; " for target, source in {"/etc/hosts": known, **mounts}.items()
        )
        inside = ["nsenter", f"--net=/run/netns/{self.host(i)}", "unshare", "--uts", "--mount"]
        return [*inside, "sh", "-ec", f'hostname {name}; {binds}exec "$@"', "sh", *words]

    @contextmanager
    def running(self, i: int, *words: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A program of this environment on a host, ended with the context."""
        command = ["ip", "netns", "exec", self.host(i), sys.executable, "-m", *words]
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **_ENVIRONMENT})
            with ended(process):
                yield process

    def worker(self, i: int, folder: Path) -> Any:
        """A worker of one thread on a host."""
        return self.running(
            i, "distributed.cli.dask_worker", f"tcp://{self.address(0)}:{_PORT}", "--nthreads", "1", "--no-nanny",
            "--host", self.address(i), "--no-dashboard", "--local-directory", str(folder / f"worker{i}"),
            log=folder / f"worker{i}.log",
        )  # fmt: skip


def build(folder: Path, name: str, words: list[str], *, cut: bool, rate: str) -> float:
    """Build a tree on the hosts, and give the seconds; with `cut`, host 2 goes in the middle and host 4 comes."""
    with Hosts(5) as hosts, ExitStack() as stack:
        hosts.slow(3, rate)
        stack.enter_context(
            hosts.running(
                0, "distributed.cli.dask_scheduler", "--host", hosts.address(0), "--port", str(_PORT), "--no-dashboard",
                log=folder / f"scheduler-{name}.log",
            )
        )  # fmt: skip
        for i in (1, 2, 3):
            stack.enter_context(hosts.worker(i, folder))
        begin, events = time.perf_counter(), folder / f"{name}.log"
        scheduler = f"tcp://{hosts.address(0)}:{_PORT}"
        command = ["hkm_dask", "cluster", "pool.zarr", f"{name}.zarr", *words, "--json", "--scheduler", scheduler]
        with hosts.running(0, *command, log=events) as driver:
            while driver.poll() is None:
                time.sleep(0.2)
                if cut and events.read_bytes().count(b'"iteration"') >= 3:
                    cut = False
                    hosts.cut_off(2)
                    stack.enter_context(hosts.worker(4, folder))
        if driver.returncode:
            raise click.ClickException(f"{name}: exit code {driver.returncode}\n{events.read_text()[-2000:]}")
        return time.perf_counter() - begin


def differences(one: Path, other: Path) -> list[str]:
    """Arrays of two trees that are not bitwise the same."""
    files = [path.relative_to(one) for path in one.rglob("c/*") if path.is_file() and "inertia" not in path.parts]
    files += [path.relative_to(one) for path in one.rglob("c/*/*") if path.is_file()]
    return [str(file) for file in files if (one / file).read_bytes() != (other / file).read_bytes()]


def where_workers_started(log: str) -> list[str]:
    """The addresses that workers of Dask tell in a log."""
    return sorted({line.split()[-1] for line in log.splitlines() if "Start worker at:" in line})


def environment(**more: str) -> dict[str, str]:
    """Variables with which scripts find the programs of this environment, whether or not it is activated."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}


def try_recipe(
    programs: Sequence[str], embeddings: Path, n_rows: int | None, run: Callable[[Path, Path], dict[str, Any]]
) -> None:
    """Print what a run tells, of the first so many embeddings and a folder; where arrays differ, exit with 1.

    ClickException where this user, or this machine, has not what it takes.
    """
    if any(shutil.which(name) is None for name in programs) or os.geteuid():
        raise click.ClickException(f"it needs root, and {', '.join(programs)}")
    with tempfile.TemporaryDirectory(prefix="hkm-recipe-") as name:
        told = run(first_rows(embeddings, n_rows, Path(name)), Path(name))
    click.echo(json.dumps(told, indent=2))
    if told["differences"]:
        raise SystemExit(1)


def first_rows(embeddings: Path, n_rows: int | None, folder: Path) -> Path:
    """An array of the first so many rows of another one, in `folder`; or that one, where nothing is said."""
    if n_rows is None:
        return embeddings
    np.save(folder / "rows.npy", np.load(embeddings, mmap_mode="r")[:n_rows])
    return folder / "rows.npy"


def run(embeddings: Path, words: list[str], folder: Path, rate: str) -> dict[str, Any]:
    """Build the tree in one process, on four hosts, and with one of them lost; tell the seconds and differences."""

    def hkm(*words: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hkm_dask", *words], check=True, cwd=folder, capture_output=True)
        return time.perf_counter() - begin

    hkm("ingest", str(embeddings.absolute()), "pool.zarr")
    told: dict[str, Any] = {"seconds": {"one process": hkm("cluster", "pool.zarr", "one.zarr", *words)}}
    here = Path.cwd()
    os.chdir(folder)
    try:
        for name, cut in (("hosts", False), ("lost", True)):
            told["seconds"][name] = build(folder, name, words, cut=cut, rate=rate)
            told[name] = differences(folder / "one.zarr", folder / f"{name}.zarr")
    finally:
        os.chdir(here)
    return told


@click.command()
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.option("--n-clusters", default="1000,200,50", help="Clusters of each level.")
@click.option("--n-resamples", default="2", help="Resamplings of each level.")
@click.option("--rows", type=int, help="Take the first so many rows.")
@click.option("--rate", default="50mbit", help="Of the slow link, as tc writes it.")
def main(embeddings: Path, n_clusters: str, n_resamples: str, rows: int | None, rate: str) -> None:
    """Build one tree three ways, and say whether the bits are the same."""
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing or os.geteuid():
        raise click.ClickException("it needs root, and ip and tc of iproute2")
    with tempfile.TemporaryDirectory(prefix="hkm-hosts-") as name:
        folder = Path(name)
        words = ["--n-clusters", n_clusters, "--n-resamples", n_resamples]
        told = run(first_rows(embeddings, rows, folder), words, folder, rate)
    click.echo(json.dumps(told, indent=2))
    if told["hosts"] or told["lost"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
