"""A real S3 server on loopback, one for all tests of a process, which counts its requests."""

from __future__ import annotations

import logging
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from hkm_dask.data.objects import ObjectPath, location

_LINE = re.compile(r'"(?:\x1b\[[\d;]*m)*(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP')
_VARIABLES = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "us-east-1"}


class ObjectStore(logging.Handler):
    """A moto server with a new bucket for every test; `requests` has the method and path of each request."""

    def __init__(self) -> None:
        super().__init__()
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication
        from moto.server import ThreadedMotoServer

        # For every request, it searches 190 folders of its own, always with the same result.
        DomainDispatcherApplication.get_backend_for_host = cache(DomainDispatcherApplication.get_backend_for_host)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint, self.requests, self._n_buckets = f"http://{host}:{port}", list[tuple[str, str]](), 0
        log = logging.getLogger("werkzeug")
        log.handlers, log.propagate = [self], False
        log.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        if found := _LINE.search(record.getMessage()):
            self.requests.append((found[1], found[2]))

    def environment(self) -> dict[str, str]:
        return {**_VARIABLES, "AWS_ENDPOINT_URL": self.endpoint}

    def bucket(self) -> ObjectPath:
        """Return a location in a new bucket."""
        self._n_buckets += 1
        name = f"bucket-{os.getpid()}-{self._n_buckets}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request).close()
        place = location(f"s3://{name}/data")
        assert isinstance(place, ObjectPath)
        return place

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Count requests by method; the counts are complete when the context closes."""
        first, counts = len(self.requests), Counter[str]()
        yield counts
        counts.update(method for method, _ in self.requests[first:])

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.stop()


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """Return a location in a new bucket; the environment has the address of the store."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    return object_store.bucket()
