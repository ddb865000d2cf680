"""In the browser: workflows open complete, nodes have their widgets, and a run ends with a video."""

from __future__ import annotations

import html
import json
import re
from itertools import combinations, count
from pathlib import Path

import comfyui_version
import pytest
from helpers.signatures import needs, skip_without_nodes

from tools import comfyui, workflow
from tools.server import ROOT
from tools.templates import blueprint
from tools.templates import write as templates
from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.plan.picture import LINE

FILES = sorted((ROOT / "workflows").glob("*.json"))
PLAN_SHOWN_ON = ("UltraGenApply", "UltraGenLoadModel", "UltraGenMultiGPU", "UltraGenPlan")
WIDTHS = count(64, 16)  # of latents that ComfyUI has not cached
OWN_NAME = "run_button"  # other tests may have saved with the template's name on this server

OPENED = """() => {
    const {nodes, links} = app.graph.serialize();
    return {
        nodes: Object.fromEntries(nodes.map(node => [node.id, node.widgets_values ?? []])),
        links: links.map(link => Object.values(link)).sort((a, b) => a[0] - b[0]),
        missing: app.graph._nodes.filter(node => node.has_errors || !LiteGraph.registered_node_types[node.type])
            .map(node => node.type),
    };
}"""
# Title, left, top, right and bottom of every node as it is drawn, in pixels of the graph.
DRAWN = """() => app.graph._nodes.map(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    if (element) {
        const {left, top, right, bottom} = element.getBoundingClientRect(), {scale} = app.canvas.ds;
        return [node.title, ...[left, top, right, bottom].map(edge => edge / scale)];
    }
    const [x, y] = node.pos, [width, height] = node.size;
    return [node.title, x, y - LiteGraph.NODE_TITLE_HEIGHT, x + width, y + Math.max(height, node.computeSize()[1])];
})"""
CROPPED = """() => app.graph._nodes.flatMap(node => node.widgets ?? [])
    .filter(({name, element}) => name.startsWith("ultragen.") && element.scrollHeight > element.clientHeight + 1)
    .map(({name, element}) => [name, element.scrollHeight, element.clientHeight])"""
PLANNED = """count => app.graph._nodes.flatMap(node => node.widgets ?? [])
    .filter(({name, element}) => name === "ultragen.plan" && element.hasChildNodes()).length === count"""
# A graph that runs fast. inside: whether its first node is in a subgraph.
SMALL_GRAPH = """inside => {
    const [latent] = app.graph._nodes, end = LiteGraph.createNode("PreviewAny");
    app.graph.add(end);
    latent.connect(0, end, 0);
    if (inside) app.graph.convertToSubgraph(new Set([latent]));
    return JSON.stringify(app.graph.serialize());
}"""
SAID = """() => app.graph._nodes.flatMap(node => [node, ...(node.subgraph?._nodes ?? [])])
    .find(node => node.type === "UltraGenEmptyLatent")?.widgets
    .find(widget => widget.name === "ultragen.output")?.element.textContent"""
