"""Parts: every row once, similar sizes, and boundaries where writers may begin."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute.partition import in_rounds, split_parts
from hkm_dask.data.rows import ArrayRows


@given(
    n_rows=st.integers(1, 300),
    n_parts=st.integers(1, 40),
    block_rows=st.integers(1, 100),
    chunk_rows=st.integers(1, 50),
)
def test_parts_hold_every_row_once(n_rows: int, n_parts: int, block_rows: int, chunk_rows: int) -> None:
    rows = ArrayRows(np.zeros((n_rows, 2), np.float32))
    rows.chunk_rows = chunk_rows
    parts = split_parts(rows, n_parts, block_bytes=block_rows * 8, budget=7)
    bounds = list(itertools.chain([0], *(part.bounds[1:] for part in parts)))
    assert 1 <= len(parts) <= n_parts
    assert bounds[-1] == n_rows
    assert all(a < b for a, b in itertools.pairwise(bounds))
    assert all(part.start == previous.stop for previous, part in itertools.pairwise(parts))
    assert all(bound % chunk_rows == 0 for bound in bounds[:-1])
    assert max(np.diff(bounds)) <= max(block_rows, chunk_rows)
    assert {part.budget for part in parts} == {7}


@given(st.integers(10, 400), st.integers(1, 10), st.integers(1, 100))
def test_parts_are_about_the_same_size(n_rows: int, n_parts: int, block_rows: int) -> None:
    parts = split_parts(ArrayRows(np.zeros((n_rows, 2), np.float32)), n_parts, block_bytes=8 * block_rows, budget=0)
    assert len(parts) == min(n_parts, n_rows)
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 60))
def test_writers_begin_and_end_where_their_chunks_do(n_rows: int, n_parts: int, chunk: int) -> None:
    cuts = np.append(np.arange(0, n_rows, chunk), n_rows)
    parts = split_parts(ArrayRows(np.zeros((n_rows, 2))), n_parts, block_bytes=64, budget=0, cuts=cuts)
    assert {part.start for part in parts} | {part.stop for part in parts} <= set(cuts.tolist())
    assert [parts[0].start, parts[-1].stop] == [0, n_rows]
    # Otherwise they are the blocks of passes that write nothing, and found in memory by what comes after.
    blocks = {b for part in split_parts(parts[0].rows, n_parts, block_bytes=64, budget=0) for b in part.bounds}
    assert all(set(part.bounds[1:-1]) <= blocks for part in parts)


@given(st.integers(1, 300), st.integers(1, 5), st.integers(1, 50), st.integers(1, 40))
def test_rounds_hold_every_row_once(n_rows: int, n_parts: int, chunk_rows: int, n_rounds: int) -> None:
    rows, cuts = ArrayRows(np.zeros((n_rows, 2), np.float32)), np.append(np.arange(0, n_rows, chunk_rows), n_rows)
    parts = split_parts(rows, n_parts, block_bytes=64, budget=7, cuts=cuts)
    rounds = list(in_rounds(parts, cuts, n_rounds))
    assert all(1 <= len(some) <= len(parts) for some in rounds)
    pieces = sorted((piece for some in rounds for piece in some), key=lambda piece: piece.start)
    assert [pieces[0].start, *(piece.stop for piece in pieces)] == [*(piece.start for piece in pieces), n_rows]
    assert {bound for piece in pieces for bound in (piece.start, piece.stop)} <= set(cuts.tolist())
    assert {bound for part in parts for bound in part.bounds} <= {bound for piece in pieces for bound in piece.bounds}
    assert len(rounds) == 1 or len(rounds) <= 2 * n_rounds
