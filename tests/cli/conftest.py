"""The command line called in this process, and a small pool for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hkm_dask import cli
from tests.cli.results import Result, embeddings


@pytest.fixture
def hkm(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line in this process."""

    def run(*words: object) -> Result:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(word) for word in words], prog_name="hkm")
        out, err = capsys.readouterr()
        assert "Traceback" not in err or "--debug" in words
        return Result(exit_.value.code or 0, out, err)  # type: ignore[arg-type]

    return run


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    from hkm_dask.ingestion.ingest import ingest

    ingest(embeddings(), tmp_path / "pool.zarr")
    return tmp_path / "pool.zarr"


@pytest.fixture
def small() -> list[str]:
    return ["--n-clusters", "20,5", "--n-resamples", "1", "--set", "levels.1.max_iter=5"]
