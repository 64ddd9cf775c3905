"""The runner of pages detects errors, and every block of a page is run by a test or says why not."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.pages import ROOT, run_page, steps

SOUND = r"""# A page

```
pip install what-is-not-run
```

```console
$ hkm ingest rows.npy \
      pool.zarr   # a comment
...
  samples ... 20
...

$ hkm ingest rows.npy pool.zarr
Error: ...pool.zarr should not exist yet; ...
$ hkm info pool.zarr --json | python -c 'import json, sys; print(json.load(sys.stdin)["n_features"])' > n.txt
$ hkm --version > version.txt
$ cat n.txt version.txt
3
hkm ...
```

Then:

```python
import numpy as np

rows = np.load("rows.npy")
```

```python
print(rows.shape)
```
"""


def prepare(folder: Path) -> None:
    np.save(folder / "rows.npy", np.arange(60, dtype=np.float32).reshape(20, 3))


def run(text: str, tmp_path: Path):
    page, folder = tmp_path / "page.md", tmp_path / "run"
    page.write_text(text, encoding="utf-8")
    folder.mkdir()
    return run_page(page, folder, prepare)


def test_a_sound_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    done = run(SOUND, tmp_path)
    assert done.namespace["rows"].shape == (20, 3)
    assert list(done.outputs.values())[-1] == "(20, 3)\n"
    assert [step.line for step in steps(SOUND)] == [8, 14, 16, 17, 18, 26, 32]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```console\n$ hkm info nowhere.zarr\n```\n", "page.md:2: .*\nexit code 1\n.*nowhere.zarr"),
        ("```console\n$ ls | grep nothing\n```\n", "page.md:2: .*\nexit code 1"),
        ("```console\n$ ls\nrows.npz\n```\n", "shown in the page:\nrows.npz\n\nprinted:\nrows.npy"),
        ("```console\n$ hkm --version\nError: it cannot\n```\n", "exit code 0, it should fail"),
    ],
)
def test_a_page_that_does_not_hold_fails(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=said):
        run(text, tmp_path)


def test_an_error_in_python_names_the_line_of_the_page(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run("# A page\n\n```python\nn = 0\n1 / n\n```\n", tmp_path)
    assert (caught.traceback[-1].lineno + 1, Path(caught.traceback[-1].path).name) == (5, "page.md")


#: Blocks that are run in no test as they stand, by page and first line, and why.
NOT_RUN = {
    "README.md": {
        "pip install -e . && hkm demo": "what CI does",
        "dask scheduler --scheduler-file cluster.json": "many machines; those of docs/many-machines.md run on one",
        "seed: 0": "compared with the defaults in tests/test_package.py",
    },
    "docs/browse.md": {"hkm browse tree.zarr --captions captions.txt --subset subset.npy": "serves until Ctrl-C"},
    "docs/does-it-pay.md": {
        "python pipelines/longtail/run.py --studies methods --pools mine.npz --seeds 8 --out mine": (
            "takes long; tests/pipelines/test_methods.py does the same on little"
        ),
    },
    "docs/filter-your-dataset.md": {
        "pip install embedding-atlas   # installs PyTorch, which is not used here": "a server; 0.26.0 ran by hand",
        "pip install fiftyone pyarrow   # installs MongoDB; does not read Parquet by itself": "an installation",
    },
    "docs/gpu.md": {
        "pip install -e '.[cuda13]'      # driver 580 or newer": "needs a GPU",
        "hkm cluster pool.zarr tree.zarr --n-clusters 2000,400,100 --local-cuda": "needs a GPU",
        "from dask_cuda import LocalCUDACluster": "needs a GPU",
        "dask scheduler --scheduler-file s.json                                        # on one machine": "needs GPUs",
    },
    "docs/images-and-texts.md": {
        "pip install -e '.[text]'": "needs a model; tests/pipelines/test_text.py embeds with one where it is installed",
        "pip install -e '.[satellite]'": "needs a model; tests/embedding/test_rasters.py embeds with a descriptor",
    },
    "docs/object-stores.md": {"pip install 'hkm_dask[s3]'": "an installation"},
    "docs/many-machines.md": {"dask scheduler --scheduler-file cluster.json": "tests/test_how_to.py starts them"},
}


def test_every_block_is_run_by_some_test_or_says_why_not() -> None:
    modules = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path.name != "test_pages.py"]
    tests = [text for text in modules if "run_page(" in text]
    not_run: dict[str, dict[str, str]] = {}
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "pipelines").rglob("*.md")):
        name = page.relative_to(ROOT).as_posix()
        has_test = any(f'"{name}"' in text for text in tests)
        text = page.read_text(encoding="utf-8")
        for language, first in re.findall(r"^ *```(\w*)\n(.*)\n(?:.*\n)*?^ *```$", text, re.MULTILINE):
            if language == "text" or (language in ("console", "python") and has_test):
                continue
            if page.parts[-3] != "pipelines" or language == "console":
                not_run.setdefault(name, {})[first] = NOT_RUN.get(name, {}).get(first, "")
    assert not_run == NOT_RUN
