"""Difficult texts, and files of every kind that contain them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from hkm_dask.embedding.texts import Texts

# Whatever a line may hold: \n ends it, and \r before that belongs to the end; other line breaks are part of the text.
LINES = st.lists(st.text(st.characters(exclude_characters="\n\r\ufeff", exclude_categories=["Cs"])), max_size=300)
WORDS = ["eins", "zwei\u2028drei", "vier\x0bfünf", "  sechs ", "七", "\ufeffacht", "neun,\t'zehn'"]


def all_ids(found: Texts) -> list:
    assert found.ids is not None
    return [value for piece in found.ids() for value in piece.tolist()]


def write_txt(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_jsonl(path: Path, lines: list[str]) -> None:
    path.write_text("".join(json.dumps({"n": n, "text": line}) + "\n" for n, line in enumerate(lines)))


def write_parquet(path: Path, lines: list[str]) -> None:
    table = pa.table({"text": pa.array(lines, pa.string()), "n": pa.array(range(len(lines)), pa.int32())})
    pq.write_table(table, path, row_group_size=70)


WRITERS = {".txt": write_txt, ".jsonl": write_jsonl, ".parquet": write_parquet}
each_kind = pytest.mark.parametrize("suffix", WRITERS)
