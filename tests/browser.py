"""A browser without a window and without a network, for tests of pages. Fixtures: `chromium`, `open_page`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
_ARGUMENTS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
"""WebGL on the processor."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium as the system has it; it does not sandbox root's processes."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: make chromium, or install one by hand")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file as a page; at the end of the test fails if a page has warned, erred, or asked for more than itself.

    A script may run `before` it. Other arguments are those of playwright's `new_context`. Nothing moves by itself
    (`reduced_motion`).
    """
    contexts, complaints = [], []

    def opened(path: Path, before: str = "", **options) -> Page:
        context = chromium.new_context(offline=True, **{"viewport": DESKTOP, "reduced_motion": "reduce"} | options)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(before)
        page.on("console", lambda message: complaints.append(message.text) if message.type in _BAD else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(_HERE) else complaints.append(asked.url))
        page.goto(path.resolve().as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


_BAD, _HERE = ("error", "warning"), ("file:", "data:", "blob:")
