"""Ids are integers or strings, one per row, and can be given in pieces."""

import numpy as np
import pytest

from hkm_dask.data import ids
from hkm_dask.errors import InputError


@pytest.mark.parametrize("given", [[3, 1, 2], ["a", "b", "ü"], np.array([1, 2], dtype="u4"), np.array(["x"], object)])
def test_pieces_hold_all_ids_in_order(given: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "ID_PIECE_ROWS", 2)
    pieces = list(ids.id_pieces(given, "ids")())
    assert np.concatenate(pieces).tolist() == list(np.asarray(given))
    assert all(len(piece) <= 2 and piece.dtype in (np.int64, object) for piece in pieces)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1], [2]], r"shape=\(2, 1\) should have one dimension"),
        (np.array(["a", 1], dtype=object), "neither integers nor strings"),
        ([0.5], "dtype=float64 should be integers or strings"),
        ([True], "dtype=bool should be integers or strings"),
    ],
)
def test_other_values_are_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=f"ids: .*{message}"):
        ids.id_pieces(given, "ids")


def test_texts_are_taken_as_they_are_however_long() -> None:
    given = ["x" * 10**6, "a", "a\0"] + [str(i) for i in range(10**4)]  # 40 GB where all were as wide as the longest
    pieces = list(ids.id_pieces(given, "ids")())
    assert np.concatenate(pieces).tolist() == given


def test_an_integer_of_64_bits_is_refused() -> None:
    with pytest.raises(InputError, match=r"id=18446744073709551615 should be below 2\*\*63; give the ids as strings"):
        ids.plain_ids(np.array([2**64 - 1], dtype="u8"), "ids")
    with pytest.raises(InputError, match="dtype=float64 should be integers or strings"):
        ids.plain_ids(np.array([1.0]), "ids")


def test_as_many_ids_as_rows() -> None:
    ids.check_id_count(3, 3, "a.npy")
    with pytest.raises(InputError, match="n_ids=2 should be 3"):
        ids.check_id_count(2, 3, "a.npy")


def test_halves_of_characters_and_other_objects_are_refused() -> None:
    for piece in (np.array(["a", "b\ud800"], object), np.array(["\udfff"])):
        with pytest.raises(InputError, match=r"ids: '.*ud.*' should be valid Unicode; fix it"):
            ids.plain_ids(piece, "ids")
    for value in (None, 1.5, [1]):
        with pytest.raises(InputError, match="ids: some ids are neither integers nor strings"):
            ids.plain_ids(np.array(["a", value], object), "ids")
