"""A SLURM cluster of simulated nodes on one machine, and a test of the SLURM recipe on it.

    python pipelines/cluster/run.py slurm EMBEDDINGS.npy --n-clusters 1000,200,50

Each node is a network namespace with its own `slurmd`; another one has the controller. The tree that the job builds is
compared with that of one process. Needs Linux, root, `ip`, and SLURM and MUNGE installed (Debian: `apt install
slurm-wlm`), without any configuration, and cleans up at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from pipelines.cluster.hosts import Hosts, differences, ended, environment, try_recipe, where_workers_started

RECIPE = Path(__file__).with_name("recipes") / "slurm.sh"
#: Programs that are needed.
PROGRAMS = ("ip", "nsenter", "munged", "slurmctld", "slurmd", "sbatch")
#: CPUs and memory of each node; timeout of nodes and jobs, in seconds.
_CPUS, _MEMORY_MIB, _PATIENCE = 2, 4000, 60
_CONTROLLER = "controller"
_CONF = """
ClusterName=hkm
SlurmctldHost={controller}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
{nodes}
PartitionName=all Nodes=ALL Default=YES
"""


class Slurm:
    """A running controller on host 0 and nodes on the other hosts, while the context is open."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder, self._stack = hosts, folder, ExitStack()
        self.names = [_CONTROLLER, *(f"node{i}" for i in range(1, hosts.n))]

    def __enter__(self) -> Slurm:
        folder, names = self.folder, self.names
        for name in ("state", *names[1:]):
            (folder / name).mkdir()
        addresses = [self.hosts.address(i) for i in range(self.hosts.n)]
        nodes = (
            f"NodeName={name} NodeAddr={address} CPUs={_CPUS} RealMemory={_MEMORY_MIB}"
            for name, address in zip(names[1:], addresses[1:], strict=True)
        )
        (folder / "slurm.conf").write_text(
            _CONF.format(controller=_CONTROLLER, address=addresses[0], folder=folder, nodes="\n".join(nodes))
        )
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n" if _has_first_cgroups() else "")
        known = "".join(f"{address} {name}\n" for name, address in zip(names, addresses, strict=True))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{option}={folder}/munge.{suffix}" for option, suffix in places.items()]
        with self._stack:
            self._start(0, "munged", "--foreground", "--force", *munge)
            self._start(0, "slurmctld", "-D")
            for i, name in enumerate(names[1:], 1):
                self._start(i, "slurmd", "-D", "-N", name)
            self._wait_for_nodes()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _on(self, i: int, words: tuple[str, ...]) -> dict[str, Any]:
        """Return the arguments that run a program on a host with its hostname, and with the names of all hosts."""
        command = self.hosts.command(i, *words, name=self.names[i], known=self.folder / "hosts")
        return {"args": command, "env": environment(SLURM_CONF=str(self.folder / "slurm.conf"))}

    def _start(self, i: int, *words: str) -> None:
        log = self._stack.enter_context((self.folder / f"{words[0]}-{i}.log").open("ab"))
        process = subprocess.Popen(**self._on(i, words), stdout=log, stderr=log)
        self._stack.enter_context(ended(process))

    def _wait_for_nodes(self) -> None:
        until = time.monotonic() + _PATIENCE
        while (states := self.ask("sinfo", "--noheader", "--format=%T").split()) != ["idle"]:
            if time.monotonic() > until:
                raise click.ClickException(f"nodes={','.join(states)} should be idle; see the logs in {self.folder}")
            time.sleep(0.5)

    def ask(self, *words: str, cwd: Path | None = None) -> str:
        """Run a program on the controller's host and return its output."""
        done = subprocess.run(**self._on(0, words), cwd=cwd, capture_output=True, text=True)
        return done.stdout + done.stderr


def _has_first_cgroups() -> bool:
    return not Path("/sys/fs/cgroup/cgroup.controllers").exists()


@contextmanager
def cluster(n_nodes: int) -> Iterator[Slurm]:
    """Run SLURM with `n_nodes` nodes."""
    with (
        tempfile.TemporaryDirectory(prefix="hkm-slurm-") as name, Hosts(n_nodes + 1) as hosts,
        Slurm(hosts, Path(name)) as slurm,
    ):  # fmt: skip
        yield slurm


def run(embeddings: Path, words: list[str], folder: Path, n_nodes: int) -> dict[str, Any]:
    """Build a tree in one process, and by a job on `n_nodes` nodes; return where workers ran, and differing arrays."""
    hkm = [sys.executable, "-m", "hkm_dask"]
    subprocess.run([*hkm, "ingest", str(embeddings.absolute()), "pool.zarr"], check=True, cwd=folder)
    subprocess.run([*hkm, "cluster", "pool.zarr", "one.zarr", *words], check=True, cwd=folder, capture_output=True)
    job = [
        "--wait", f"--nodes={n_nodes}", f"--cpus-per-task={_CPUS}", f"--mem={_MEMORY_MIB}", "--time=30",
        "--output=job.log",
    ]  # fmt: skip
    with cluster(n_nodes) as slurm:
        slurm.ask("sbatch", *job, str(RECIPE), "pool.zarr", "job.zarr", *words, cwd=folder)
    log = (folder / "job.log").read_text()
    if not (folder / "job.zarr").exists():
        raise click.ClickException(f"the job failed\n{log[-2000:]}")
    return {
        "workers": where_workers_started(log),
        "differences": differences(folder / "one.zarr", folder / "job.zarr"),
    }


@click.command()
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.option("--n-clusters", default="1000,200,50", help="Clusters of each level.")
@click.option("--n-resamples", default="2", help="Resamplings of each level.")
@click.option("--rows", type=int, help="Use only this many rows, the first ones.")
@click.option("--nodes", default=3, help="Nodes of the job, each with one worker.")
def main(embeddings: Path, n_clusters: str, n_resamples: str, rows: int | None, nodes: int) -> None:
    """Run the SLURM recipe on several nodes, and compare the result with that of one process."""
    words = ["--n-clusters", n_clusters, "--n-resamples", n_resamples]
    try_recipe(PROGRAMS, embeddings, rows, lambda first, folder: run(first, words, folder, nodes))


if __name__ == "__main__":
    main()
