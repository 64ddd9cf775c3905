"""Settings files: invalid ones are refused with the line number."""

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
        ("? [a]\n: b", "should be valid YAML; line 1: a name should be plain text"),
        ("seed: !!int x", "should be a configuration; invalid literal for int"),
        ("seed: !!timestamp x", "should be a configuration; it has an invalid value"),
        ("seed: !!bool x", "should be a configuration; it has an invalid value (KeyError: 'x')"),
        ("seed: 2001-99-99", "should be a configuration; month must be in 1..12"),
        ("a: &a [*a]", "should be a configuration; it is nested deeper than 20, in line 1"),
        ("a:\n  " + "[" * 300, "should be a configuration; it is nested deeper than 20, in line 2"),
        ("a: [" + "1," * 20_000 + "]", "should be a configuration; it has more than 20,000 values"),
        (
            "a: &a [" + "1," * 200 + "]\nb: [" + "*a," * 200 + "]",
            "it has more than 20,000 values, with aliases expanded",
        ),
        ("a: " + "x" * 5000, "should be a configuration; the value in line 1 has 5,000 characters, more than 4,096"),
        ("seed: 0100", "0100 in line 1 is a number to base 8 in YAML; write it without a zero before it, or in quotes"),
        (
            "levels: [{n_clusters: 1:30}]",
            "1:30 in line 1 is a number to base 60 in YAML; write it as one number, or in",
        ),
        ("#" * 300_000, "should be a configuration; it has 300,001 bytes, more than 262,144"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_yaml(write(tmp_path, text + "\n"))
    (line,) = caught.value.problems
    assert message in line


def test_aliases_of_a_level_are_written_out(tmp_path: Path) -> None:
    text = "levels:\n  - &first {n_clusters: 5, tol: 0}\n  - {<<: *first, n_clusters: 2}\n"
    assert read_yaml(write(tmp_path, text))["levels"] == [{"n_clusters": 5, "tol": 0}, {"n_clusters": 2, "tol": 0}]


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="should be a readable file; No such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="should be a readable file; Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(InputError, match="should be"):
        read_yaml(tmp_path / "binary.yaml")
