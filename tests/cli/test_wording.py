"""Error messages of commands name options, not arguments of Python functions."""

import re
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest

from hkm_dask import cli
from tests.cli.results import Result, embeddings

#: Commands that fail, each in another way, and what is said instead of the Python of it.
WRONG = {
    "ingest a.npy pool.zarr": "pool.zarr should not exist yet; give another path, or --overwrite\n",
    "ingest a.npy b.zarr --chunk-mb 0": "--chunk-mb=0",
    "ingest a.npy b.zarr --ids nowhere": "--ids='nowhere' does not apply to",
    "ingest nan.npy b.zarr": "fix them, or leave them out with --drop-nonfinite\n",
    "ingest complex.npy b.zarr": "embeddings.dtype=complex64 should be float16",
    "cluster pool.zarr t.zarr --config empty.yaml": "each with `n_clusters: 2000`",
    "cluster pool.zarr t.zarr --n-clusters 20,5 --n-resamples 1,2,3": "--n-resamples=1,2,3 should be one value or 2",
    "cluster pool.zarr t.zarr --n-clusters 20,5 --seed -1": "--seed=-1 should be",
    "cluster pool.zarr t.zarr --n-clusters 20,5 --subset rows.npy": "--subset=rows.npy should be",
    "cluster pool.zarr t.zarr --n-clusters 500": "lower --n-clusters or add samples",
    "cluster pool.zarr t.zarr --fit-sample 500": "--fit-sample=500 should be",
    "cluster pool.zarr t.zarr --workers 2 --local-cuda": "--workers=2 and --local-cuda should be one place",
    "cluster pool.zarr t.zarr --memory-limit 1MiB": "--memory-limit",
    "cluster pool.zarr tree.zarr --n-clusters 30,5": "use --restart to replace it",
    "sample tree.zarr --size 999 --out o.npy": "--size=999 should be a whole number from 1 to the 200 available",
    "sample tree.zarr --size 9 --out a.npy": "should be a new file; choose another name, or --overwrite\n",
    "sample tree.zarr --size 9 --out o.npy --within best": "--by should be a column of the pool for --within='best'",
    "sample tree.zarr --size 9 --out o.npy --exclude-ids no.txt": "--exclude-ids='no.txt' should be a file of ids",
    "sample tree.zarr --size 9 --out o.npy --max-per a=1 --max-per b=1": "--max-per should be for one column",
    "sample tree.zarr --size 9 --out o.npy --quota a=no.csv": "--quota='no.csv' should be a CSV file",
    "dedup tree.zarr --threshold 2 --out o.npy": "--threshold=2",
    "assign tree.zarr wide.npy o.zarr": "n_features",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import hkm_dask as hkm

    folder = tmp_path_factory.mktemp("wording")
    np.save(folder / "a.npy", embeddings())
    np.save(folder / "wide.npy", embeddings(5).repeat(2, axis=1))
    np.save(folder / "nan.npy", np.where(embeddings() > 9, np.nan, embeddings()))
    np.save(folder / "complex.npy", embeddings().astype("c8"))
    (folder / "empty.yaml").write_text("seed: 0\n")
    np.save(folder / "rows.npy", [3, 3, 900])
    hkm.ingest(folder / "a.npy", folder / "pool.zarr")
    config = hkm.Config.from_flags((20, 5), n_resamples=0, overrides=["levels.1.max_iter=2"])
    hkm.build_hierarchy(folder / "pool.zarr", folder / "tree.zarr", config)
    return folder


@pytest.mark.parametrize("words", WRONG)
def test_errors_name_options(
    hkm: Callable[..., Result], folder: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(folder)
    code, _, err = hkm(*words.split())
    assert code in (1, 2)
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert lines
    assert WRONG[words] in err
    for line in lines:
        assert not re.search(r"=(True|False|None)\b|(?<!--)overwrite|\{'|[a-z]\(", line), line
        for parameter in cli.main.commands[words.split()[0]].params:
            if isinstance(parameter, click.Option) and parameter.expose_value:
                assert not re.search(rf"(?<![-.\w]){parameter.name}=", line), line
    assert not {path.name for path in folder.iterdir()} & {"b.zarr", "t.zarr", "o.npy", "o.zarr"}
