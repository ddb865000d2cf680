"""Files and file names in the browser: an .mkv that opens its workflow, a prefix that is filled in."""

from __future__ import annotations

import base64
import datetime
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tools import workflow
from tools.server import ROOT
from ultragen_core.video.codecs import CODECS
from ultragen_core.video.encoder import VideoWriter

MKV = "video/x-matroska"
KINDS = "() => app.graph._nodes.map(node => node.type).sort()"
PREFIX = """prefix => {
    const node = app.graph._nodes.find(node => node.type === "UltraGenSaveVideo");
    node.widgets.find(widget => widget.name === "filename_prefix").value = prefix;
}"""
SET = """([name, value]) => {
    app.graph._nodes[0].widgets.find(widget => widget.name === name).value = value;
}"""
REFUSED = """async () => {
    await app.queuePrompt(0, 1);
    const [{errors}] = Object.values(app.lastNodeErrors);
    return errors.map(({type, extra_info, details}) => [type, extra_info.input_name, details]);
}"""
ODD = """async () => {
    const [node] = app.graph._nodes;
    node.widgets.unshift({});
    node.onExecuted({text: "one text"});
    node.onExecuted({text: null});
    node.onExecuted(null);
    node.widgets.shift();
    node.size = [10, 10];
    node.onExecuted({text: ["a long line ".repeat(99)]});
    const {getMinHeight} = node.widgets.find(widget => widget.name === "ultragen.output").options;
    app.graph.remove(node);
    node.onExecuted({text: ["removed"]});
    return getMinHeight();
}"""
TAGS_BEHIND_FRAMES = """async content => {
    const {readTags} = await import("/extensions/ultragen/matroska.js");
    const file = new Blob([Uint8Array.from(atob(content), letter => letter.charCodeAt(0))]);
    let read = 0;
    const slice = file.slice.bind(file);
    file.slice = (start, end) => (read += end - start, slice(start, end));
    return [await readTags(file, ["workflow"]), read];
}"""


@pytest.fixture
def mkv(tmp_path):
    def write(**texts: dict) -> Path:
        path = tmp_path / "lake.mkv"
        texts = {name: json.dumps(text) for name, text in texts.items()}
        with VideoWriter(path, CODECS["FFV1 lossless RGB"], (64, 64), Fraction(15), 20, 1, metadata=texts) as writer:
            writer.write(np.zeros((64, 64, 3), np.uint8))
            writer.finish(lambda: None)
        return path

    return write


def wait_for_nodes(canvas, kinds) -> None:
    script = f"kinds => JSON.stringify(({KINDS})()) === JSON.stringify(kinds)"
    canvas.page.wait_for_function(script, arg=sorted(kinds))


def test_an_mkv_dropped_on_the_graph_opens_its_workflow(any_canvas, mkv):
    content = json.loads(workflow.SHIPPED.read_text())
    any_canvas.add("UltraGenEmptyLatent")
    any_canvas.drop(mkv(workflow=content, prompt={"1": {"class_type": "UltraGenPlan", "inputs": {}}}), MKV)
    wait_for_nodes(any_canvas, [node["type"] for node in content["nodes"]])
    any_canvas.shoot("mkv")


def test_an_mkv_of_a_prompt_alone_opens_the_prompt(canvas, mkv):
    canvas.add("UltraGenEmptyLatent")
    canvas.drop(mkv(prompt={"1": {"class_type": "UltraGenModelSampling", "inputs": {"steps": 7}}}), "")
    wait_for_nodes(canvas, ["UltraGenModelSampling"])


def test_an_mkv_chosen_in_the_menu_opens_too(canvas, mkv):
    canvas.add("UltraGenEmptyLatent")
    chooser = canvas.page.locator("#comfy-file-input")
    assert ".mkv" in chooser.get_attribute("accept").split(",")
    chooser.set_input_files(mkv(workflow=json.loads((ROOT / "workflows/ultragen_decode_only.json").read_text())))
    canvas.page.wait_for_function(f"() => ({KINDS})().includes('UltraGenLoadLatent')")


