"""A small language model: a transformer over byte-pair tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
N_TOKENS, END = 2048, "<end>"
RATE, DECAY, DROPOUT = 1e-3, 0.01, 0.1


@dataclass(frozen=True)
class Setting:
    """Size and training of a model; `context` is the window length in tokens, `batch` the windows per step."""

    width: int
    heads: int
    layers: int
    context: int
    batch: int
    steps: int


SETTINGS = {
    "cpu": Setting(128, 4, 2, 64, 32, 600),
    "gpu": Setting(512, 8, 8, 256, 64, 5000),
    "tiny": Setting(16, 2, 1, 16, 8, 20),
}


def tokenizer(texts: Iterable[str], n_tokens: int = N_TOKENS) -> Any:
    """Train a byte-pair tokenizer (`tokenizers.ByteLevelBPETokenizer`)."""
    from tokenizers import ByteLevelBPETokenizer

    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(texts, vocab_size=n_tokens, special_tokens=[END], show_progress=False)
    return learned


def encode(learned: Any, texts: Sequence[str]) -> Tokens:
    """Concatenate the tokens of texts, with an end token after each text."""
    end = learned.token_to_id(END)
    return np.concatenate([[*encoded.ids, end] for encoded in learned.encode_batch(list(texts))]).astype(np.int64)


def network(setting: Setting, n_tokens: int) -> Any:
    """Build the transformer; see `scores`."""
    from torch import nn

    s = setting
    layer = nn.TransformerEncoderLayer(s.width, s.heads, 4 * s.width, DROPOUT, batch_first=True, norm_first=True)
    parts = {
        "tokens": nn.Embedding(n_tokens, s.width),
        "places": nn.Embedding(s.context, s.width),
        "layers": nn.TransformerEncoder(layer, s.layers, norm=nn.LayerNorm(s.width), enable_nested_tensor=False),
        "out": nn.Linear(s.width, n_tokens),
    }
    return nn.ModuleDict(parts)


def scores(parts: Any, tokens: Any) -> Any:
    """Return the logits of each next token, of shape (n, length, n_tokens), for tokens of shape (n, length)."""
    from torch import nn

    length = tokens.shape[1]
    x = parts["tokens"](tokens) + parts["places"].weight[:length]
    mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
    return parts["out"](parts["layers"](x, mask=mask, is_causal=True))


def train(tokens: Tokens, setting: Setting, n_tokens: int, seed: int, *, device: str = "cpu") -> Any:
    """Train a model from scratch on random windows; the number of windows does not depend on the number of tokens."""
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    parts = network(setting, n_tokens).to(device)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=setting.steps)
    text = torch.from_numpy(tokens).to(device)
    window = torch.arange(setting.context + 1, device=device)
    parts.train()
    for _ in range(setting.steps):
        starts = torch.randint(len(text) - setting.context, (setting.batch, 1), device=device)
        seen = text[starts + window]
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            guessed = scores(parts, seen[:, :-1])
        loss = functional.cross_entropy(guessed.float().flatten(0, 1), seen[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return parts.eval()


def surprise(parts: Any, tokens: Tokens, context: int) -> float:
    """Return the mean of -log p of a token, in nats, over consecutive windows; its exponential is the perplexity."""
    import torch
    from torch.nn import functional

    device = next(parts.parameters()).device
    n = (len(tokens) - 1) // context
    text = torch.from_numpy(tokens[: n * context + 1]).to(device)
    before, after = text[:-1].view(n, context), text[1:].view(n, context)
    with torch.inference_mode():
        losses = [
            functional.cross_entropy(scores(parts, x).flatten(0, 1), y.flatten(), reduction="sum")
            for x, y in zip(before.split(64), after.split(64), strict=True)
        ]
    return float(sum(losses)) / (n * context)
