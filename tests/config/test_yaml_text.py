"""Files of settings: what is none of them is refused with the line."""

from pathlib import Path

import pytest

from hkm_dask.config.yaml_text import read_value, read_yaml
from hkm_dask.errors import InputError


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_settings_come_as_they_are_written(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "seed: 3\nlevels:\n  - n_clusters: 5\n")) == {
        "seed": 3, "levels": [{"n_clusters": 5}],
    }  # fmt: skip
    assert read_value("[10, 0]") == [10, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("levels: [", "should be valid YAML; line 2"),
        ("- n_clusters: 5", "should be a YAML mapping of settings"),
        ("", "should be a YAML mapping of settings"),
        ("1: 2", "should be a YAML mapping of settings"),
        (
            "levels:\n  - n_clusters: 5\n    n_clusters: 6\n",
            "n_clusters=(twice) should be given once; remove the one in line 3",
        ),
        ("seed: !!python/object:os.system 1", "should be valid YAML"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_yaml(write(tmp_path, text + "\n"))
    (line,) = caught.value.problems
    assert message in line


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="should be a readable file; No such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="should be a readable file; Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(InputError, match="should be"):
        read_yaml(tmp_path / "binary.yaml")
