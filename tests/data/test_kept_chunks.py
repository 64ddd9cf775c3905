import pickle

import numpy as np

from hkm_dask.data.kept_chunks import KeptChunks


def test_those_used_last_stay_within_the_bytes() -> None:
    kept, chunks = KeptChunks(most_bytes=24), [np.full(1, number) for number in range(5)]
    for number in (0, 1, 2):
        kept.put(number, chunks[number])
    assert kept.get(0) is chunks[0]
    kept.put(3, chunks[3])
    assert [number for number in range(5) if kept.get(number) is not None] == [0, 2, 3]


def test_the_last_one_is_kept_however_large() -> None:
    kept = KeptChunks(most_bytes=24)
    for number in range(3):
        kept.put(number, np.full(100, number))
    assert [kept.get(number) is None for number in range(3)] == [True, True, False]


def test_what_is_kept_does_not_travel() -> None:
    kept = KeptChunks(most_bytes=24)
    kept.put(0, np.zeros(1))
    copy = pickle.loads(pickle.dumps(kept))
    assert copy.get(0) is None
    assert copy.most_bytes == 24
