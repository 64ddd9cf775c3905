"""A Dask cluster of simulated hosts on one machine: network namespaces with their own addresses, behind a bridge.

    python -m pipelines.cluster.hosts EMBEDDINGS.npy --n-clusters 1000,200,50

A scheduler and three workers, one with a slow link, build a tree, which must equal that of one process. Then again,
with one host disconnected halfway and another one joining. Needs Linux, root, `ip` and `tc`, and cleans up at the end.
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
#: Timeout of workers and connections, in seconds.
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
    """Terminate a process at the end of the context."""
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
    """Hosts on a bridge, numbered from 0, with addresses from 10.77.0.1 on."""

    def __init__(self, n: int) -> None:
        # The kernel may remove the links of earlier hosts with a delay.
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
            self.kill(i)  # sessions of sshd outlive it
            subprocess.run(["ip", "netns", "del", self.host(i)], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self.tag}b"], check=False, capture_output=True)

    def host(self, i: int) -> str:
        """Return the name of a host's network namespace."""
        return f"{self.tag}n{i}"

    def address(self, i: int) -> str:
        """Return the address of a host."""
        return f"{_NET}.{i + 1}"

    def slow(self, i: int, rate: str) -> None:
        """Limit the rate at which a host sends; `rate` in the notation of tc."""
        shaped = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms"]
        subprocess.run(["ip", "netns", "exec", self.host(i), *shaped], check=True, capture_output=True)

    def kill(self, i: int) -> None:
        """Kill all processes on a host."""
        found = subprocess.run(["ip", "netns", "pids", self.host(i)], check=False, capture_output=True, text=True)
        subprocess.run(["kill", "-9", *found.stdout.split()], check=False, capture_output=True)

    def cut_off(self, i: int) -> None:
        """Disconnect a host from the network; its processes keep running."""
        _ip("link", "set", f"{self.tag}o{i}", "down")

    def command(
        self, i: int, *words: str, name: str, known: Path, mounts: Mapping[str, Path] = MappingProxyType({})
    ) -> list[str]:
        """Return the command that runs a program on a host with a hostname, and with `known` as its /etc/hosts.

        `mounts` maps paths on the host to the folders mounted there.
        """
        binds = "".join(
            f"mount --bind {source} {target}; " for target, source in {"/etc/hosts": known, **mounts}.items()
        )
        inside = ["nsenter", f"--net=/run/netns/{self.host(i)}", "unshare", "--uts", "--mount"]
        return [*inside, "sh", "-ec", f'hostname {name}; {binds}exec "$@"', "sh", *words]

    @contextmanager
    def running(self, i: int, *words: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run a Python module of this environment on a host, and terminate it at the end of the context."""
        command = ["ip", "netns", "exec", self.host(i), sys.executable, "-m", *words]
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **_ENVIRONMENT})
            with ended(process):
                yield process

    def worker(self, i: int, folder: Path) -> Any:
        """Run a single-threaded worker on a host."""
        return self.running(
            i, "distributed.cli.dask_worker", f"tcp://{self.address(0)}:{_PORT}", "--nthreads", "1", "--no-nanny",
            "--host", self.address(i), "--no-dashboard", "--local-directory", str(folder / f"worker{i}"),
            log=folder / f"worker{i}.log",
        )  # fmt: skip


def build(folder: Path, name: str, words: list[str], *, cut: bool, rate: str) -> float:
    """Build a tree on the hosts; return the seconds. With `cut`, host 2 is disconnected halfway and host 4 joins."""
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
    """Return the names of the arrays that are not bitwise identical in two trees."""
    files = [path.relative_to(one) for path in one.rglob("c/*") if path.is_file() and "inertia" not in path.parts]
    files += [path.relative_to(one) for path in one.rglob("c/*/*") if path.is_file()]
    return [str(file) for file in files if (one / file).read_bytes() != (other / file).read_bytes()]


def where_workers_started(log: str) -> list[str]:
    """Return the addresses of the Dask workers in a log."""
    return sorted({line.split()[-1] for line in log.splitlines() if "Start worker at:" in line})


def environment(**more: str) -> dict[str, str]:
    """Return variables that let scripts find the programs of this environment even if it is not activated."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}


def try_recipe(
    programs: Sequence[str], embeddings: Path, n_rows: int | None, run: Callable[[Path, Path], dict[str, Any]]
) -> None:
    """Call `run` with the first `rows` embeddings and a folder, and print its result; exit with 1 if arrays differ.

    Raises ClickException if the user is not root or a program is missing.
    """
    if any(shutil.which(name) is None for name in programs) or os.geteuid():
        raise click.ClickException(f"this needs root, and {', '.join(programs)}")
    with tempfile.TemporaryDirectory(prefix="hkm-recipe-") as name:
        result = run(first_rows(embeddings, n_rows, Path(name)), Path(name))
    click.echo(json.dumps(result, indent=2))
    if result["differences"]:
        raise SystemExit(1)


def first_rows(embeddings: Path, n_rows: int | None, folder: Path) -> Path:
    """Write the first `n_rows` rows of an array to `folder` and return the path; without `n_rows`, the array's own."""
    if n_rows is None:
        return embeddings
    np.save(folder / "rows.npy", np.load(embeddings, mmap_mode="r")[:n_rows])
    return folder / "rows.npy"


def run(embeddings: Path, words: list[str], folder: Path, rate: str) -> dict[str, Any]:
    """Build the tree in one process, on the hosts, and with a host lost; return seconds and differing arrays."""

    def hkm(*words: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hkm_dask", *words], check=True, cwd=folder, capture_output=True)
        return time.perf_counter() - begin

    hkm("ingest", str(embeddings.absolute()), "pool.zarr")
    result: dict[str, Any] = {"seconds": {"one process": hkm("cluster", "pool.zarr", "one.zarr", *words)}}
    here = Path.cwd()
    os.chdir(folder)
    try:
        for name, cut in (("hosts", False), ("lost", True)):
            result["seconds"][name] = build(folder, name, words, cut=cut, rate=rate)
            result[name] = differences(folder / "one.zarr", folder / f"{name}.zarr")
    finally:
        os.chdir(here)
    return result


@click.command()
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.option("--n-clusters", default="1000,200,50", help="Clusters of each level.")
@click.option("--n-resamples", default="2", help="Resamplings of each level.")
@click.option("--rows", type=int, help="Use only this many rows, the first ones.")
@click.option("--rate", default="50mbit", help="Rate of the slow link, in the notation of tc.")
def main(embeddings: Path, n_clusters: str, n_resamples: str, rows: int | None, rate: str) -> None:
    """Build one tree in three ways, and report whether the results are bitwise identical."""
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing or os.geteuid():
        raise click.ClickException("this needs root, and ip and tc of iproute2")
    with tempfile.TemporaryDirectory(prefix="hkm-hosts-") as name:
        folder = Path(name)
        words = ["--n-clusters", n_clusters, "--n-resamples", n_resamples]
        result = run(first_rows(embeddings, rows, folder), words, folder, rate)
    click.echo(json.dumps(result, indent=2))
    if result["hosts"] or result["lost"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
