"""The choice between NumPy and CuPy in a process, and the message if CuPy is missing."""

import sys
import warnings
from pathlib import Path

import pytest

from hkm_dask.compute.backend import require_cuda
from hkm_dask.errors import ComputeError


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on the path, for a CuPy that fails in some way."""
    for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    require_cuda.cache_clear()
    return tmp_path


def test_a_cupy_that_lacks_something_itself_is_not_called_missing(packages: Path) -> None:
    (packages / "cupy.py").write_text("import cuda_core_that_nobody_has")
    with pytest.raises(
        ComputeError, match=r"^CuPy cannot be imported \(No module named 'cuda_core_that_nobody_has'\);"
    ):
        require_cuda()


def test_a_missing_cupy_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    require_cuda.cache_clear()
    with pytest.raises(ComputeError, match=r"^CuPy is not installed; pip install 'hkm-dask\[cuda13\]' or \[cuda12\]$"):
        require_cuda()


@pytest.mark.parametrize(
    "module", ["cupy", "cupy._core.core", "cupyx", "cupy_backends.cuda.api.runtime", "dask_cuda.utils"]
)
def test_warnings_of_cupy_itself_fail_no_test(module: str) -> None:
    with warnings.catch_warnings(record=True) as told:  # under the filters of the suite
        warnings.warn_explicit("of the shape attribute", DeprecationWarning, "core.pyx", 1, module=module)
    assert len(told) == 1
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("ours", DeprecationWarning, "runner.py", 1, module="hkm_dask.compute.runner")
