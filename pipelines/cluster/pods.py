"""The Kubernetes objects of a recipe, emulated on one machine without Kubernetes: their containers' commands are run.

    python pipelines/cluster/run.py pods EMBEDDINGS.npy
    python pipelines/cluster/run.py pods EMBEDDINGS.npy --operator

The second command tests the recipe for the Dask operator, changed to CPU workers; the operator's own functions make the
objects (``pip install dask-kubernetes``).

Each pod is a network namespace with its own address and hostname. The name of a Service resolves to a pod that it
selects, and a volume claim is a shared folder. A pod of a Deployment that ends is replaced by one with another address,
a pod of a Job until it succeeds. Halfway a worker is killed, then the run itself. The result is compared with the tree
of one process. Needs Linux, root and `ip`, and cleans up at the end.

Images, resource requests and limits, and Kubernetes' handling of them are not tested.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from pipelines.cluster.hosts import Hosts, differences, ended, environment, try_recipe

RECIPES = Path(__file__).with_name("recipes")
#: Programs that are needed.
PROGRAMS = ("ip", "nsenter")
#: Timeout of a run, in seconds.
_PATIENCE = 900


@dataclass
class Pod:
    """A pod of the specification, with its present host and process."""

    kind: str  # of its owner: Deployment or Job
    template: dict[str, Any]
    host: int = -1
    process: subprocess.Popen[bytes] | None = None

    @property
    def container(self) -> dict[str, Any]:
        """The pod's only container."""
        [container] = self.template["spec"]["containers"]
        found: dict[str, Any] = container
        return found

    @property
    def ended(self) -> int | None:
        """The exit code of its process; None while it runs."""
        return None if self.process is None else self.process.poll()

    @property
    def labels(self) -> dict[str, str]:
        """Labels by which Services select the pod."""
        found: dict[str, str] = self.template.get("metadata", {}).get("labels", {})
        return found


class Pods:
    """Run the pods of Kubernetes objects while the context is open; `volume` is the folder behind every volume claim.

    `n_spare` is the number of hosts for replacement pods.
    """

    def __init__(self, objects: list[dict[str, Any]], volume: Path, folder: Path, *, n_spare: int) -> None:
        self.volume, self.folder, self._stack = volume, folder, ExitStack()
        self._services = [one for one in objects if one["kind"] == "Service"]
        self.pods = [
            Pod(one["kind"], one["spec"]["template"])
            for one in objects
            if one["kind"] in ("Deployment", "Job")
            for _ in range(one["spec"].get("replicas", 1))
        ]
        self.hosts, self.n_started = Hosts(len(self.pods) + n_spare), 0

    def __enter__(self) -> Pods:
        with self._stack:
            self._stack.enter_context(self.hosts)
            for pod in self.pods:
                self._start(pod)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start(self, pod: Pod) -> None:
        """Start a pod on the next host, and update the addresses of Services for all pods."""
        pod.host, self.n_started = self.n_started, self.n_started + 1
        known = self.folder / "hosts"
        started = (one for one in self.pods if one.host >= 0)
        known.write_text("".join(f"{self.hosts.address(one.host)} {' '.join(self._names(one))}\n" for one in started))
        values = {one["name"]: one["value"] for one in pod.container.get("env", [])}
        args = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in pod.container["args"]]
        words = ["env", "-C", pod.container.get("workingDir", "/"), *args]
        mounts = {mount["mountPath"]: self.volume for mount in pod.container.get("volumeMounts", [])}
        for place in map(Path, mounts):
            if not place.exists():
                place.mkdir()
                self._stack.callback(place.rmdir)
        command = self.hosts.command(pod.host, *words, name=f"pod{pod.host}", known=known, mounts=mounts)
        log = self._stack.enter_context((self.folder / f"pod{pod.host}.log").open("ab"))
        pod.process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(**values)
        )  # this environment takes the place of the image
        self._stack.enter_context(ended(pod.process))

    def _names(self, pod: Pod) -> list[str]:
        selected = [one for one in self._services if one["spec"]["selector"].items() <= pod.labels.items()]
        names = [one["metadata"]["name"] for one in selected]
        return [f"pod{pod.host}", *names, *(f"{name}.default.svc.cluster.local" for name in names)]

    def kill(self, pod: Pod) -> None:
        """Kill all processes of a pod."""
        self.hosts.kill(pod.host)
        if pod.process is not None:
            pod.process.wait()

    def go_on(self) -> bool:
        """Replace the pods that ended; return whether every Job has succeeded."""
        for pod in self.pods:
            if pod.ended is not None and (pod.kind, pod.ended) != ("Job", 0):
                self._start(pod)
        return all(pod.ended == 0 for pod in self.pods if pod.kind == "Job")


