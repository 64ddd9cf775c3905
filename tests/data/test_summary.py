"""Summaries can be printed wherever a program runs."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

import hkm_dask as hkm


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_summary_is_of_characters_that_stdout_has(tmp_path: Path, encoding: str) -> None:
    x = np.random.default_rng(0).normal(size=(90, 4)).astype("f4")
    pool = hkm.ingest(x, tmp_path / "zoë.zarr")
    tree = hkm.build_hierarchy(pool, tmp_path / "tree.zarr", hkm.Config.from_flags((20, 3), n_resamples=1))
    with io.TextIOWrapper(io.BytesIO(), encoding) as stdout, contextlib.redirect_stdout(stdout):
        print(pool, tree.hkm)
        stdout.flush()
        lines = stdout.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]
    assert lines[0] == ("Pool of 90 samples × 4 features" if encoding != "ascii" else "Pool of 90 samples x 4 features")
    assert lines[1].endswith("zo\\xeb.zarr" if encoding == "ascii" else "zoë.zarr")
    (level,) = (line for line in lines if line.split()[:2] == ["1", "20"])
    assert ("█" in level, "@" in level) == (encoding == "utf-8", encoding != "utf-8")
