import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.config import Config, Level
from hkm_dask.errors import InputError

# The defaults that the documentation promises, written out once more.
DOCUMENTED = """
seed: 0
metric: l2
dtype: float32
subset: null
fit_sample: null              # fit on so many rows, taken at random, and assign all
levels:
  - n_clusters: 2000
    n_splits: 1
    n_resamples: 10
    resample_size: auto
    resample_strategy: closest
    init: coreset
    max_iter: 50
    tol: 1.0e-4
"""


def problems_of(**settings: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        Config(**settings)  # type: ignore[arg-type]
    return list(caught.value.problems)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    assert Config(levels=[Level(n_clusters=2000)]) == Config.from_yaml(write(tmp_path, DOCUMENTED))  # type: ignore[arg-type]
    assert Config(levels=[Level(n_clusters=2000)]).model_dump(mode="json") == yaml.safe_load(  # type: ignore[arg-type]
        DOCUMENTED.replace("1.0e-4", "0.0001")
    )


def test_levels_may_be_given_as_models_or_as_mappings() -> None:
    assert Config(levels=[{"n_clusters": 5}]) == Config(levels=(Level(n_clusters=5),))  # type: ignore[arg-type]


def test_a_configuration_cannot_be_changed() -> None:
    config = Config(levels=(Level(n_clusters=5),))
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_a_configuration_travels() -> None:
    config = Config(seed=3, levels=(Level(n_clusters=5, resample_size=2),))
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_yaml_that_pyyaml_takes_for_text_is_a_number(tmp_path: Path, text: str) -> None:
    config = Config.from_yaml(write(tmp_path, f"levels:\n  - n_clusters: 2_000\n    tol: {text}\n"))
    assert config.levels[0].tol == 1e-4
    assert config.levels[0].n_clusters == 2000


@pytest.mark.parametrize("value", [2000, 2000.0, "2e3", np.int64(2000), np.int32(2000)])
def test_whole_numbers_come_in_many_types(value: object) -> None:
    level = Level(n_clusters=value)  # type: ignore[arg-type]
    assert level.n_clusters == 2000
    assert type(level.n_clusters) is int


@pytest.mark.parametrize(
    "value", [True, False, np.True_, 2.5, "many", None, [2], float("nan"), float("inf"), 2**31, 0, -1]
)
def test_what_is_no_number_of_clusters_is_refused(value: object) -> None:
    (line,) = problems_of(levels=[{"n_clusters": value}])
    assert line.startswith("levels.1.n_clusters=")
    assert " should be " in line
    assert "; " in line


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("n_splits", 0, "a whole number >= 1"),
        ("n_resamples", -1, "a whole number >= 0"),
        ("resample_size", 0, "auto or a whole number >= 1"),
        ("resample_size", "half", "auto or a whole number >= 1"),
        ("resample_size", True, "auto or a whole number >= 1"),
        ("resample_strategy", "near", "one of closest, random"),
        ("init", "kmeans++", "one of coreset, k-means++"),
        ("max_iter", 0, "a whole number >= 1"),
        ("tol", -1e-4, "a number >= 0 and < 1"),
        ("tol", 1, "a number >= 0 and < 1"),
        ("tol", float("nan"), "a number >= 0 and < 1"),
        ("tol", False, "a number >= 0 and < 1"),
        ("tol", "small", "a number >= 0 and < 1"),
    ],
)
def test_settings_of_a_level_are_checked(name: str, value: object, rule: str) -> None:
    (line,) = problems_of(levels=[{"n_clusters": 9}, {"n_clusters": 5, name: value}])
    assert line.startswith(f"levels.2.{name}={value!r} should be {rule}")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"seed": -1}, "seed=-1 should be a whole number >= 0; raise it"),
        ({"seed": True}, "seed=True should be a whole number >= 0; "),
        ({"metric": "cosin"}, "metric='cosin' should be one of l2, cosine; did you mean cosine?"),
        ({"dtype": "double"}, "dtype='double' should be one of float32, float64, float16, bfloat16, tf32; "),
        ({"subset": 3}, "subset=3 should be the path of a file of pool rows or ids (.npy, .parquet, .csv or .txt); "),
        ({"subset": ""}, "subset='' should be the path of a file of pool rows or ids (.npy, .parquet, .csv or .txt); "),
        ({"metrik": "l2"}, "metrik='l2' should be a known setting; did you mean metric?"),
        ({"max_iter": 5}, "max_iter=5 should be a known setting; it belongs to a level: levels.1.max_iter"),
        ({"color": "red"}, "color='red' should be a known setting; known are seed, metric, dtype, subset, fit_sample"),
    ],
)
def test_settings_of_the_run_are_checked(settings: dict[str, object], line: str) -> None:
    (problem,) = problems_of(**settings, levels=[{"n_clusters": 5}])
    assert problem.startswith(line)


