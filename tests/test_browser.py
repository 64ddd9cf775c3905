"""The browser for tests of pages: it reports errors, and stays on this machine."""

from collections.abc import Callable
from typing import Any

PAGE = "data:text/html,<title>t</title><script>{}</script>"


def test_a_page_that_is_well_opens_in_silence(open_page: Callable[..., Any]) -> None:
    page = open_page(
        PAGE.format("document.title = matchMedia('(prefers-color-scheme: dark)').matches"), color_scheme="dark"
    )
    assert (page.title(), open_page.problems) == ("true", [])  # type: ignore[attr-defined]


def test_what_goes_wrong_in_a_page_is_reported(open_page: Any) -> None:
    page = open_page(
        PAGE.format("console.error('first'); setTimeout(() => { window.done = 1; throw Error('second') })")
    )
    page.wait_for_function("window.done")
    page.wait_for_timeout(50)
    assert sorted(open_page.problems) == ["first", "second"]
    open_page.problems.clear()


def test_nothing_beyond_this_machine_is_asked_for(open_page: Any) -> None:
    page = open_page(PAGE.format("fetch('http://example.org/a').catch(() => { window.done = 1 })"))
    page.wait_for_function("window.done")
    assert "asked for http://example.org/a" in open_page.problems
    open_page.problems.clear()
