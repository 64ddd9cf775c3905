"""Work that starts before the workers of a run."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.cli.commands import main
from hkm_dask.config import Config, Level
from hkm_dask.data.objects import location
from hkm_dask.planning.before_run import kernels_checked
from hkm_dask.search.cuda import ahead as cuda_ahead


def test_kernels_for_the_rows_of_the_pool_are_checked_while_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40, 6)).astype(np.float16))
    hkm.ingest([tmp_path / "rows.npy"], tmp_path / "pool.zarr")
    told: list[list[str]] = []
    popen = subprocess.Popen

    def begin(words: list[str], **options: object) -> subprocess.Popen[bytes]:
        if words[3:] and words[1:4] == list(cuda_ahead._PROGRAM):
            told.append(words[4:])
        return popen(words, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "Popen", begin)
    words = ["cluster", str(tmp_path / "pool.zarr"), str(tmp_path / "tree.zarr"), "--n-clusters", "4"]
    main([*words, "--set", "dtype=bfloat16"], standalone_mode=False)
    assert told == []
    config = Config(levels=(Level(n_clusters=4),), dtype="bfloat16")
    with kernels_checked(location(tmp_path / "pool.zarr"), config), kernels_checked(location(tmp_path / "no"), config):
        pass
    assert told == [["6", "float16", "bfloat16"]]