INSIDE = """() => {
    const [inner] = app.graph.subgraphs.values();
    const loader = inner._nodes.find(node => node.type === "UltraGenLoadModel");
    return loader.widgets.find(widget => widget.name === "ultragen.plan").element.querySelector("svg");
}"""
SET = """([kind, name, value]) => {
    const widget = app.graph._nodes.find(node => node.type === kind).widgets.find(widget => widget.name === name);
    widget.value = value;
    widget.callback?.(value);
}"""
# Select the only node and open the panel beside the canvas, or close it.
PANEL = """open => {
    app.canvas.selectItems(app.graph._nodes);
    return app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", open);
}"""
VIDEO = """() => {
    const video = document.querySelector("video");
    return video && !video.error && video.readyState >= 2
        ? {width: video.videoWidth, height: video.videoHeight, seconds: video.duration} : null;
}"""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_workflow_opens_whole_and_queues_what_python_makes_of_it(file: Path, any_canvas):
    content = json.loads(file.read_text())
    types = [node["type"] for node in content["nodes"] if node["type"] != "MarkdownNote"]
    skip_without_nodes(types, any_canvas.server.get("/object_info"))
    any_canvas.open(content)
    plans = sum(node["type"] in PLAN_SHOWN_ON for node in content["nodes"])
    any_canvas.page.wait_for_function(PLANNED, arg=plans)
    any_canvas.shoot(file.stem)
    assert any_canvas.run(CROPPED) == []
    assert overlaps(any_canvas) == []

    object_info = any_canvas.server.get("/object_info")
    for node in content["nodes"]:
        if node["type"] == "UltraGenLoadLatent":  # without a value it takes the newest latent
            node["widgets_values"] = object_info[node["type"]]["input"]["required"]["latent"][1]["options"][:1]
    opened = any_canvas.run(OPENED)
    assert opened["missing"] == []
    assert opened["links"] == sorted(content["links"])
    written = {str(node["id"]): node["widgets_values"] for node in content["nodes"]}
    # ComfyUI's own nodes have more widgets in later versions.
    assert {key: values[: len(written[key])] for key, values in opened["nodes"].items()} == written

    expected = workflow.to_api(file, object_info)
    queued = any_canvas.prompt()
    for key, node in queued.items():
        if not node["class_type"].startswith("UltraGen"):  # more inputs, and the frontend's own "video-preview"
            node["inputs"] = {name: value for name, value in node["inputs"].items() if name in expected[key]["inputs"]}
    assert {key: (node["class_type"], node["inputs"]) for key, node in queued.items()} == {
        key: (node["class_type"], node["inputs"]) for key, node in expected.items()
    }


def overlaps(canvas) -> list[str]:
    return [
        f"{one} overlaps {other}"
        for (one, left, top, right, bottom), (other, x, y, end_x, end_y) in combinations(canvas.run(DRAWN), 2)
        if not (end_x <= left or right <= x or end_y <= top or bottom <= y)
    ]


@pytest.mark.parametrize("name", ["ultragen_t2v_1080p", "ultragen_i2v_1080p"])
def test_templates_have_room_for_the_plan_of_a_measured_gpu(name, any_canvas):
    """One line says whether the run fits it, two say how long it takes. No test computer has one."""
    asked = []

    def answer(route) -> None:
        drawn = route.fetch().json()["picture"]
        height = re.search(r'height="([^"]+)"', drawn)[1]
        asked.append(height)
        route.fulfill(json={"picture": drawn.replace(height, str(float(height) + 3 * LINE), 2)})

    any_canvas.page.route("**/ultragen/plan", answer)
    try:
        any_canvas.open(json.loads((ROOT / "workflows" / f"{name}.json").read_text()))
        any_canvas.page.wait_for_function(PLANNED, arg=1)
        any_canvas.shoot(f"{name}-measured")
        assert asked and any_canvas.run(CROPPED) == [] and overlaps(any_canvas) == []
    finally:
        any_canvas.page.unroute("**/ultragen/plan")


def test_blueprint_is_the_1080p_template_as_one_node(any_canvas):
    offered = any_canvas.server.get("/global_subgraphs").values()
    assert [entry["name"] for entry in offered].count(blueprint.NAME) == 1
    any_canvas.open(json.loads(templates.BLUEPRINT.read_text()))
    any_canvas.shoot("blueprint")
    assert any_canvas.names()[-3:] == ["text", "preset", "noise_seed"]
    template = workflow.to_api(workflow.SHIPPED, any_canvas.server.get("/object_info"))
    assert without_ids(any_canvas.prompt()) == without_ids(template)


def test_loader_inside_the_blueprint_shows_its_plan(any_canvas):
    any_canvas.open(json.loads(templates.BLUEPRINT.read_text()))
    any_canvas.page.wait_for_function(INSIDE)


