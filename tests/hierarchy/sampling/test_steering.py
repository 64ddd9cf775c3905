"""Names of clusters and files of weights."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.steering import Cluster, read_weights, write_weights

CLUSTERS = st.tuples(st.integers(1, 99), st.integers(0, 10**9))
WEIGHTS = st.integers(0, 10**9).map(lambda n: n / 10**6)  # six decimals, up to 1000


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(CLUSTERS, WEIGHTS, max_size=20))
def test_weights_come_back_as_they_were_written(tmp_path: Path, weights: dict[tuple[int, int], float]) -> None:
    written = write_weights(tmp_path / "weights.csv", weights, overwrite=True)  # type: ignore[arg-type]
    assert read_weights(written) == weights
    assert list(read_weights(written)) == sorted(weights)


def test_a_file_is_what_a_person_would_write(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.csv", {"2:19": 0, (1, 7): 0.5, "10:0": np.float32(3)})
    assert path.read_text() == "cluster,weight\n1:7,0.5\n2:19,0\n10:0,3\n"
    # As a spreadsheet saves it.
    path.write_bytes('\ufeffcluster, weight\r\n2:19, 0.25\r\n\r\n"1:7",1e-3\r\n'.encode())
    assert read_weights(path) == {Cluster(2, 19): 0.25, Cluster(1, 7): 0.001}


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["w.csv: its first line should be cluster,weight; "]),
        ("2:19,1\n", ["w.csv: its first line should be cluster,weight; "]),
        (
            "cluster,weight\n2:x,1\n2:19\n1:3,-1\n1:3,nan\n01:3,1\n1:4,1001\n1:5,0.0000001\n1:6,much\n1:7,1,2\n",
            [
                "w.csv, line 2: cluster='2:x' should be LEVEL:NUMBER; ",
                "w.csv, line 3: '2:19' should be a cluster and a weight; ",
                "w.csv, line 4: weight='-1' should be 0, which leaves the cluster out, or from 0.000001 to 1000; ",
                "w.csv, line 5: weight='nan' should be 0",
                "w.csv, line 5: cluster='1:3' should be named once; ",
                "w.csv, line 6: cluster='01:3' should be LEVEL:NUMBER; ",
                "w.csv, line 7: weight='1001' should be 0",
                "w.csv, line 8: weight='0.0000001' should be 0",
                "w.csv, line 9: weight='much' should be 0",
                "w.csv, line 10: '1:7,1,2' should be a cluster and a weight; ",
            ],
        ),
        ("cluster,weight\n" + "x,1\n" * 1000, ["w.csv, line"] * 10 + ["w.csv: 990 more lines have such problems"]),
        ('cluster,weight\n"2:19,1\n', ["weights='"]),
    ],
)
def test_all_wrong_lines_are_named(tmp_path: Path, text: str, problems: list[str]) -> None:
    path = tmp_path / "w.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_weights(path)
    assert len(error.value.problems) == len(problems)
    assert all(told.startswith(wanted) for told, wanted in zip(error.value.problems, problems, strict=True))


def test_what_cannot_be_read_or_written_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.csv"):
        with pytest.raises(InputError, match="should be a CSV file of weights, but cannot be read"):
            read_weights(path)
    path = write_weights(tmp_path / "w.csv", {})
    with pytest.raises(InputError, match="should not exist yet"):
        write_weights(path, {"1:2": 0})
    with pytest.raises(InputError, match="should be in a folder, "):
        write_weights(path / "no" / "w.csv", {"1:2": 0})
    with pytest.raises(InputError) as error:
        write_weights(
            tmp_path / "v.csv",
            {"2-3": 1, "1:2": -1, (0, 1): 1, "1:3": "x", "1:4": 1, (1, 4): 2},  # type: ignore[dict-item]
        )
    assert len(error.value.problems) == 5
    assert "weights of 1:4 should be given once; leave one of them out" in error.value.problems
    assert [file.name for file in tmp_path.iterdir()] == ["w.csv"]
    assert write_weights(tmp_path / "a" / "b" / "w.csv", {"1:2": 0}).is_file()
