"""ComfyUI's page in a browser, driven by tests."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfyui_version
from playwright.sync_api import Page

from tools import comfyui
from tools.server import Server

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 120  # for a page or a click, on machines that are busy with other tests
VERSION = comfyui_version.__version__
# pinned: the frontend that this ComfyUI asks for. The oldest lacks what the newest frontend asks for.
# Frontend and renderer. The oldest frontend is tested on LiteGraph's canvas and the newest with Vue's nodes, which are
# their defaults; the pinned frontend of the newest ComfyUI with both.
PAGES = ["pinned-litegraph"] if VERSION == comfyui.OLDEST.version else ["pinned-litegraph", "pinned-vue", "newest-vue"]
# The oldest frontend drops custom nodes' translations when it loads a language (Comfy-Org/ComfyUI_frontend#7214).
TRANSLATES_NODES = VERSION != comfyui.OLDEST.version

# When loading is finished, the page opens a workflow.
_READY = "() => !!window.app?.extensionManager?.workflow?.activeWorkflow && !app.extensionManager.workflow.isBusy"
# A new graph is drawn within a few frames.
_DRAWN = "() => new Promise(done => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 300))"
# Loaded between nodes: after graph.clear() the Vue renderer would draw a node where the last one of its id was.
_EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4}
# Right of the sidebar with help pages, which covers the canvas and takes clicks.
_ADD = """kind => {
    const node = LiteGraph.createNode(kind);
    node.pos = [700, 250];
    app.graph.add(node);
    app.canvas.ds.reset();
}"""
_TITLE = """() => {
    const [node] = app.graph._nodes, {offset, scale} = app.canvas.ds;
    const {x, y} = app.canvas.canvas.getBoundingClientRect();
    return [x + (node.pos[0] + 60 + offset[0]) * scale, y + (node.pos[1] - 15 + offset[1]) * scale];
}"""
# Names of the inputs and widgets of the only node.
_NAMES = """() => {
    const [node] = app.graph._nodes;
    return [...node.inputs.map(slot => slot.name), ...(node.widgets ?? []).map(widget => widget.name)];
}"""
_DROP = """([name, type, content]) => {
    const dataTransfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    dataTransfer.items.add(new File([bytes], name, {type}));
    const where = {dataTransfer, bubbles: true, cancelable: true, clientX: 900, clientY: 500};
    app.canvas.canvas.dispatchEvent(new DragEvent("drop", where));
}"""


class Canvas:
    """The page of one frontend in one renderer. `errors`: what the pack's own files raised or logged."""

    def __init__(self, page: Page, server: Server, name: str):
        self.page, self.server, self.name = page, server, name
        self.errors: list[str] = []
        page.set_default_timeout(SECONDS * 1000)
        page.on("pageerror", lambda error: self._note(error.stack or error.message))
        page.on("console", lambda line: line.type == "error" and self._note(f"{line.location} {line.text}"))

    def _note(self, error: str) -> None:
        if "/extensions/ultragen" in error:
            self.errors.append(error)

    def start(self, vue: bool, language: str = "en") -> None:
        # Without the first, a new user is shown the templates.
        settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue, "Comfy.Locale": language}
        self.server.post("/settings", settings)
        self.page.goto(self.server.url)
        self.page.wait_for_function(_READY)

    @contextmanager
    def in_language(self, language: str) -> Iterator[Canvas]:
        """Open a second page in another language, on LiteGraph's canvas. It costs half of reloading this one twice."""
        page = self.page.context.new_page()
        try:
            other = Canvas(page, self.server, self.name)
            other.start(vue=False, language=language)
            yield other
        finally:
            page.close()
            self.server.post("/settings", {"Comfy.Locale": "en"})

    def run(self, script: str, argument=None):
        return self.page.evaluate(script, argument)

    def open(self, workflow: dict) -> None:
        """Open a workflow as if its file had been dropped on the page."""
        self.run("workflow => app.loadGraphData(workflow)", workflow)
        self.run(_DRAWN)

    def drop(self, file: Path, kind: str) -> None:
        """Drop a file on the graph. kind: its media type."""
        self.run(_DROP, [file.name, kind, base64.b64encode(file.read_bytes()).decode()])

    def prompt(self) -> dict:
        """Return what Run would queue, in API format."""
        return self.run("async () => (await app.graphToPrompt()).output")

    def add(self, kind: str) -> None:
        """Add a node of this type to an empty canvas."""
        self.open(_EMPTY)
        self.run(_ADD, kind)
        self.run(_DRAWN)

    def names(self) -> list[str]:
        """Return the names of the only node's inputs and widgets."""
        return self.run(_NAMES)

    def help(self) -> str:
        """Open the help page of the only node as a user does, by its title and (i), and return its text."""
        self.page.mouse.click(*self.run(_TITLE))
        self.page.get_by_test_id("info-button").click()
        page = self.page.locator(".node-help-content")
        page.locator("h1").wait_for()
        return page.inner_text()

    def shoot(self, what: str) -> None:
        """Save a screenshot if ULTRAGEN_SCREENSHOTS names a folder."""
        if folder := os.environ.get("ULTRAGEN_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{VERSION}-{self.name}-{what}.png")


def ultragen_nodes(server: Server) -> dict[str, dict]:
    """Return {type: schema} of the pack's nodes."""
    nodes = {kind: schema for kind, schema in server.get("/object_info").items() if schema["category"] == "UltraGen"}
    assert nodes
    return nodes


def visit_nodes(canvas: Canvas) -> dict[str, tuple[dict, list[str], str]]:
    """Add each node of the pack and open its help page. Returns {type: (schema, names on the node, help text)}."""
    found = {}
    for kind, schema in ultragen_nodes(canvas.server).items():
        canvas.add(kind)
        canvas.shoot(kind)
        names = canvas.names()
        found[kind] = schema, names, canvas.help()
        canvas.shoot(f"{kind}-help")
    return found