def without_ids(graph: dict) -> list[tuple]:
    """Types and values of the nodes, with the types of those that they are linked to."""

    def value(given):
        return (graph[given[0]]["class_type"], given[1]) if isinstance(given, list) else given

    return sorted(
        (node["class_type"], sorted((name, str(value(given))) for name, given in node["inputs"].items()))
        for node in graph.values()
    )


def test_every_node_can_be_added_and_has_its_inputs(any_canvas, visited):
    for schema, shown, _ in visited.values():
        names = {name for group in ("required", "optional") for name in schema["input"].get(group, {})}
        assert names and names <= set(shown)


def test_every_node_has_a_help_page(any_canvas, visited):
    for schema, _, text in visited.values():
        assert text.startswith(schema["display_name"]) and "Example" in text


def test_node_shows_its_text_output(any_canvas):
    any_canvas.add("UltraGenEmptyLatent")
    any_canvas.run("() => app.graph._nodes[0].onExecuted({text: ['1920x1088, 81 frames', '(rounded up)']})")
    any_canvas.page.get_by_text("1920x1088, 81 frames (rounded up)").wait_for()
    any_canvas.shoot("output")
    any_canvas.run("() => app.graph._nodes[0].onExecuted({})")
    any_canvas.page.get_by_text("1920x1088, 81 frames").wait_for(state="hidden")


