"""Response times of the `hkm browse` server: ``python -m pipelines.benchmark.browsing FOLDER``.

The tree is the large synthetic one of `pipelines.benchmark.queries`, with a caption for every sample and a subset.
Every request is sent twice over HTTP to a newly started server, as the page does. The CPU time of the second response
is reported too, because it does not depend on other load of the machine.
"""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np

import hkm_dask as hkm
from pipelines.benchmark.queries import Shape, milliseconds, parse_arguments, tree_in


def prepare(folder: Path, shape: Shape) -> tuple[Path, Path, Path]:
    """Create the tree, the captions and the subset if they do not exist."""
    captions, subset = folder / f"captions-{shape.n_samples}.txt", folder / f"subset-{shape.n_samples}.npy"
    tree = tree_in(folder, shape)
    if not captions.exists():
        with captions.open("w") as file:
            file.writelines(f"sample {row} of a pool with captions of some length\n" for row in range(shape.n_samples))
    if not subset.exists():
        np.save(subset, np.arange(0, shape.n_samples, 10))
    return tree, captions, subset


def questions(shape: Shape) -> dict[str, tuple[str, bytes | None]]:
    """Return the path of each request, and the body to post with it."""
    n_levels = len(shape.n_clusters)
    asked: dict[str, tuple[str, bytes | None]] = {"the tree": ("api/tree", None)}
    for level in range(n_levels + 1, 0, -1):
        name = "" if level > n_levels else f"{level}:5"
        title = f"cluster {name}" if name else "the top"
        asked[title] = (f"api/cluster?{urlencode({'name': name})}", None)
        if level > 1:
            asked[f"inside {title}"] = (f"api/children?{urlencode({'name': name})}", None)
            asked[f"inside {title}, by the subset"] = (
                f"api/children?{urlencode({'name': name, 'order': 'subset'})}",
                None,
            )
        for order in ("closest", "furthest"):
            asked[f"{order} of {title}"] = (f"api/members?{urlencode({'name': name, 'order': order})}", None)
    vector = b",".join([b"0.1"] * shape.n_features)
    for level in range(1, n_levels + 1):
        asked[f"near a vector, level {level}"] = (f"api/nearest?level={level}", vector)
    asked["a step of a search for what is not there"] = ("api/search?what=caption&query=wolf", None)
    asked["mark"] = ("api/mark", json.dumps({"cluster": f"{n_levels}:5", "weight": 0}).encode())
    asked["show a draw"] = ("api/draw", json.dumps({"size": shape.n_samples // 100}).encode())
    asked["inside the top, with marks and a draw"] = ("api/children", None)
    asked["inside a cluster, with marks and a draw"] = (f"api/children?{urlencode({'name': f'{n_levels}:6'})}", None)
    return asked


def measure(tree: Path, captions: Path, subset: Path, shape: Shape) -> dict[str, object]:
    """Return seconds to open the page and, for every request, milliseconds of the first, of the second, and its CPU."""
    begin = time.perf_counter()
    with hkm.browse(tree, captions=captions, subset=subset, out=tree.with_name("weights.csv")) as browser:
        opened = time.perf_counter() - begin
        origin = f"http://{urlsplit(browser.url).netloc}"

        def ask(path: str, body: bytes | None) -> None:
            request = urllib.request.Request(browser.url + path, body, {"Origin": origin} if body else {})
            with urllib.request.urlopen(request) as answer:
                sizes.append(len(answer.read()))

        answers, sizes = {}, list[int]()
        for name, question in questions(shape).items():
            first, begin = milliseconds(lambda question=question: ask(*question)), time.process_time()  # type: ignore[misc]
            second = milliseconds(lambda question=question: ask(*question))  # type: ignore[misc]
            answers[name] = [round(ms, 1) for ms in (first, second, 1e3 * (time.process_time() - begin))]
    return {"open_s": round(opened, 2), "first_second_and_cpu_ms": answers, "largest_answer_bytes": max(sizes)}


def main() -> None:
    """Create the inputs if they do not exist, and print the response times as JSON."""
    folder, shape = parse_arguments(__doc__)
    print(json.dumps({**shape._asdict(), **measure(*prepare(folder, shape), shape)}, indent=2))


if __name__ == "__main__":
    main()