def objects_of_recipe() -> list[dict[str, Any]]:
    """Return the objects of `kubernetes.yaml`."""
    return list(yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text()))


def objects_of_operator() -> list[dict[str, Any]]:
    """Return the objects Dask's operator makes of `dask_operator.yaml`, with CPU workers, and the Job of the run."""
    from dask_kubernetes.operator.controller import controller as operator  # type: ignore[import-not-found]

    cluster = yaml.safe_load((RECIPES / "dask_operator.yaml").read_text())
    name, scheduler, worker = cluster["metadata"]["name"], cluster["spec"]["scheduler"], cluster["spec"]["worker"]
    [container] = worker["spec"]["containers"]
    container["args"] = ["dask", "worker", "--nthreads", "16", "--name", "$(DASK_WORKER_NAME)"]
    del container["env"], container["resources"]["limits"]["nvidia.com/gpu"]
    workers = [
        operator.build_worker_deployment_spec(f"{name}-default", "default", name, f"{i}", worker["spec"], {}, {})
        for i in range(worker["replicas"])
    ]
    return [
        operator.build_scheduler_deployment_spec(name, scheduler["spec"], {}, {}),
        operator.build_scheduler_service_spec(name, scheduler["service"], {}, {}),
        *workers,
        *(one for one in objects_of_recipe() if one["kind"] == "Job"),
    ]


def run(embeddings: Path, objects: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Build a recipe's tree in one process, and by pods that are killed; return how many ran, and differing arrays."""
    [words] = (one["spec"]["template"]["spec"]["containers"][0]["args"] for one in objects if one["kind"] == "Job")
    alone = ["one.zarr" if word == "tree.zarr" else word for word in words[1 : words.index("--scheduler")]]
    for command in (["ingest", str(embeddings.absolute()), "pool.zarr"], alone):
        done = subprocess.run([sys.executable, "-m", "hkm_dask", *command], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(done.stderr)
    logs = folder / "pods"
    logs.mkdir()
    with Pods(objects, folder, logs, n_spare=2) as pods:
        # The pod of the last Deployment is a worker.
        victims = [next(pod for pod in reversed(pods.pods) if pod.kind == kind) for kind in ("Deployment", "Job")]
        until = time.monotonic() + _PATIENCE
        while not pods.go_on():
            if victims and len(list(folder.glob("tree.zarr.work/*.npz"))) > 2 * (2 - len(victims)):
                pods.kill(victims.pop(0))
            if time.monotonic() > until:
                raise click.ClickException(f"no tree after {_PATIENCE} s\n{_end_of_logs(logs)}")
            time.sleep(0.2)
        if victims:
            raise click.ClickException("the run ended before all pods were killed; use more rows")
        return {"pods": pods.n_started, "differences": differences(folder / "one.zarr", folder / "tree.zarr")}


def _end_of_logs(logs: Path) -> str:
    return "\n".join(f"{log.name}: {log.read_text()[-1000:]}" for log in sorted(logs.glob("*.log")))


@click.command()
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.option("--rows", type=int, help="Use only this many rows, the first ones.")
@click.option("--operator", is_flag=True, help="Test the recipe for Dask's operator.")
def main(embeddings: Path, rows: int | None, operator: bool) -> None:
    """Emulate the Kubernetes objects, kill some pods, and compare the result with that of one process."""
    objects = objects_of_operator() if operator else objects_of_recipe()
    try_recipe(PROGRAMS, embeddings, rows, lambda first, folder: run(first, objects, folder))


if __name__ == "__main__":
    main()
