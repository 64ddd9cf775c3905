"""The objects of Kubernetes of a recipe, without Kubernetes: what their containers do is done, on one machine.

    python pipelines/cluster/run.py pods EMBEDDINGS.npy
    python pipelines/cluster/run.py pods EMBEDDINGS.npy --operator

The second is the recipe for the operator of Dask, whose own functions make the objects (``pip install
dask-kubernetes``), on processors.

Each pod is a network namespace with an address and a name of its own; the name of a Service leads to a pod that it
selects, and the claim of a volume is a folder that all see. A pod of a Deployment that ends is followed by another one,
with another address, and that of a Job until it succeeds. On the way a worker is killed, and then the run. What comes
out is compared with the tree of one process. It needs Linux, root and `ip`, and puts all away again.

Not tried are images, requests and limits, and what Kubernetes does with them.
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
#: Programs that it takes.
PROGRAMS = ("ip", "nsenter")
#: Seconds after which a run is given up.
_PATIENCE = 900


@dataclass
class Pod:
    """A pod that there should be, and the host and process that it is now."""

    kind: str  # of what it belongs to: Deployment or Job
    template: dict[str, Any]
    host: int = -1
    process: subprocess.Popen[bytes] | None = None

    @property
    def container(self) -> dict[str, Any]:
        """Its one container."""
        [container] = self.template["spec"]["containers"]
        found: dict[str, Any] = container
        return found

    @property
    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return None if self.process is None else self.process.poll()

    @property
    def labels(self) -> dict[str, str]:
        """Its labels, by which Services select it."""
        found: dict[str, str] = self.template.get("metadata", {}).get("labels", {})
        return found


class Pods:
    """The pods of some objects while the context is open; `volume` is the folder that every claim stands for.

    There are hosts for `n_spare` pods that follow others.
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
        """Start a pod on the next host, and tell all what Services lead to."""
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
        )  # the image is this one
        self._stack.enter_context(ended(pod.process))

    def _names(self, pod: Pod) -> list[str]:
        selected = [one for one in self._services if one["spec"]["selector"].items() <= pod.labels.items()]
        names = [one["metadata"]["name"] for one in selected]
        return [f"pod{pod.host}", *names, *(f"{name}.default.svc.cluster.local" for name in names)]

    def kill(self, pod: Pod) -> None:
        """Kill all that runs in a pod."""
        self.hosts.kill(pod.host)
        if pod.process is not None:
            pod.process.wait()

    def go_on(self) -> bool:
        """Have the pods that ended followed by others; tell whether every Job is done."""
        for pod in self.pods:
            if pod.ended is not None and (pod.kind, pod.ended) != ("Job", 0):
                self._start(pod)
        return all(pod.ended == 0 for pod in self.pods if pod.kind == "Job")


def objects_of_recipe() -> list[dict[str, Any]]:
    """The objects of `kubernetes.yaml`."""
    return list(yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text()))


def objects_of_operator() -> list[dict[str, Any]]:
    """What Dask's operator makes of `dask_operator.yaml`, changed to processors as it says, and the run."""
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
    """Build the tree of a recipe in one process, and by pods that are killed: how many ran, and what differs."""
    [words] = (one["spec"]["template"]["spec"]["containers"][0]["args"] for one in objects if one["kind"] == "Job")
    alone = ["one.zarr" if word == "tree.zarr" else word for word in words[1 : words.index("--scheduler")]]
    for command in (["ingest", str(embeddings.absolute()), "pool.zarr"], alone):
        done = subprocess.run([sys.executable, "-m", "hkm_dask", *command], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(done.stderr)
    logs = folder / "pods"
    logs.mkdir()
    with Pods(objects, folder, logs, n_spare=2) as pods:
        # The last Deployment's is a worker.
        victims = [next(pod for pod in reversed(pods.pods) if pod.kind == kind) for kind in ("Deployment", "Job")]
        until = time.monotonic() + _PATIENCE
        while not pods.go_on():
            if victims and len(list(folder.glob("tree.zarr.work/*.npz"))) > 2 * (2 - len(victims)):
                pods.kill(victims.pop(0))
            if time.monotonic() > until:
                raise click.ClickException(f"no tree after {_PATIENCE} s\n{_end_of_logs(logs)}")
            time.sleep(0.2)
        if victims:
            raise click.ClickException("the run ended before all were killed; give it more rows")
        return {"pods": pods.n_started, "differences": differences(folder / "one.zarr", folder / "tree.zarr")}


def _end_of_logs(logs: Path) -> str:
    return "\n".join(f"{log.name}: {log.read_text()[-1000:]}" for log in sorted(logs.glob("*.log")))


@click.command()
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.option("--rows", type=int, help="Take the first so many rows.")
@click.option("--operator", is_flag=True, help="What Dask's operator makes of its recipe.")
def main(embeddings: Path, rows: int | None, operator: bool) -> None:
    """Run the objects of Kubernetes without it, kill some, and say whether the bits are those of one process."""
    objects = objects_of_operator() if operator else objects_of_recipe()
    try_recipe(PROGRAMS, embeddings, rows, lambda first, folder: run(first, objects, folder))


if __name__ == "__main__":
    main()
