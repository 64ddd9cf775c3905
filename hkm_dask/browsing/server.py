"""The web server of the page: for users of this machine who know the address, and only from the page itself.

The address has a random token, so that other users of the machine cannot read the page. Requests must name a host of
this machine, which protects against DNS rebinding; requests that change marks must have the page as their origin.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from io import BytesIO
from ipaddress import ip_address
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from hkm_dask.browsing.answers import Answers
from hkm_dask.data.npy import read_npy
from hkm_dask.errors import HkmError, InputError
from hkm_dask.untrusted import parse_json

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
#: Most bytes of a request body, enough for a vector; pixels of a thumbnail, and of an image.
MAX_BODY, THUMBNAIL, IMAGE = 2**20, 192, 1024
_FILES = {
    "": ("index.html", "text/html"), "browse.css": ("browse.css", "text/css"),
    "browse.js": ("browse.js", "text/javascript"), "parts.js": ("parts.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_QUESTIONS = ("tree", "cluster", "children", "members", "search", "nearest_to_row")
_CHANGES = ("mark", "undo", "save", "draw")
_NUMBERS = {"start": int, "n": int, "row": int, "level": int, "size": int, "weight": float}


class Server(ThreadingHTTPServer):
    """Serves the page of a tree until it is closed."""

    daemon_threads = True

    def __init__(self, answers: Answers, host: str = LOOPBACK[0], port: int = 0) -> None:
        self.answers, self.token = answers, secrets.token_urlsafe(24)
        host = host.strip("[]")
        if not host:  # an empty host would bind to all addresses
            raise InputError("host='' should be an address of this machine; leave --host out")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        # `host` may be a name, or one of many notations of an address; the bound address is unambiguous.
        bound = ip_address(str(self.server_address[0]).partition("%")[0])
        #: Whether other machines can reach it, by whatever name.
        self.anywhere = not bound.is_loopback
        shown = socket.gethostname() if bound.is_unspecified else f"[{host}]" if ":" in host else host
        self.hosts = {*LOOPBACK, shown.lower()}
        self.url = f"http://{shown}:{self.server_address[1]}/{self.token}/"
        self._thread: threading.Thread | None = None

    def server_bind(self) -> None:
        """Bind without looking up the name of the address, which can take half a minute on some networks."""
        TCPServer.server_bind(self)

    def start(self) -> None:
        """Start serving in a thread."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="hkm browse", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the server is closed."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop serving."""
        if self._thread is not None:
            self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of browsers that disconnect during an answer, as they do on navigation."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds until an idle connection is closed
    disable_nagle_algorithm = True

    def version_string(self) -> str:
        return "hkm"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, respond: Callable[[str, dict[str, str]], None]) -> None:
        host = self.headers.get("Host", "").lower()
        if not self.server.anywhere and not {host, host.rpartition(":")[0]} & self.server.hosts:
            return self._refuse(HTTPStatus.FORBIDDEN, "use the address that was printed, on this machine")
        url = urlsplit(self.path)
        token, _, name = url.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            return self._refuse(HTTPStatus.NOT_FOUND, "not found; use the complete address that was printed")
        try:
            respond(name, dict(parse_qsl(url.query, keep_blank_values=True, max_num_fields=20)))
        except _NotFoundError:
            self._refuse(HTTPStatus.NOT_FOUND, f"{name[:80]!r} is not here")
        except (HkmError, ValueError, TypeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except (ConnectionError, TimeoutError):  # the answer may be half sent, or the request half read
            self.close_connection = True
        except Exception as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    def _get(self, name: str, query: dict[str, str]) -> None:
        kind, _, rest = name.partition("/")
        if name in _FILES:
            file, kind = _FILES[name]
            self._send(_page_file(file), f"{kind}; charset=utf-8")
        elif kind == "api" and rest in _QUESTIONS:
            self._send_json(getattr(self.server.answers, rest)(**_arguments(query)))
        elif kind in ("thumb", "image") and rest.isascii() and rest.isdigit() and len(rest) < 19:
            size = THUMBNAIL if kind == "thumb" else IMAGE
            self._send(self.server.answers.samples.image(int(rest), size), "image/jpeg", "private, max-age=3600")
        else:
            raise _NotFoundError

    def _post(self, name: str, query: dict[str, str]) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True  # otherwise the unread body would be taken for the next request
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"n_bytes should be at most {MAX_BODY}; send less")
        body = self.rfile.read(int(length))
        if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            return self._refuse(HTTPStatus.FORBIDDEN, "only the page itself may send this request")
        answers = self.server.answers
        if name == "api/nearest":
            self._send_json(answers.nearest(read_vector(body), **_arguments(query)))
        elif name.removeprefix("api/") in _CHANGES and name.startswith("api/"):
            arguments = parse_json(body or b"{}")
            if not isinstance(arguments, dict):
                raise InputError("body should be a JSON object; reload the page")
            self._send_json(getattr(answers, name.removeprefix("api/"))(**_arguments(arguments)))
        else:
            raise _NotFoundError

    def _refuse(self, status: HTTPStatus, problem: str) -> None:
        if self.command == "POST" and status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            self.close_connection = True
        self._send_json({"error": problem}, status)

    def _send_json(self, answer: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        data = json.dumps(answer, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")
        self._send(data, "application/json; charset=utf-8", status=status)

    def _send(self, data: bytes, kind: str, caching: str = "no-store", status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Cache-Control": caching}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _NotFoundError(Exception):
    pass


@cache
def _page_file(name: str) -> bytes:
    return resources.files("hkm_dask.browsing").joinpath("page", name).read_bytes()


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Convert the arguments of a request, with numbers where they are expected.

    >>> _arguments({"name": "2:19", "start": "24"})
    {'name': '2:19', 'start': 24}
    """
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        try:
            arguments[name] = _NUMBERS.get(name, str)(value)
        except (ValueError, TypeError, OverflowError):
            raise InputError(f"{name[:40]}={str(value)[:40]!r} should be a number; give another") from None
    return arguments


def read_vector(data: bytes) -> np.ndarray:
    """Read a vector: the bytes of an `.npy` file, or numbers separated by commas or spaces.

    >>> read_vector(b"1, 2.5 3")
    array([1. , 2.5, 3. ])
    """
    if data[:6] == b"\x93NUMPY":
        values = read_npy(BytesIO(data), "the file", len(data)).reshape(-1)
    else:
        try:
            text = data.decode("ascii").translate(str.maketrans(",;[]\n\t", "      "))
            values = np.array([float(number) for number in text.split()])
        except ValueError:
            raise InputError("vector should be an .npy file, or numbers separated by commas; give one") from None
    if not values.size:
        raise InputError("vector should not be empty; give another")
    return values
