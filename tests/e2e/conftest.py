"""Chromium, and a page that must behave: at its end, nothing it did may have gone astray."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.server.conftest import Running, running

Visit = Callable[..., Page]


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as one:
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, closed before another file's tests.

    Until then Playwright's event loop runs in this thread, and no other can.
    """
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or playwright.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("there is no Chromium here: install Debian's `chromium`")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens the page of a server; afterwards checks that it asked no other and broke no rule.

    `refused` is what the test wants to happen to requests: a browser logs each as an error.
    """
    opened = []

    def visit(url: str, refused: str = "nothing", **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "console",
            lambda message: (
                said.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        opened.append((page, url, asked, said, refused))
        page.goto(url)
        return page

    yield visit
    for page, url, asked, said, refused in opened:
        page.context.close()
        origin = "/".join(url.split("/")[:3]) + "/"
        allowed = (origin, f"blob:{origin}", "data:")
        assert [address for address in asked if not address.startswith(allowed)] == []
        expected = f"Failed to load resource: {refused}"
        assert [text for text in said if not text.startswith(expected)] == []
