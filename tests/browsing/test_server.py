"""The server answers only its own page, on this machine."""

import http.client
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from hkm_dask.browsing import server
from hkm_dask.browsing.browse import Browser
from hkm_dask.errors import InputError
from hkm_dask.events import Event, subscribe


def request(
    browser: Browser, name: str, *, method: str = "GET", body: bytes | None = None, token: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Ask for a path below the token; headers by their names with _ for -."""
    url = urlsplit(browser.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    connection.request(method, f"/{token}/{name}" if token else url.path + name, body, given)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def origin(browser: Browser) -> str:
    return "http://" + urlsplit(browser.url).netloc


def test_the_page_and_its_parts_come_with_strict_headers(browser: Browser) -> None:
    assert urlsplit(browser.url).hostname == "127.0.0.1"
    for name, kind in [("", "text/html"), ("browse.js", "text/javascript"), ("browse.css", "text/css")]:
        status, headers, content = request(browser, name)
        assert (status, headers["Content-Type"].split(";")[0]) == (200, kind)
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
        assert b"http://" not in content.replace(b"http://www.w3.org", b"")
        assert b"https://" not in content
        assert b"innerHTML" not in content
        assert b"style=" not in content
    assert b"onclick" not in request(browser, "")[2]


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org:80", "127.0.0.1@example.org", ""])
def test_another_host_is_refused(browser: Browser, host: str) -> None:
    assert request(browser, "api/tree", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1:1", "localhost"])
def test_a_forwarded_port_is_let_in(browser: Browser, host: str) -> None:
    assert request(browser, "api/tree", Host=host)[0] == 200


def test_without_the_token_there_is_nothing(browser: Browser) -> None:
    token = urlsplit(browser.url).path.strip("/")
    assert len(token) >= 32
    for wrong in ("x", token[:-1], token + "x", "%00"):
        status, _, content = request(browser, "api/tree", token=wrong)
        assert (status, b"n_samples" in content) == (404, False)
        assert token.encode() not in content


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://example.org"}, {"Origin": "null"}])
def test_only_the_page_changes_marks(browser: Browser, headers: dict[str, str]) -> None:
    body = b'{"cluster": "2:3", "weight": 0}'
    assert request(browser, "api/mark", method="POST", body=body, **headers)[0] == 403
    assert json.loads(request(browser, "api/tree")[2])["marks"]["n"] == 0
    status, _, content = request(browser, "api/mark", method="POST", body=body, Origin=origin(browser))
    assert (status, json.loads(content)["n"]) == (200, 1)
    assert request(browser, "api/undo", method="POST", body=b"", Origin=origin(browser))[0] == 200
    assert request(browser, "api/mark?cluster=2:3&weight=1")[0] == 404


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("api/cluster?name=9:9", 400), ("api/cluster?name=2%0a", 400), ("api/children?start=x", 400),
        ("api/children?colour=red", 400), ("api/draw?size=1", 404), ("api/__init__", 404), ("../../etc/passwd", 404),
        ("page/index.html", 404), ("thumb/x", 404), ("thumb/3", 400), ("thumb/99999999999999999999", 404),
        ("api/nearest_to_row?row=1e9", 400), ("api/nearest_to_row?row=99999", 400),
        ("api/search?what=row&query=x", 400),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_in_a_line(browser: Browser, name: str, status: int) -> None:
    found, _, content = request(browser, name)
    assert (found, list(json.loads(content))) == (status, ["error"])
    assert b"Traceback" not in content


@pytest.mark.parametrize("body", [b"[", b"[1]", b'{"cluster": "2:3", "weight": "x"}', b'{"cluster": 3}', b'{"a": {}}'])
def test_what_a_page_would_not_send_is_refused(browser: Browser, body: bytes) -> None:
    assert request(browser, "api/mark", method="POST", body=body, Origin=origin(browser))[0] == 400
    assert json.loads(request(browser, "api/tree")[2])["marks"]["n"] == 0


def test_too_much_is_refused_before_it_is_read(browser: Browser) -> None:
    length = {"Content_Length": str(2**40)}
    assert request(browser, "api/nearest", method="POST", Origin=origin(browser), **length)[0] == 413


def test_a_question_that_stays_half_is_not_answered(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the other half, which comes late, would be taken for the next question."""
    monkeypatch.setattr(server._Handler, "timeout", 0.2)
    url = urlsplit(browser.url)
    head = f"POST {url.path}api/nearest HTTP/1.1\r\nHost: {url.netloc}\r\nOrigin: {origin(browser)}\r\n"
    with socket.create_connection((url.hostname, url.port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: 99\r\n\r\n0.1, ".encode())
        assert connection.recv(1000) == b""


def test_a_vector_comes_as_numbers_or_as_a_file(browser: Browser, tree: Any, tmp_path: Any) -> None:
    expected = [f"2:{n}" for n in tree.hkm.nearest([0.1, -0.2, 0.3], 2, 3)["cluster"]]
    np.save(tmp_path / "v.npy", np.float64([[0.1, -0.2, 0.3]]))
    for body in (b"0.1, -0.2 0.3", b"[0.1,-0.2,0.3]", (tmp_path / "v.npy").read_bytes()):
        content = request(browser, "api/nearest?level=2&n=3", method="POST", body=body, Origin=origin(browser))[2]
        assert [child["cluster"] for child in json.loads(content)["children"]] == expected
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    for wrong in (b"", b"a b", b"\xff", b"nan nan nan", b"1 2", b"\x93NUMPY", (tmp_path / "pickled.npy").read_bytes()):
        assert request(browser, "api/nearest", method="POST", body=wrong, Origin=origin(browser))[0] == 400


def test_a_port_that_is_taken_is_told(browser: Browser) -> None:
    port = urlsplit(browser.url).port
    assert port is not None
    with pytest.raises(InputError, match=f"port={port} should be free and allowed; leave --port out"):
        Browser(browser.answers, "127.0.0.1", port)
    with pytest.raises(InputError, match=r"host=192\.0\.2\.1 should be an address of this machine"):
        Browser(browser.answers, "192.0.2.1", 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "0"])
def test_other_machines_are_let_in_when_asked_for_and_it_is_said(answers: Any, host: str) -> None:
    seen: list[Event] = []
    with subscribe(seen.append), Browser(answers, host, 0) as anywhere:
        assert urlsplit(anywhere.url).hostname == socket.gethostname().lower()
    (warning,) = (event.fields["message"] for event in seen if event.kind == "warning")
    assert warning.startswith("other machines can reach this page")


def test_an_empty_host_is_not_every_address(answers: Any) -> None:
    with pytest.raises(InputError, match="host='' should be an address of this machine; leave --host out"):
        Browser(answers, "", 0)


@pytest.mark.parametrize("host", ["127.0.0.2", "LocalHost"])
def test_another_way_to_name_this_machine_lets_nobody_else_in(answers: Any, host: str) -> None:
    with Browser(answers, host, 0) as browser:
        assert urlsplit(browser.url).hostname == host.lower()
        assert request(browser, "api/tree", Host=f"{host}:80")[0] == 200
        assert request(browser, "api/tree", Host="example.org")[0] == 403


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_loopback_of_ipv6_is_this_machine(answers: Any, host: str) -> None:
    with Browser(answers, host, 0) as browser:
        assert browser.url.startswith("http://[::1]:")
        assert request(browser, "api/tree")[0] == 200
        assert request(browser, "api/tree", Host="example.org")[0] == 403