def test_other_files_go_the_way_they_went(canvas, mkv, tmp_path):
    canvas.run("() => { app.ultragenSeen = []; app.showErrorOnFileLoad = file => app.ultragenSeen.push(file.name); }")
    text, plain = tmp_path / "notes.txt", mkv()
    text.write_text("notes")
    canvas.add("UltraGenEmptyLatent")
    canvas.drop(text, "text/plain")
    canvas.drop(plain, "")
    canvas.page.wait_for_function("() => app.ultragenSeen.length === 2")
    assert sorted(canvas.run("() => app.ultragenSeen")) == ["lake.mkv", "notes.txt"]
    assert canvas.run(KINDS) == ["UltraGenEmptyLatent"]
    small = tmp_path / "small.json"
    small.write_text(json.dumps(json.loads((ROOT / "workflows/ultragen_decode_only.json").read_text())))
    canvas.drop(small, "application/json")
    canvas.page.wait_for_function(f"() => ({KINDS})().includes('UltraGenLoadLatent')")


def element(identity: str, content: bytes, unknown: bool = False) -> bytes:
    size = b"\x01" + b"\xff" * 7 if unknown else (len(content) | 1 << 56).to_bytes(8, "big")
    return bytes.fromhex(identity) + size + content


def test_tags_behind_the_frames_are_found_without_reading_those(canvas):
    """Matroska as other programs write it, with a segment of unknown size, as in a recording."""
    tag = element("67c8", element("45a3", b"WORKFLOW") + element("4487", b"{}"))
    frames = [element("1f43b675", bytes(100_000)) for _ in range(3)]
    inside = b"".join(frames) + element("1254c367", element("7373", tag))
    content = element("1a45dfa3", b"") + element("18538067", inside, unknown=True)
    found, read = canvas.run(TAGS_BEHIND_FRAMES, base64.b64encode(content).decode())
    assert found == {"workflow": "{}"}
    assert read < 1000


def test_prefix_is_filled_in_as_for_comfyuis_own_nodes(any_canvas):
    any_canvas.open(json.loads((ROOT / "workflows/ultragen_decode_only.json").read_text()))
    any_canvas.run(PREFIX, "%date:yyyy-MM%/%UltraGenSaveVideo.crf%/%no%/%width%")
    month = datetime.date.today().strftime("%Y-%m")
    queued = [node for node in any_canvas.prompt().values() if node["class_type"] == "UltraGenSaveVideo"]
    assert queued[0]["inputs"]["filename_prefix"] == f"{month}/17/%no%/%width%"
    saved = any_canvas.run("() => JSON.stringify(app.graph.serialize())")
    assert "%date:yyyy-MM%" in saved


def test_odd_messages_widgets_and_removed_nodes_raise_nothing(canvas):
    canvas.add("UltraGenEmptyLatent")
    height = canvas.run(ODD)
    assert 0 < height < 200


@pytest.mark.parametrize(
    ("widget", "value", "answer"),
    [("filename_prefix", "../codec tile fps", "inside the output folder"), ("tile", 16, "at least 64 pixels, got 16")],
)
def test_what_a_node_refuses_is_shown_at_the_input_that_it_names(any_canvas, widget, value, answer):
    any_canvas.add("UltraGenSaveVideo")
    any_canvas.run(SET, [widget, value])
    errors = any_canvas.run(REFUSED)
    any_canvas.shoot(f"refused-{widget}")
    any_canvas.page.keyboard.press("Escape")  # the oldest frontend's dialog, which would cover the page for other tests
    any_canvas.page.locator(".p-dialog").wait_for(state="detached")
    (refused,) = (error for error in errors if error[0] == "custom_validation_failed")
    assert sorted(name for kind, name, _ in errors if kind == "required_input_missing") == ["samples", "vae"]
    assert refused[1] == widget and answer in refused[2]
    any_canvas.errors.clear()  # the page logs what the queue refuses
