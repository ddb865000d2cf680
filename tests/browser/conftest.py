"""One browser, and one server for each frontend."""

from __future__ import annotations

import pytest


# Playwright's event loop would be in the way of other tests, so the browser lives as long as one file's tests.
@pytest.fixture(scope="module")
def chromium():
    from helpers.canvas import FLAGS
    from playwright.sync_api import sync_playwright

    from tools import browser

    program = browser.chromium()
    if program is None:
        pytest.skip("Chromium is missing. Install it, or run `python3 tools/dev.py test` as root on Debian or Ubuntu.")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def newest_server(new_server):
    """The same ComfyUI with the newest frontend."""
    from tools import browser

    frontend = browser.frontend_folder(browser.NEWEST)
    if not frontend.is_dir():
        pytest.skip("The newest frontend is missing. `python3 tools/dev.py test` fetches it.")
    with new_server(frontend=frontend) as running:
        yield running


def pytest_generate_tests(metafunc):
    if "any_canvas" in metafunc.fixturenames:
        from helpers.canvas import FRONTENDS, RENDERERS

        names = [f"{frontend}-{renderer}" for frontend in FRONTENDS for renderer in RENDERERS]
        metafunc.parametrize("any_canvas", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def any_canvas(request, chromium):
    """Each frontend in both renderers."""
    yield from opened(request, chromium, request.param)


@pytest.fixture(scope="module")
def canvas(request, chromium):
    """What most people have: the frontend that ComfyUI asks for, in its default renderer."""
    yield from opened(request, chromium, "pinned-litegraph")


def opened(request, chromium, name: str):
    from helpers.canvas import Canvas

    frontend, renderer = name.split("-")
    server = request.getfixturevalue("server" if frontend == "pinned" else "newest_server")
    page = chromium.new_page(viewport={"width": 1600, "height": 1000})  # and nobody's memory of earlier pages
    canvas = Canvas(page, server, name)
    canvas.start(vue=renderer == "vue")
    yield canvas
    page.close()
    assert not canvas.errors
