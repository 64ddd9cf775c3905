"""A pool written, killed, resumed, read, damaged and replaced in any order gives correct rows or a StoreError."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hkm_dask.data import chunks, store
from hkm_dask.data.files import FAILPOINTS
from hkm_dask.data.ids import id_pieces
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.embedding.embed import Encoder, embed
from hkm_dask.errors import InputError, StoreError
from hkm_dask.hierarchy.verify.verify import verify

N_ROWS, N_FEATURES, CHUNK_ROWS = 23, 3, 4
VERSIONS = st.integers(0, 2)
#: Orders of operations that are tried.
EXAMPLES = int(os.environ.get("HKM_STORE_EXAMPLES", "8"))


def table(version: int) -> np.ndarray:
    return np.random.default_rng(version).normal(size=(N_ROWS, N_FEATURES)).astype("f4")


class Table:
    """Rows of one version, as items to be embedded."""

    def __init__(self, version: int) -> None:
        self.columns: dict[str, Any] = {}
        self.name, self.fingerprint, self.rows = f"table {version}", str(version), table(version)
        self.ids = id_pieces(np.arange(N_ROWS) + 100 * version, "ids")

    def __len__(self) -> int:
        return N_ROWS

    def read(self, first: int, last: int) -> Sequence[np.ndarray]:
        return list(self.rows[first:last])


class AsItIs(Encoder):
    name, fingerprint, n_features = "as it is", "1", N_FEATURES

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(prepared)


class Killed(BaseException):
    """What ends a run at a point of the commit; the disk is put back to what it was then."""


class StoreMachine(RuleBasedStateMachine):
    """The model is the version that has the name, if any, whether it was damaged, and which one is unfinished."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.folder = self.base / "disk"
        self.folder.mkdir()
        self.path = self.folder / "pool.zarr"
        self.version: int | None = None
        self.sound = True
        self.held: tuple[Pool, int] | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.base)

    def make(self, version: int, *, restart: bool) -> None:
        chunk_mb = CHUNK_ROWS * N_FEATURES * 4 / 2**20
        embed(Table(version), self.path, AsItIs(), dtype="float32", chunk_mb=chunk_mb, threads=1, restart=restart)

    @rule(version=VERSIONS)
    def write(self, version: int) -> None:
        """Replace whatever is there."""
        try:
            self.make(version, restart=True)
        except InputError as error:
            assert not self.sound
            assert "should be a store of hkm_dask to be overwritten" in str(error)  # noqa: PT017
            shutil.rmtree(self.path)
            self.make(version, restart=True)
        self.version, self.sound = version, True

    @rule(version=VERSIONS)
    def resume(self, version: int) -> None:
        """Go on with what was killed, where it was this."""
        try:
            self.make(version, restart=False)
        except InputError:
            assert self.version is not None or self.path.with_name("pool.zarr.wip").exists()
        except StoreError:
            assert not self.sound
        else:
            self.sound = self.sound or self.version != version
            self.version = version

    @precondition(lambda self: self.sound)
    @rule(version=VERSIONS, point=st.sampled_from(FAILPOINTS), passes=st.integers(1, 6), restart=st.booleans())
    def kill(self, version: int, point: str, passes: int, restart: bool) -> None:
        """Write, or go on, and be killed at some point if it is passed so often."""
        left = passes

        def failpoint(name: str) -> None:
            nonlocal left
            left -= name == point
            if left == 0:
                left = -1
                shutil.copytree(self.folder, self.base / "then")
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            for module in (chunks, store):
                patch.setattr(module, "failpoint", failpoint)
            try:
                self.make(version, restart=restart)
            except InputError:
                return
            except Killed:
                shutil.rmtree(self.folder)
                (self.base / "then").rename(self.folder)
                if not self.path.exists():
                    assert self.version is None or point == "retired"
                    self.version = None
                elif self.whole(version):
                    self.version = version
            else:
                self.version = version

    def whole(self, version: int) -> bool:
        return open_pool(self.path).rows().read(0, N_ROWS).tobytes() == table(version).tobytes()

    @rule(start=st.integers(0, N_ROWS), stop=st.integers(0, N_ROWS))
    def read(self, start: int, stop: int) -> None:
        start, stop = sorted((start, stop))
        try:
            pool = open_pool(self.path)
            rows, ids = pool.rows().read(start, stop), pool.ids()
        except StoreError:
            assert self.version is None or not self.sound
            return
        assert self.version is not None
        assert rows.tobytes() == table(self.version)[start:stop].tobytes()
        assert ids is not None
        assert ids[0] == 100 * self.version

    @precondition(lambda self: self.version is not None and self.sound)
    @rule()
    def hold(self) -> None:
        """Keep the pool open."""
        assert self.version is not None
        self.held = open_pool(self.path), self.version

    @precondition(lambda self: self.held is not None)
    @rule(start=st.integers(0, N_ROWS - 1))
    def read_held(self, start: int) -> None:
        """Read what was opened before, whatever has its name now."""
        assert self.held is not None
        pool, version = self.held
        try:
            rows = pool.rows().read(start, N_ROWS)
        except StoreError:
            assert self.version != version or not self.sound
        else:
            assert rows.tobytes() == table(version)[start:].tobytes()

    @precondition(lambda self: self.version is not None)
    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        """Flip a bit of any file of the store."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        file = data.draw(st.sampled_from(files))
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
        self.sound = False

    @precondition(lambda self: self.version is not None)
    @rule(pair=st.lists(st.integers(0, N_ROWS // CHUNK_ROWS - 1), min_size=2, max_size=2, unique=True))
    def swap(self, pair: list[int]) -> None:
        """Have two chunks change places."""
        first, second = (self.path / "embeddings" / "c" / str(index) / "0" for index in pair)
        if first.exists() and second.exists():
            one, other = first.read_bytes(), second.read_bytes()
            first.write_bytes(other)
            second.write_bytes(one)
            self.sound = False

    @precondition(lambda self: self.version is not None)
    @rule(index=st.integers(0, N_ROWS // CHUNK_ROWS))
    def lose(self, index: int) -> None:
        """Lose a chunk."""
        (self.path / "embeddings" / "c" / str(index) / "0").unlink(missing_ok=True)
        self.sound = False

    @precondition(lambda self: self.version is not None)
    @rule()
    def check(self) -> None:
        """Verify: nothing is found in what is sound, and where nothing is found the rows are right."""
        assert self.version is not None
        try:
            found = verify(self.path)
        except StoreError:  # it cannot even be told what it is
            assert not self.sound
            return
        if self.sound:
            assert not found.problems
        if not found.problems:
            assert self.whole(self.version)

    @invariant()
    def nothing_foreign_lies_beside_it(self) -> None:
        names = {"pool.zarr", "pool.zarr.wip", ".pool.zarr.lock", ".pool.zarr.retired"}
        assert {path.name for path in self.folder.iterdir()} <= names


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=EXAMPLES, stateful_step_count=12)
