"""The cluster recipes use existing commands and options; nothing is started."""

import os
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from distributed.cli import dask_scheduler, dask_worker

from hkm_dask.cli.commands import main as hkm

RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "cluster" / "recipes"
STUBS = {
    "dask": 'echo "dask $*" >> calls; [[ "$1" != scheduler ]] || echo {} > "$3"',
    "hkm": '/bin/sleep 0.3; echo "hkm $*" >> calls',
    "sleep": "/bin/sleep 0.1",
    "srun": 'shift 2; "$@"',
}


def parse(words: list[str]) -> None:
    """Have the command read its options, and go no further; those of Dask take unknown ones for other words."""
    command: Any
    if words[:3] == ["dask", "cuda", "worker"]:
        if find_spec("dask_cuda") is None:
            return
        from dask_cuda.cli import worker as command
    elif words[0] == "hkm":
        command = hkm.get_command(click.Context(hkm), words[1])
    else:
        command = {"worker": dask_worker.main, "scheduler": dask_scheduler.main}[words[1]]
    rest = words[3 if words[1] == "cuda" else 2 :]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for word in rest:
        if word.startswith("--") and word not in known:
            raise click.NoSuchOption(word)
    command.make_context(words[1], rest)


def test_an_option_that_does_not_exist_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["dask", "worker", "--nprocs", "2"])


@pytest.mark.parametrize(
    ("given", "worker"),
    [
        ({}, "dask worker --nthreads 4"),
        ({"SLURM_MEM_PER_NODE": "2000"}, "dask worker --nthreads 4 --memory-limit 2000MiB"),
        ({"SLURM_JOB_GPUS": "0,1"}, "dask cuda worker --device-memory-limit 0"),
    ],
)
def test_the_job_of_slurm_calls_what_exists(
    given: dict[str, str], worker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.zarr").mkdir()
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4"}
    command = ["bash", str(RECIPES / "slurm.sh"), "pool.zarr", "tree.zarr", "--n-clusters", "40,10"]
    subprocess.run(command, env=env | given, check=False, timeout=30, capture_output=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split(" --")[0] for call in sorted(calls)] == sorted(
        ["dask scheduler", worker.split(" --")[0], "hkm cluster pool.zarr tree.zarr"]
    )
    assert any(call.startswith(f"{worker} --scheduler-file {tmp_path}/cluster-7.json") for call in calls)
    for call in calls:
        parse(shlex.split(call))
    assert not (tmp_path / "cluster-7.json").exists()


def pods(manifest: Any) -> list[Any]:
    """The specifications of pods in a manifest, at any depth."""
    if isinstance(manifest, list):
        return [pod for item in manifest for pod in pods(item)]
    if not isinstance(manifest, dict):
        return []
    return [manifest] if "containers" in manifest else [pod for item in manifest.values() for pod in pods(item)]


@pytest.mark.parametrize(("name", "n_pods"), [("kubernetes.yaml", 3), ("dask_operator.yaml", 2)])
def test_the_objects_of_kubernetes_hold_together(
    name: str, n_pods: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.zarr").mkdir()
    manifests = list(yaml.safe_load_all((RECIPES / name).read_text()))
    assert len(pods(manifests)) == n_pods
    for pod in pods(manifests):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert all(isinstance(word, str) for word in container["args"])
            parse(container["args"])
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
    labels = [m["spec"]["template"]["metadata"]["labels"] for m in manifests if m["kind"] == "Deployment"]
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            assert manifest["spec"]["selector"]["matchLabels"] == manifest["spec"]["template"]["metadata"]["labels"]
        if manifest["kind"] == "Service":
            assert manifest["spec"]["selector"] in labels
