"""Steps for a child process, with few imports so that it starts at once."""

import os
import signal
import subprocess
import sys
import time

from pipelines.gpu.record import Record


def hang(record: Record) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    record.add("began", child=child.pid)
    time.sleep(600)


def fail(record: Record) -> None:
    record.add(some=[1])
    raise ValueError("this\nis not it")


def die(record: Record) -> None:
    record.add("still alive")
    os.kill(os.getpid(), signal.SIGSEGV)


def succeed(record: Record) -> None:
    record.add("first", some=[1], rate=float("inf"))
    record.add("second", some=[2])


def tell_environment(record: Record) -> None:
    record.add(f"HKM_HOPPER={os.environ.get('HKM_HOPPER')}")
