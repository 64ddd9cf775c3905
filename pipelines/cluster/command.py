"""Build a tree on simulated hosts of one machine, test the cluster recipes, and project the hours of large runs.

python pipelines/cluster/run.py hosts EMBEDDINGS.npy
python pipelines/cluster/run.py slurm EMBEDDINGS.npy
python pipelines/cluster/run.py ssh EMBEDDINGS.npy
python pipelines/cluster/run.py pods EMBEDDINGS.npy
python pipelines/cluster/run.py project --record
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines import records
from pipelines.cluster.hosts import main as hosts
from pipelines.cluster.pods import main as pods
from pipelines.cluster.projection import FAILURES, MEMORY, N_GPUS, UNEVENNESS, project_all
from pipelines.cluster.slurm import main as slurm
from pipelines.cluster.ssh import main as ssh


@click.group()
def main() -> None:
    """Test clusters of hosts on one machine, and project runs on many."""


main.add_command(hosts, "hosts")
main.add_command(slurm, "slurm")
main.add_command(ssh, "ssh")
main.add_command(pods, "pods")


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("cluster-out"), help="Folder for the results.")
@click.option("--record", is_flag=True, help="Keep the results beside the README, and update its figures.")
def project(out: Path, record: bool) -> None:
    """Project the hours of the paper's three full runs on 8, 64 and 128 GPUs."""
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "gpu": "a100",
        "n_gpus": list(N_GPUS),
        "failures_per_hour": FAILURES,
        "unevenness": UNEVENNESS,
    }
    settings["memory"] = MEMORY
    found = project_all()
    records.save("cluster", "project", found, out=out, settings=settings, record=record)
    for name, runs in found.items():
        for n, one in runs.items():
            click.echo(f"{name} on {n} GPUs: {one['total']:.2f} h, a lost worker {one['price_of_a_loss']:.0f} s")
