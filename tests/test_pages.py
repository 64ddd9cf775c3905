"""The runner of pages notices what is wrong in one, and every page with commands is run by a test."""

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
$ cat n.txt
3
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
    assert [step.line for step in steps(SOUND)] == [8, 14, 16, 17, 24, 30]


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


def test_every_page_with_commands_is_run_by_some_test() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "pipelines").rglob("*.md")]
    tests = [text for path in (ROOT / "tests").rglob("test_*.py") if "run_page(" in (text := path.read_text("utf-8"))]
    for page in pages:
        if "```console\n" in page.read_text(encoding="utf-8"):
            name = page.relative_to(ROOT).as_posix()
            assert any(f'"{name}"' in text for text in tests), f"{name} has commands, and no test runs it"
