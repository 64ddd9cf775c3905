"""One writer per store in an object store, whatever happens to other writers."""

import json
import socket
from pathlib import Path

import pytest

from hkm_dask.data import leases, store
from hkm_dask.data.locks import lock
from hkm_dask.data.objects import ObjectPath
from hkm_dask.errors import StoreError


def lock_of(place: ObjectPath) -> ObjectPath:
    return place.with_name(f".{place.name}.lock")


def test_a_second_writer_is_refused_and_told_who(bucket: ObjectPath) -> None:
    place = bucket / "t.zarr"
    with lock(place):
        with (
            pytest.raises(StoreError, match=rf"{place} is being written by pid \d+ on host .*; wait for it to end"),
            lock(place),
        ):
            pass
        assert lock_of(place).is_file()
        with lock(bucket / "other.zarr"):
            pass
    assert not bucket.exists()
    with lock(place):
        pass


@pytest.mark.parametrize(
    "holder", [{"pid": 2**22 + 1, "host": socket.gethostname()}, {"pid": 1, "host": socket.gethostname()}]
)
def test_the_lock_of_a_process_that_has_ended_is_taken_over(bucket: ObjectPath, holder: dict[str, object]) -> None:
    place = bucket / "t.zarr"
    lock_of(place).write_bytes(json.dumps({**holder, "started": 0.0}).encode())
    with lock(place):
        pass


def test_of_two_who_take_a_lock_over_one_holds_it(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    place, ended = bucket / "t.zarr", {"pid": 2**22 + 1, "host": socket.gethostname(), "started": 0.0}
    lock_of(place).write_bytes(json.dumps(ended).encode())
    is_dead = leases._is_dead

    def overtaken(holder: dict[str, object]) -> bool:
        if holder == ended:
            lock_of(place).write_bytes(b'{"pid": 1, "host": "another"}')
        return is_dead(holder)

    monkeypatch.setattr(leases, "_is_dead", overtaken)
    with pytest.raises(StoreError, match="is being written by pid 1 on host another"), lock(place):
        pass
    assert lock_of(place).read_bytes() == b'{"pid": 1, "host": "another"}'


@pytest.mark.parametrize("content", [b'{"pid": 1, "host": "another"}', b"[]", b"{"])
def test_a_lock_that_nobody_renews_is_taken_over(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    place = bucket / "t.zarr"
    lock_of(place).write_bytes(content)
    with (
        pytest.raises(StoreError, match=r"is being written by (pid 1 on host another|another process), last active"),
        lock(place),
    ):
        pass
    monkeypatch.setattr(leases, "LEASE_SECONDS", -1.0)
    with lock(place):
        assert json.loads(lock_of(place).read_bytes())["host"] == socket.gethostname()


def test_a_lock_is_renewed_while_it_is_held(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    place = bucket / "t.zarr"
    with lock(place):
        seen = {lock_of(place).read_bytes()}
        while len(seen) < 3:  # which the test's own time limit ends
            seen.add(lock_of(place).read_bytes())
    assert len({json.loads(content)["lease"] for content in seen}) == 1


def test_a_renewal_whose_answer_was_lost_loses_no_lock(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    place, write_if = bucket / "t.zarr", ObjectPath.write_if

    def unheard(self: ObjectPath, data: bytes, e_tag: str | None = None) -> str:
        write_if(self, data, e_tag)
        raise StoreError("the store does not answer")

    with lock(place):
        with monkeypatch.context() as patch:
            patch.setattr(ObjectPath, "write_if", unheard)
            with pytest.raises(StoreError, match="does not answer"):
                leases.check_lease(place)
        leases.check_lease(place)
    assert not bucket.exists()


def write(place: ObjectPath) -> None:
    with store.staged(place) as wip:
        store.create_group(wip, {"format": "hkm_dask.tree"})
        store.create_group(place / "level_1")
        lock_of(place).write_bytes(b'{"pid": 1, "host": "another"}')
        store.mark_complete(place / "level_1")


def test_a_lock_whose_answer_was_lost_is_not_taken_for_that_of_another(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, write_if = bucket / "t.zarr", ObjectPath.write_if

    def unheard(self: ObjectPath, data: bytes, e_tag: str | None = None) -> str:
        write_if(self, data, e_tag)
        return write_if(self, data, e_tag)  # as the library does where a server ends a connection

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "write_if", unheard)
        held = lock(place)
        held.__enter__()
    leases.check_lease(place)
    held.__exit__(None, None, None)
    assert not lock_of(place).is_file()


def test_who_lost_the_lock_completes_nothing(bucket: ObjectPath) -> None:
    place = bucket / "t.zarr"
    with lock(place), pytest.raises(StoreError, match=f"{place} was taken over by another process"):
        write(place)
    assert not store.is_complete(place)
    assert not store.is_complete(place / "level_1")
    assert lock_of(place).read_bytes() == b'{"pid": 1, "host": "another"}'


def test_a_store_without_conditions_is_warned_of(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        import errno

        raise OSError(errno.ENOTSUP, "the store does not support it")

    monkeypatch.setattr(ObjectPath, "write_if", refuse)
    with pytest.warns(UserWarning, match="does not support locks: do not start a second run"), lock(bucket / "t.zarr"):
        pass
    assert not lock_of(bucket / "t.zarr").is_file()


def test_locks_of_a_disk_are_as_they_were(tmp_path: Path) -> None:
    with lock(f"file://{tmp_path}/t.zarr"):
        assert (tmp_path / ".t.zarr.lock").is_file()
