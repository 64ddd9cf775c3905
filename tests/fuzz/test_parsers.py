"""Every parser of external bytes accepts damaged input, or refuses it with a clear message and leaves no files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.fuzz.bench import Bench
from pipelines.fuzz.parsers import PARSERS

#: Inputs per parser; `python pipelines/fuzz/run.py` uses thousands.
N_INPUTS = 15


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    benches: dict[str, Bench] = {}

    def get(name: str) -> Bench:
        if name not in benches:
            benches[name] = Bench(PARSERS[name], tmp_path_factory.mktemp(name) / "bench")
        return benches[name]

    return get


@pytest.mark.parametrize("name", PARSERS)
@settings(
    max_examples=N_INPUTS, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)  # fmt: skip
@given(data=st.data())
def test_damage_is_survived_or_told(name: str, bench: Callable[[str], Bench], data: st.DataObject) -> None:
    path, content = data.draw(bench(name).cases())
    outcome = bench(name).run(path, content)
    assert outcome.kind != "defect", outcome.detail


def test_what_a_parser_raises_otherwise_is_a_defect(tmp_path: Path) -> None:
    from pipelines.fuzz.parsers import Parser

    def read(folder: Path, out: Path) -> None:
        text = (folder / "a.txt").read_text()
        if text == "leaves":
            (out / "half").touch()
        if text != "sound":
            raise {"breaks": KeyError, "starves": MemoryError}.get(text, _refusal)(
                f"{text}: it should be sound; mend it"
            )

    bench = Bench(Parser("example", lambda folder: (folder / "a.txt").write_text("sound"), read), tmp_path / "bench")
    path = bench.folder / "a.txt"
    kinds = [bench.run(path, text).kind for text in (b"sound", b"other", b"leaves", b"breaks", b"starves")]
    assert kinds == ["worked", "refused", "defect", "defect", "defect"]
    assert path.read_text() == "sound"


def _refusal(message: str) -> Exception:
    from hkm_dask.errors import InputError

    return InputError(message)
