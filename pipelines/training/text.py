"""Text (Table 6 of arXiv:2405.15613 at small scale): a language model trained on equally many tokens of each draw.

The pool has passages from documents of six domains, the largest forty times the smallest, and near-duplicates. Draws
use their embeddings. Perplexity is measured on passages outside the pool, of every domain and of a held-out one.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.embedding.encoders import text_encoder
from hkm_dask.metrics import class_balance
from pipelines.longtail.more_pools import from_file, to_file
from pipelines.longtail.pools import Pool
from pipelines.measurements import Facts, Measurements
from pipelines.text.command import MODEL
from pipelines.training.corpus import DOMAINS, LEFT_OUT, vary
from pipelines.training.draws import ALL, DRAWS
from pipelines.training.language import SETTINGS, Setting, encode, surprise, tokenizer, train

N_TEST, N_COPIES, N_COPIED, N_DRAWN = 100, 1500, 150, 1000
#: Tokens of each draw used for training; a passage has about 130.
DRAWN_TOKENS = 100_000
TABLE = ("entropy", "copies", "balanced", "rarest", LEFT_OUT[0], *DOMAINS)


@dataclass(frozen=True)
class TextPool:
    """Passages, their domains (0 is the largest), the original of each, and test passages by domain."""

    texts: list[str]
    labels: NDArray[np.int64]
    originals: NDArray[np.int64]
    tests: dict[str, list[str]]


@functools.cache
def _domain(name: str) -> list[str]:
    read = LEFT_OUT[1] if name == LEFT_OUT[0] else DOMAINS[name][0]
    return list(read())


def text_pool(seed: int, *, share: float = 1.0) -> TextPool:
    """Create the pool of a seed; `share` makes it smaller."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    labels: list[int] = []
    tests = {}
    for label, (name, (_, size)) in enumerate(DOMAINS.items()):
        chosen = rng.permutation(len(_domain(name)))[: N_TEST + max(1, int(size * share))]
        tests[name] = [_domain(name)[i] for i in chosen[:N_TEST]]
        texts += [_domain(name)[i] for i in chosen[N_TEST:]]
        labels += [label] * (len(chosen) - N_TEST)
    tests[LEFT_OUT[0]] = [_domain(LEFT_OUT[0])[i] for i in rng.permutation(len(_domain(LEFT_OUT[0])))[:N_TEST]]
    popular = rng.permutation(len(texts))[:N_COPIED]
    weights = 1 / np.arange(1, len(popular) + 1)
    copied = rng.choice(popular, int(N_COPIES * share), p=weights / weights.sum())
    originals = np.concatenate([np.arange(len(texts)), copied])
    return TextPool([*texts, *(vary(texts[i], rng) for i in copied)], np.array(labels)[originals], originals, tests)


def _embedded(pool: TextPool, n_drawn: int) -> Pool:
    """Embed the pool with MiniLM."""
    encoder = text_encoder(importlib.import_module(MODEL).get_model_path())
    tests = [text for name in DOMAINS for text in pool.tests[name]]
    of_test = np.repeat(np.arange(len(DOMAINS)), [len(pool.tests[name]) for name in DOMAINS])
    return Pool("texts", encoder(pool.texts), pool.labels, encoder(tests), of_test, tuple(DOMAINS), n_drawn)


def run(
    out: Path, seeds: int, *, setting: str = "cpu", device: str = "cpu", draws: Sequence[str] = tuple(DRAWS),
    n_drawn: int = N_DRAWN, share: float = 1.0,
) -> Measurements:  # fmt: skip
    """Train on all draws with all seeds, except those with results in `out`.

    Writes `text.jsonl`, and the embedded pool of each seed as `texts-SEED.npz`, which `pipelines/longtail` reads.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = Measurements(out / "text.jsonl")
    for seed in range(seeds):
        keys = {name: {"draw": name, "seed": seed, "setting": setting} for name in (*draws, ALL)}
        if all(key in found for key in keys.values()):
            continue
        pool = text_pool(seed, share=share)
        file = out / f"texts-{seed}.npz"
        if not file.exists():
            to_file(_embedded(pool, n_drawn), file)
        embedded = from_file(file)
        learned = tokenizer(pool.texts)
        for name, key in keys.items():
            measure = functools.partial(_trained, pool, embedded, name, learned, SETTINGS[setting], seed, device)
            result = found.get(key, measure)
            print(f"seed {seed} {name}: perplexity {result['balanced']:.1f}", flush=True)
    return found


def _trained(
    pool: TextPool, embedded: Pool, name: str, learned: Any, setting: Setting, seed: int, device: str
) -> Facts:  # fmt: skip
    """Train on a draw; measure perplexity by domain, its balanced mean, that of the two rarest, and held out."""
    rows = np.arange(len(pool.texts)) if name == ALL else DRAWS[name](embedded, seed)
    order = np.random.default_rng(seed).permutation(rows)
    tokens = encode(learned, [pool.texts[row] for row in order])
    tokens = tokens if name == ALL else tokens[:DRAWN_TOKENS]
    model = train(tokens, setting, learned.get_vocab_size(), seed, device=device)
    nats = {
        domain: surprise(model, encode(learned, texts), setting.context) for domain, texts in pool.tests.items()
    }  # fmt: skip
    inside = [nats[domain] for domain in DOMAINS]
    return {
        "entropy": class_balance(pool.labels[rows], len(DOMAINS)).entropy,
        "copies": 1 - len(np.unique(pool.originals[rows])) / len(rows),
        "balanced": float(np.exp(np.mean(inside))),
        "rarest": float(np.exp(np.mean(inside[-2:]))),
        **{domain: float(np.exp(value)) for domain, value in nats.items()},
        "n_drawn": len(rows),
        "n_tokens": len(tokens),
    }
