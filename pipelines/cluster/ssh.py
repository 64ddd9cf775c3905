"""Simulated hosts with SSH servers on one machine, and a test of the `SSHCluster` recipe on them.

    python pipelines/cluster/run.py ssh EMBEDDINGS.npy --n-clusters 1000,200,50

Each host is a network namespace with its own address and `sshd`; the first runs the scheduler, the others a worker
each. The tree they build is compared with that of one process. Needs Linux, root, `ip`, and the OpenSSH server (Debian:
`apt install openssh-server`), without any configuration, and cleans up at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from pipelines.cluster.hosts import Hosts, differences, ended, try_recipe, where_workers_started

RECIPE = Path(__file__).with_name("recipes") / "ssh.py"
#: Programs that are needed.
PROGRAMS = ("ip", "nsenter", "sshd", "ssh-keygen", "ssh-keyscan")
#: Timeout of a server, in seconds.
_PATIENCE = 20
#: A folder without which sshd does not start.
_EMPTY = Path("/run/sshd")
_CONF = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/home/.ssh/id_ed25519.pub
PidFile none
StrictModes no
UsePAM no
"""


@contextmanager
def servers(hosts: Hosts, folder: Path) -> Iterator[Path]:
    """Run `sshd` on every host but the first; yield a home folder with a key they accept, and with their host keys."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True)
    for key in (folder / "host_key", home / ".ssh" / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (folder / "sshd_config").write_text(_CONF.format(folder=folder))
    # Without a route to the internet, Dask finds a host's own address by its hostname.
    (folder / "hosts").write_text("".join(f"{hosts.address(i)} host{i}\n" for i in range(hosts.n)))
    made = not _EMPTY.exists()
    _EMPTY.mkdir(exist_ok=True)
    program = [str(shutil.which("sshd")), "-D", "-e", "-f", str(folder / "sshd_config")]
    with ExitStack() as stack:
        if made:
            stack.callback(_EMPTY.rmdir)
        for i in range(1, hosts.n):
            log = stack.enter_context((folder / f"sshd-{i}.log").open("ab"))
            command = hosts.command(i, *program, name=f"host{i}", known=folder / "hosts")
            stack.enter_context(ended(subprocess.Popen(command, stdout=log, stderr=log)))
        known = [_key_of(hosts, i, time.monotonic() + _PATIENCE) for i in range(1, hosts.n)]
        (home / ".ssh" / "known_hosts").write_text("".join(known))
        yield home


def _key_of(hosts: Hosts, i: int, until: float) -> str:
    """Return the line of known_hosts for a host, as soon as it answers."""
    scan = ["ip", "netns", "exec", hosts.host(0), "ssh-keyscan", "-t", "ed25519", hosts.address(i)]
    while not (line := subprocess.run(scan, capture_output=True, text=True).stdout):
        if time.monotonic() > until:
            raise click.ClickException(f"host {hosts.address(i)} should answer by SSH within {_PATIENCE} s")
        time.sleep(0.2)
    return line


def run(embeddings: Path, n_clusters: str, folder: Path, n_workers: int) -> dict[str, Any]:
    """Build a tree in one process, and on hosts over SSH; return where workers ran, and differing arrays."""
    hkm = [sys.executable, "-m", "hkm_dask"]
    subprocess.run([*hkm, "ingest", str(embeddings.absolute()), "pool.zarr"], check=True, cwd=folder)
    one = [*hkm, "cluster", "pool.zarr", "one.zarr", "--n-clusters", n_clusters]
    subprocess.run(one, check=True, cwd=folder, capture_output=True)
    with (
        tempfile.TemporaryDirectory(prefix="hkm-ssh-") as name, Hosts(n_workers + 2) as hosts,
        servers(hosts, Path(name)) as home,
    ):  # fmt: skip
        addresses = [hosts.address(i) for i in range(1, hosts.n)]
        recipe = [sys.executable, str(RECIPE), str(folder / "pool.zarr"), str(folder / "ssh.zarr"), n_clusters]
        here = ["ip", "netns", "exec", hosts.host(0), *recipe, *addresses]
        done = subprocess.run(here, env=os.environ | {"HOME": str(home)}, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"the recipe failed\n{done.stderr[-2000:]}")
    return {
        "workers": where_workers_started(done.stdout + done.stderr),
        "differences": differences(folder / "one.zarr", folder / "ssh.zarr"),
    }


@click.command()
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.option("--n-clusters", default="1000,200,50", help="Clusters of each level.")
@click.option("--rows", type=int, help="Use only this many rows, the first ones.")
@click.option("--workers", default=2, help="Number of hosts with a worker.")
def main(embeddings: Path, n_clusters: str, rows: int | None, workers: int) -> None:
    """Run the SSH recipe on several hosts, and compare the result with that of one process."""
    try_recipe(PROGRAMS, embeddings, rows, lambda first, folder: run(first, n_clusters, folder, workers))


if __name__ == "__main__":
    main()
