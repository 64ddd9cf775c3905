"""Messages about invalid settings."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hkm_dask.config.problems import nearest, problems_of, show, unknown


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = Field(strict=True, ge=1, le=9, description="a whole number >= 1")
    share: float = Field(0.5, gt=0, description="a number > 0; use 0.5")


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({"size": 0}, ["size=0 should be a whole number >= 1; raise it"]),
        ({"size": 10}, ["size=10 should be at most 9; lower it"]),
        ({"size": "3"}, ["size='3' should be a whole number >= 1; write it without quotes or decimals"]),
        ({"size": 1, "share": -1}, ["share=-1 should be a number > 0; use 0.5"]),
        ({"size": 1, "shape": 2}, ["shape=2 should be a known setting; did you mean share?"]),
        ({"size": 0, "share": 0}, ["size=0 should be a whole number >= 1; raise it",
                                   "share=0 should be a number > 0; use 0.5"]),
    ],
)  # fmt: skip
def test_every_problem_is_a_line(settings: dict[str, object], lines: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Model(**settings)  # type: ignore[arg-type]
    assert list(problems_of(caught.value, Model.model_fields)) == lines


def test_unknown_settings_get_the_nearest_or_all_that_are_known() -> None:
    assert unknown("sed", 1, ["seed", "metric"]) == "sed=1 should be a known setting; did you mean seed?"
    assert unknown("tol", 1, ["seed"], ["tol"]).endswith("it belongs to a level: levels.1.tol")
    assert unknown("color", 1, ["seed", "metric"]).endswith("known are seed, metric")
    assert nearest("zzz", ["seed"]) is None


def test_long_values_are_cut() -> None:
    assert show(Path("a/b")) == "'a/b'"
    assert len(show("x" * 1000)) == 60
