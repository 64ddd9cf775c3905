"""A real browser for tests of web pages: headless Chromium with playwright, restricted to loopback and files.

Tests use the fixture `open_page`. Each page is closed after the test, which fails if a page logged an error to the
console, threw one, or sent a request beyond this machine::

    def test_title(open_page):
        page = open_page("http://127.0.0.1:8000/", color_scheme="dark")
        assert page.title() == "..."

While the browser is open, an event loop runs in the main thread, so nothing there can call `asyncio.run`: servers of
pages, and commands that start workers, need a separate thread or process.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]  # fmt: skip
_NEAR = re.compile(r"(https?://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?/|file:|data:|blob:|about:)")


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Start Chromium with a new profile; skip the test if it or playwright is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright; pip install -e '.[test]'")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium; apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


class Pages:
    """Opens pages and collects their errors in `problems`; a test that expects errors clears the list."""

    def __init__(self, browser: "Browser") -> None:
        self.problems: list[str] = []
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def __call__(self, url: str, **options: Any) -> "Page":
        """Open a page in a new window; the options are those of playwright's ``Browser.new_context``."""
        context = self._browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        self._contexts.append(context)
        context.set_default_timeout(15_000)
        context.route("**/*", self._let_through)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto(url)
        return page

    def _let_through(self, route: "Route") -> None:
        if _NEAR.match(route.request.url):
            route.continue_()
        else:
            self.problems.append(f"asked for {route.request.url}")
            route.abort()

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def open_page(chromium: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Return a function that opens a page; afterwards, checks that no page had errors."""
    pages = Pages(chromium)
    yield pages
    pages.close()
    assert pages.problems == []