@pytest.mark.parametrize("levels", [[], (), None, 5, "2000,400", {"n_clusters": 5}])
def test_levels_are_a_list_that_is_not_empty(levels: object) -> None:
    (line,) = problems_of(levels=levels)
    assert line.startswith("levels=")
    assert "should be a list of one or more levels" in line


def test_a_level_that_is_no_mapping_is_refused() -> None:
    (line,) = problems_of(levels=[2000])
    assert line == "levels.1=2000 should be a level's settings; write `n_clusters: 2000`"


def test_what_is_missing_is_named() -> None:
    assert problems_of() == [
        "levels=missing should be given; add a list of levels, level 1 first, each with `n_clusters: 2000`"
    ]
    assert problems_of(levels=[{}]) == [
        "levels.1.n_clusters=missing should be given; add `n_clusters: 2000` to the level"
    ]


def test_a_level_of_its_own_names_its_settings_without_a_number() -> None:
    with pytest.raises(InputError) as caught:
        Level(n_clusters=0, tol=2)
    assert [line.partition("=")[0] for line in caught.value.problems] == ["n_clusters", "tol"]


def test_all_problems_come_at_once_each_in_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        seed: yes
        metrik: cosine
        levels:
          - n_cluster: 100
            n_resamples: -3
          - n_clusters: 50
            resample_size: 0
          - n_clusters: 60
        """,
    )
    with pytest.raises(InputError) as caught:
        Config.from_yaml(path, ["levels.1.max_iters=5", "levels.4.tol=0", "nonsense"])
    names = [line.partition(" should be ")[0] for line in caught.value.problems]
    assert sorted(names) == sorted(
        [
            "levels.1.max_iters=5",
            "levels.4.tol=0",
            "set='nonsense'",
            "seed=True",
            "metrik='cosine'",
            "levels.1.n_clusters=missing",
            "levels.1.n_cluster=100",
            "levels.1.n_resamples=-3",
            "levels.2.resample_size=0",
        ]
    )
    assert all("; " in line for line in caught.value.problems)


def test_rising_levels_are_told_beside_other_problems() -> None:
    lines = problems_of(seed=-1, levels=[{"n_clusters": 50}, {"n_clusters": 60}])
    assert lines[1:] == ["levels.2.n_clusters=60 should be <= levels.1.n_clusters=50; lower it"]


def test_check_finds_every_level_that_cannot_be() -> None:
    config = Config(levels=(Level(n_clusters=50), Level(n_clusters=60), Level(n_clusters=10), Level(n_clusters=20)))
    with pytest.raises(InputError) as caught:
        config.check(40)
    assert caught.value.problems == (
        "n_samples=40 should be >= levels.1.n_clusters=50; lower n_clusters or add samples",
        "levels.2.n_clusters=60 should be <= levels.1.n_clusters=50; lower it",
        "levels.4.n_clusters=20 should be <= levels.3.n_clusters=10; lower it",
    )


def test_check_names_the_sample_that_is_too_small() -> None:
    with pytest.raises(InputError, match=r"^fit_sample=40 should be >= levels.1.n_clusters=50; raise fit_sample, or"):
        Config(fit_sample=40, levels=(Level(n_clusters=50),)).check(40)


def test_check_allows_as_many_clusters_as_there_is_input() -> None:
    Config(levels=(Level(n_clusters=50), Level(n_clusters=50))).check(50)


def test_check_counts_splits() -> None:
    config = Config(levels=(Level(n_clusters=10, n_splits=10), Level(n_clusters=100)))
    config.check(100)
    with pytest.raises(InputError, match=r"n_samples=99 should be >= levels\.1\.n_clusters \* n_splits=100; "):
        config.check(99)


def test_check_does_not_overflow() -> None:
    config = Config(levels=(Level(n_clusters=10**7), Level(n_clusters=10**5)))
    config.check(10**9)
    with pytest.raises(InputError, match="n_samples=9999999 "):
        config.check(10**7 - 1)


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nlevels:\n  - n_clusters: 100\n  - n_clusters: 10\n    tol: 0.5\n")
    config = Config.from_yaml(
        path,
        [
            "seed=7",
            "levels.2.n_clusters=20",
            "levels.1.tol=1e-3",
            "metric=cosine",
            "subset=null",
            "levels.1.init=random",
        ],
    )
    assert config == Config(
        seed=7, metric="cosine", levels=(Level(n_clusters=100, tol=1e-3, init="random"), Level(n_clusters=20, tol=0.5))
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("levels.1.n_cluster=5", "levels.1.n_cluster=5 should be a known setting; did you mean n_clusters?"),
        ("levels.0.n_clusters=5", "levels.0.n_clusters=5 should be of a level from 1 to 1; "),
        ("levels.2.n_clusters=5", "levels.2.n_clusters=5 should be of a level from 1 to 1; "),
        ("levels.one.n_clusters=5", "levels.one.n_clusters=5 should be of a level from 1 to 1; "),
        ("levels.1=5", "levels.1=5 should be levels.LEVEL.SETTING; "),
        ("levels=5", "levels=5 should be levels.LEVEL.SETTING; "),
        ("max_iter=5", "max_iter=5 should be a known setting; it belongs to a level: levels.1.max_iter"),
        ("sed=5", "sed=5 should be a known setting; did you mean seed?"),
        ("seed", "set='seed' should be NAME=VALUE; "),
        ("=5", "set='=5' should be NAME=VALUE; "),
        ("metric=[l2", "metric='[l2' should be a value YAML can read; "),
        ("seed=1:30", "seed='1:30' should be a value YAML can read; 1:30 in line 1 is a number to base 60 in YAML"),
        (
            "seed=010",
            "seed='010' should be a value YAML can read; 010 in line 1 is a number to base 8 in YAML; write it ",
        ),
        ("levels.1.tol=-1", "levels.1.tol=-1 should be a number >= 0 and < 1; "),
    ],
)
def test_wrong_overrides_are_refused(override: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        Config.from_flags([100], overrides=[override])
    (problem,) = caught.value.problems
    assert problem.startswith(line)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("seed=1", "seed=2"),
        ("seed=1", "seed=1"),
        ("seed=1", " seed=1"),
        ("levels.1.max_iter=1", "levels.01.max_iter=2"),
        ("sed=1", "sed=2"),
    ],
)
def test_an_override_given_twice_is_refused(tmp_path: Path, first: str, second: str) -> None:
    """The last one won, and nothing was said of the first."""
    path = write(tmp_path, "levels:\n  - n_clusters: 100\n")
    for make in (partial(Config.from_flags, [100]), partial(Config.from_yaml, path)):
        with pytest.raises(InputError) as caught:
            make(overrides=[first, "levels.1.tol=0", second])
        problem = caught.value.problems[-1]
        assert problem == f"set={second!r} should be given once, but follows {first!r}; keep one of them"


def test_flags_give_one_value_to_all_levels_or_one_to_each() -> None:
    config = Config.from_flags(
        (2000, 400, 100),
        n_resamples=(0, 10, 10),
        resample_size="auto",
        max_iter=20,
        seed=5,
        overrides=["levels.3.tol=0"],
    )
    assert config == Config(
        seed=5,
        levels=(
            Level(n_clusters=2000, n_resamples=0, max_iter=20),
            Level(n_clusters=400, max_iter=20),
            Level(n_clusters=100, max_iter=20, tol=0),
        ),
    )


def test_flags_of_the_wrong_length_are_refused_together_with_other_problems() -> None:
    with pytest.raises(InputError) as caught:
        Config.from_flags((10, 20), n_resamples=(1, 2, 3), resample_size=(1,), seed=-1)
    assert caught.value.problems == (
        "n_resamples=(1, 2, 3) should be one value or 2, one per level of n_clusters; it has 3",
        "resample_size=(1,) should be one value or 2, one per level of n_clusters; it has 1",
        "seed=-1 should be a whole number >= 0; raise it",
        "levels.2.n_clusters=20 should be <= levels.1.n_clusters=10; lower it",
    )


def test_long_values_are_cut_in_messages() -> None:
    (line,) = problems_of(seed="x" * 1000, levels=[{"n_clusters": 5}])
    assert len(line) < 200


def test_json_is_canonical() -> None:
    text = Config(levels=(Level(n_clusters=5),), seed=3).to_json()
    assert text == Config(seed=3, levels=(Level(n_clusters=5, tol=0.0001),)).to_json()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert " " not in text


@pytest.mark.parametrize("text", ["", "[]", "{", "5"])
def test_json_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="should be a JSON object"):
        Config.from_json(text)


def test_difference_names_what_is_otherwise() -> None:
    stored = Config(levels=(Level(n_clusters=2000), Level(n_clusters=400)))
    asked = Config(seed=1, fit_sample=5000, levels=(Level(n_clusters=3000), Level(n_clusters=400, resample_size=5)))
    assert asked.difference(stored) == [
        "seed: 0 in the tree, 1 asked for",
        "fit_sample: none in the tree, 5000 asked for",
        "levels.1.n_clusters: 2000 in the tree, 3000 asked for",
        "levels.2.resample_size: auto in the tree, 5 asked for",
    ]
    assert asked.difference(asked) == []


def test_difference_counts_levels() -> None:
    stored = Config(levels=(Level(n_clusters=2000), Level(n_clusters=400)))
    asked = Config(levels=(Level(n_clusters=2000),))
    assert asked.difference(stored) == ["levels: 2 in the tree, 1 asked for"]
    assert stored.difference(asked) == ["levels: 1 in the tree, 2 asked for"]


levels = st.builds(
    Level,
    n_clusters=st.integers(1, 2**31 - 1),
    n_splits=st.integers(1, 1000),
    n_resamples=st.integers(0, 1000),
    resample_size=st.one_of(st.just("auto"), st.integers(1, 1000)),
    resample_strategy=st.sampled_from(["closest", "random"]),
    init=st.sampled_from(["coreset", "k-means++", "k-means||", "random"]),
    max_iter=st.integers(1, 1000),
    tol=st.floats(0, 1, exclude_max=True),
)
configs = st.builds(
    Config,
    seed=st.integers(0, 2**63 - 1),
    metric=st.sampled_from(["l2", "cosine"]),
    dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16", "tf32"]),
    subset=st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=2)),
    levels=st.lists(levels, min_size=1, max_size=4),
)


@given(config=configs)
def test_a_configuration_comes_back_from_json_and_yaml(
    config: Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert Config.from_json(config.to_json()) == config
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert Config.from_yaml(path) == config
    assert config.difference(Config.from_yaml(path)) == []


@pytest.mark.parametrize(("text", "shown"), [("'1__0'", "'1__0'"), ("0x" + "f" * 4000, "a number of 16,000 bits")])
def test_numbers_that_are_none_or_too_long_are_one_line(text: str, shown: str) -> None:
    with pytest.raises(InputError) as caught:
        Config.from_flags([5], overrides=[f"seed={text}"])
    (line,) = caught.value.problems
    assert line.startswith(f"seed={shown} should be ")


def test_a_hierarchy_has_levels_that_can_be_counted() -> None:
    assert len(Config.from_flags([5] * 64).levels) == 64
    with pytest.raises(InputError, match=r"^levels=65 levels should be at most 64; leave some out$"):
        Config.from_flags([5] * 65)


def test_the_advice_is_explained_for_small_and_large_pools() -> None:
    assert "5, 10 and 30 rows" in Config.reason_of_advice(10**6)
    assert "the paper's 75" in Config.reason_of_advice(10**6 + 1)


def test_the_advice_falls_from_level_to_level_for_any_number_of_samples() -> None:
    for n in [*range(1, 200), 10**4, 10**6, 10**6 + 1, 10**9]:
        config = Config.advised(n)
        config.check(n)
        assert all(level.n_clusters > 1 for level in config.levels) or len(config.levels) == 1
    assert [level.n_clusters for level in Config.advised(10**6).levels] == [200_000, 100_000, 33_333]
    paper = Config.advised(750_000_000)
    assert [level.n_clusters for level in paper.levels] == [10_000_000, 500_000, 50_000, 10_000]
    assert [level.n_resamples for level in paper.levels] == [0, 10, 10, 10]
    given = Config.advised(
        600, n_resamples=3, resample_size=None, overrides=["levels.1.n_clusters=99"], metric="cosine"
    )
    assert [level.n_clusters for level in given.levels] == [99, 60, 20]
    assert (given.levels[2].n_resamples, given.levels[2].resample_size, given.metric) == (3, 2, "cosine")


def test_what_is_shown_is_what_is_not_as_by_default() -> None:
    assert repr(Config.from_flags(20, n_resamples=10)) == "Config(levels=(Level(n_clusters=20),))"
    config = Config.from_flags((100, 20), metric="cosine", n_resamples=(0, 10), seed=0)
    shown = "Config(metric='cosine', levels=(Level(n_clusters=100, n_resamples=0), Level(n_clusters=20)))"
    assert repr(config) == shown
    assert eval(shown) == config
