"""A real Chromium that cannot reach the network, for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def complaints(page) -> list[str]:
    """From now on, what a page complains of: console errors and warnings, uncaught exceptions, failed requests."""
    heard = []
    page.on("console", lambda said: heard.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("requestfailed", lambda request: heard.append(f"{request.url[:200]}: {request.failure}"))
    return heard


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    """Playwright's handle of a headless Chromium; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("there is no chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()
