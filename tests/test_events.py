import logging
import threading
import time

import pytest

from hkm_dask.events import Event, emit, subscribe


def test_a_subscriber_hears_what_is_emitted_while_it_listens() -> None:
    heard: list[Event] = []
    emit("assigned", level=1, step=0)
    before = time.time()
    with subscribe(heard.append):
        emit("iteration", level=1, step=0, iteration=3, inertia=2.5, max_iter=50)
    emit("assigned", level=1, step=0)

    (event,) = heard
    assert event.kind == "iteration"
    assert event.fields == {"level": 1, "step": 0, "iteration": 3, "inertia": 2.5, "max_iter": 50}
    assert before <= event.time <= time.time()


def test_a_field_may_be_called_kind() -> None:
    heard: list[Event] = []
    with subscribe(heard.append):
        emit("progress", kind="a field")
    assert heard[0].kind == "progress"
    assert heard[0].fields == {"kind": "a field"}


def test_all_subscribers_hear_it_though_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def fail(event: Event) -> None:
        raise OSError("the terminal is gone")

    with caplog.at_level(logging.WARNING), subscribe(fail), subscribe(heard.append):
        emit("assigned", level=1, step=0)
    assert len(heard) == 1
    assert "the terminal is gone" in caplog.text


def test_an_interrupt_is_not_a_failure_of_the_subscriber() -> None:
    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with subscribe(interrupt), pytest.raises(KeyboardInterrupt):
        emit("assigned", level=1, step=0)


def test_a_callback_subscribed_twice_hears_twice_and_leaves_once_at_a_time() -> None:
    heard: list[Event] = []
    with subscribe(heard.append):
        with subscribe(heard.append):
            emit("assigned", level=1, step=0)
        emit("assigned", level=1, step=0)
    assert len(heard) == 3


def test_a_subscriber_is_gone_after_an_error_in_its_context() -> None:
    heard: list[Event] = []
    with pytest.raises(ZeroDivisionError), subscribe(heard.append):
        raise ZeroDivisionError
    emit("assigned", level=1, step=0)
    assert heard == []


def test_threads_may_emit_while_others_subscribe() -> None:
    heard: list[Event] = []

    def emit_many() -> None:
        for i in range(200):
            emit("progress", stage="ingest", done=i, total=200)

    def come_and_go() -> None:
        for _ in range(200):
            with subscribe(lambda event: None):
                pass

    threads = [threading.Thread(target=target) for target in (emit_many, emit_many, come_and_go, come_and_go)]
    with subscribe(heard.append):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(heard) == 400