@pytest.mark.parametrize("inside", [False, True])
def test_text_output_is_there_again_when_its_workflow_is(inside, any_canvas):
    """ComfyUI draws the nodes anew when the user comes back from another open workflow."""
    any_canvas.add("UltraGenEmptyLatent")
    width = next(WIDTHS)
    for name, value in {"preset": "custom", "width": width}.items():
        any_canvas.run(SET, ["UltraGenEmptyLatent", name, value])
    any_canvas.open(json.loads(any_canvas.run(SMALL_GRAPH, inside)))
    any_canvas.run("() => app.queuePrompt(0, 1)")
    said = f"width => ({SAID})()?.startsWith(`${{width}}x`)"
    any_canvas.page.wait_for_function(said, arg=width)
    any_canvas.add("UltraGenPlan")
    assert any_canvas.run(SAID) is None
    any_canvas.run("() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    any_canvas.page.wait_for_function(said, arg=width)


@needs(comfyui_version.__version__ != comfyui.OLDEST.version, "a panel for the selected node")
def test_the_panel_lists_the_inputs_of_a_node_alone(any_canvas):
    """Not the picture and the text under them, of which it would show the names and nothing else."""
    any_canvas.add("UltraGenLoadModel")
    any_canvas.run("() => app.graph._nodes[0].onExecuted({text: ['a text']})")
    any_canvas.run(PANEL, True)
    panel = any_canvas.page.get_by_test_id("properties-panel")
    panel.get_by_text("keep_gb").wait_for()
    any_canvas.shoot("panel")
    assert "ultragen." not in panel.inner_text()
    any_canvas.run(PANEL, False)


def test_picture_of_the_plan_follows_the_widgets(any_canvas):
    """On the shipped workflow, the picture is the one that Python draws for the current widgets."""
    any_canvas.open(json.loads(workflow.SHIPPED.read_text()))
    loader = {"checkpoint": "ultragen_1080p.ckpt", "attention_rule": "auto"}
    picture = any_canvas.page.locator("svg", has_text="1920x1088, 81 frames: rule ultragen")
    picture.wait_for()
    assert texts(picture) == texts_of(any_canvas.server, {"node": loader})
    assert picture.evaluate(COLOUR) == any_canvas.page.locator("body").evaluate(COLOUR)
    any_canvas.shoot("plan")

    latent = {"preset": "4K x 81 (3840x2176)"}
    any_canvas.run(SET, ["UltraGenEmptyLatent", "preset", latent["preset"]])
    any_canvas.run(SET, ["UltraGenLoadModel", "attention_rule", "t3"])
    picture = any_canvas.page.locator("svg", has_text="3840x2176, 81 frames: rule t3")
    picture.wait_for()
    assert texts(picture) == texts_of(any_canvas.server, {"node": {**loader, "attention_rule": "t3"}, "latent": latent})
    assert "strided of 1,344 tokens" in picture.locator("title").nth(1).text_content()
    any_canvas.shoot("plan-t3")


COLOUR = "element => getComputedStyle(element).color"
PLAN = """kind => {
    const node = app.graph._nodes.find(node => node.type === kind);
    const {element} = node.widgets.find(widget => widget.name === "ultragen.plan");
    return element.querySelector("text")?.textContent ?? element.textContent;
}"""
MODE = """([kind, mode]) => {
    app.graph._nodes.find(node => node.type === kind).mode = mode;
    app.api.dispatchEvent(new CustomEvent("graphChanged"));
}"""
LINKED = """([value]) => {
    const latent = app.graph._nodes.find(node => node.type === "UltraGenEmptyLatent");
    const source = LiteGraph.createNode(value === null ? "GetImageSize" : "PrimitiveInt");
    app.graph.add(source);
    if (value !== null) source.widgets[0].value = value;
    source.connect(0, latent, latent.inputs.findIndex(input => input.name === "width"));
}"""
REROUTED = """() => {
    const latent = app.graph._nodes.find(node => node.type === "UltraGenEmptyLatent");
    const link = app.graph.getLink(latent.outputs[0].links[0]);
    const target = app.graph.getNodeById(link.target_id), slot = link.target_slot;
    const reroute = LiteGraph.createNode("Reroute");
    app.graph.add(reroute);
    latent.connect(0, reroute, 0);
    reroute.connect(0, target, slot);
}"""
ODD = """() => {
    const odd = LiteGraph.createNode("Note");
    app.graph.add(odd);
    const widgets = [{type: "divider"}, {name: "a", get value() { return 1; }}];
    Object.defineProperty(odd, "widgets", {get: () => widgets});
}"""


def plan_says(canvas, kind: str, text: str) -> None:
    """Wait until the picture on this node, or the message instead of it, starts with `text`."""
    canvas.page.wait_for_function(f"([kind, text]) => ({PLAN})(kind).startsWith(text)", arg=[kind, text])


def test_plan_of_two_passes_is_that_of_the_second_for_its_loader(canvas):
    canvas.open(json.loads((ROOT / "workflows" / "ultragen_two_pass_1080p.json").read_text()))
    plan_says(canvas, "UltraGenLoadModel", "1920x1088, 81 frames: rule ultragen")


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
def test_plan_shows_the_rectangles_of_several_gpus(any_canvas):
    """On UltraGen MultiGPU, by its widgets; the loader before it shows one GPU."""
    any_canvas.open(json.loads((ROOT / "workflows" / "ultragen_multigpu_1080p.json").read_text()))
    any_canvas.page.locator("svg", has_text="UltraGen MultiGPU finds 1 GPU on").wait_for()
    any_canvas.run(SET, ["UltraGenMultiGPU", "gpus", 4])
    picture = any_canvas.page.locator("svg", has_text="1 prompt (CFG 1): 4 GPUs share a prompt")
    picture.wait_for()
    asked = {"node": {"checkpoint": "ultragen_1080p.ckpt", "attention_rule": "auto"}}
    expected = texts_of(any_canvas.server, {**asked, "multigpu": {"gpus": 4, "split": "auto"}})
    assert texts(picture) == expected and picture.locator("rect[fill-opacity]").count() == 4 + 2
    any_canvas.shoot("plan-gpus")
    any_canvas.run(SET, ["UltraGenMultiGPU", "split", "prompts"])
    any_canvas.page.locator("svg", has_text="each GPU computes whole prompts").wait_for()
    plan_says(any_canvas, "UltraGenLoadModel", "1920x1088, 81 frames: rule ultragen")


def test_plan_shows_what_would_run(canvas):
    """Reroutes and bypassed nodes are followed, linked values are used, and unknown values are named."""
    canvas.open(json.loads(workflow.SHIPPED.read_text()))
    plan_says(canvas, "UltraGenLoadModel", "1920x1088, 81 frames: rule ultragen")
    canvas.run(ODD)
    canvas.run(REROUTED)
    canvas.run(SET, ["UltraGenEmptyLatent", "preset", "custom"])
    canvas.run(LINKED, [640])
    plan_says(canvas, "UltraGenLoadModel", "640x1088, 81 frames")
    canvas.run(MODE, ["UltraGenModelSampling", 4])
    canvas.run(SET, ["UltraGenEmptyLatent", "height", 384])
    plan_says(canvas, "UltraGenLoadModel", "640x384, 81 frames")
    canvas.run(LINKED, [None])
    plan_says(
        canvas, "UltraGenLoadModel", "UltraGen Empty Latent: width is linked and is known only when the graph runs"
    )
    canvas.run(MODE, ["UltraGenLoadModel", 2])
    canvas.page.wait_for_function(f"kind => ({PLAN})(kind) === ''", arg="UltraGenLoadModel")


def test_plan_is_asked_for_again_after_no_answer(canvas):
    canvas.page.route("**/ultragen/plan", lambda route: route.abort())
    canvas.open(json.loads(workflow.SHIPPED.read_text()))
    plan_says(canvas, "UltraGenLoadModel", "ComfyUI did not answer")
    canvas.page.unroute("**/ultragen/plan")
    plan_says(canvas, "UltraGenLoadModel", "1920x1088, 81 frames: rule ultragen")


def texts(picture) -> list[str]:
    return picture.first.locator("text").all_text_contents()


def texts_of(server, asked: dict) -> list[str]:
    return [
        html.unescape(text)
        for text in re.findall(r"<text[^>]*>(.*?)</text>", server.post("/ultragen/plan", asked)["picture"])
    ]


def test_chinese_nodes_and_help(canvas):
    from helpers.canvas import TRANSLATES_NODES

    with canvas.in_language("zh") as chinese:
        chinese.add("UltraGenSaveVideo")
        title = chinese.run("() => app.graph._nodes[0].title")
        assert title == ("UltraGen 保存视频" if TRANSLATES_NODES else "UltraGen Save Video")
        text = chinese.help()
        assert text.startswith("UltraGen 保存视频") and "示例" in text
        chinese.shoot("zh")
    assert not chinese.errors


def test_run_shows_progress_and_ends_with_a_playable_video(canvas):
    canvas.open(toy_workflow())
    canvas.page.get_by_test_id("queue-button").click()

    canvas.page.get_by_text("decoding: ").wait_for()
    canvas.shoot("decoding")
    video = canvas.page.wait_for_function(VIDEO).json_value()
    canvas.page.get_by_text(re.compile("256x160, 9 frames(?!: rule)")).wait_for()
    canvas.page.get_by_text(f"{OWN_NAME}_00001_.mp4").first.wait_for()
    canvas.shoot("video")
    assert (video["width"], video["height"]) == (256, 160)
    assert video["seconds"] == pytest.approx(9 / 15, abs=0.01)


def toy_workflow() -> dict:
    """The shipped workflow in a small size, with the demo's text node."""
    content = json.loads(workflow.SHIPPED.read_text().replace('"video/ultragen"', f'"video/{OWN_NAME}"'))
    nodes = {node["type"]: node for node in content["nodes"]}
    nodes["UltraGenEmptyLatent"]["widgets_values"][:4] = ["custom", 256, 160, 9]
    nodes["UltraGenModelSampling"]["widgets_values"][1] = 2
    content["nodes"].remove(nodes["CLIPLoader"])
    for node in content["nodes"]:
        if node["type"] == "CLIPTextEncode":
            node["type"] = "UltraGenDemoText"
            cut = node["inputs"].pop()["link"]
            content["links"] = [link for link in content["links"] if link[0] != cut]
    return content
