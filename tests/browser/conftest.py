"""One browser and one page for each frontend and renderer: loading ComfyUI's page takes ten seconds of a CPU."""

from __future__ import annotations

import os

import pytest


# Playwright's event loop would disturb other tests, so the browser is closed after this folder's tests.
@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def newest_server(new_server):
    """The same ComfyUI with the newest frontend."""
    from tools import browser

    frontend = browser.frontend_folder(browser.NEWEST)
    if not frontend.is_dir():
        pytest.skip("The newest frontend is missing. `python3 tools/dev.py test` fetches it.")
    with new_server(frontend=frontend) as running:
        yield running


@pytest.fixture(scope="package")
def loaded_page(request, chromium):
    """The page of a frontend in a renderer. Tests are sorted by it, so that each is loaded once."""
    from helpers.canvas import Canvas

    frontend, renderer = request.param.split("-")
    server = request.getfixturevalue("server" if frontend == "pinned" else "newest_server")
    # Half of the pixels a side cost less to draw, and are enough where nobody looks at screenshots.
    scale = 1 if os.environ.get("ULTRAGEN_SCREENSHOTS") else 0.5
    profile = chromium.new_context(viewport={"width": 1600, "height": 1000}, device_scale_factor=scale)
    canvas = Canvas(profile.new_page(), server, request.param)
    canvas.start(vue=renderer == "vue")
    yield canvas
    profile.close()


@pytest.fixture(scope="package")
def visited(loaded_page):
    """Every node of the pack, with its help page: {type: (schema, names on the node, help text)}."""
    from helpers.canvas import visit_nodes

    return visit_nodes(loaded_page)


def pytest_generate_tests(metafunc):
    if "loaded_page" in metafunc.fixturenames:
        from helpers.canvas import PAGES

        names = PAGES if "any_canvas" in metafunc.fixturenames else PAGES[:1]
        metafunc.parametrize("loaded_page", names, indirect=True, scope="package")


@pytest.fixture
def any_canvas(loaded_page):
    """Every page of PAGES."""
    yield loaded_page
    assert not loaded_page.errors


@pytest.fixture
def canvas(loaded_page):
    """What most people have: the frontend that ComfyUI asks for, in its default renderer."""
    yield loaded_page
    assert not loaded_page.errors
