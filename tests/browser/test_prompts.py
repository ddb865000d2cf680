"""UltraGen Prompts on the canvas: the button that queues a run for each prompt."""

from __future__ import annotations

import pytest
from helpers.waiting import wait_until

BUTTON = "() => app.graph._nodes[0].widgets.find(widget => widget.type === 'button').callback()"
SHOW = """text => {
    const [node] = app.graph._nodes;
    const shown = LiteGraph.createNode("PreviewAny");
    app.graph.add(shown);
    node.connect(0, shown, 0);
    node.widgets.find(widget => widget.name === "text").value = text;
}"""
# Presses the button, and opens another workflow once two prompts are queued. Returns how many were.
LEAVE = """async () => {
    const {queuePrompt} = app.api;
    const other = app.graph.serialize();
    let count = 0;
    app.api.queuePrompt = async function (...asked) {
        const answer = await queuePrompt.apply(this, asked);
        if (++count === 2) await app.loadGraphData(other);
        return answer;
    };
    try {
        const graphs = [app.graph, ...app.graph.subgraphs.values()];
        const node = graphs.flatMap(graph => graph._nodes).find(node => node.type === "UltraGenPrompts");
        await node.widgets.find(widget => widget.type === "button").callback();
    } finally {
        app.api.queuePrompt = queuePrompt;
    }
    return count;
}"""
IN_SUBGRAPH = "() => { app.graph.convertToSubgraph(new Set(app.graph._nodes)); }"
INDEX = """() => {
    const index = app.graph._nodes[0].widgets.find(widget => widget.name === "index");
    return [index.value, index.linkedWidgets[0].value];
}"""


def shown(server) -> list[str]:
    """Return the texts that the node showed in the runs of this server, in order."""
    runs = sorted(server.get("/history").values(), key=lambda run: run["prompt"][0])
    return [text for run in runs for output in run["outputs"].values() for text in output["text"]]


def test_button_queues_a_run_for_each_prompt(any_canvas):
    server, page = any_canvas.server, any_canvas.page
    server.post("/history", {"clear": True})
    any_canvas.add("UltraGenPrompts")
    assert any_canvas.run(INDEX) == [-1, "fixed"]
    text = f"# {any_canvas.name}\none {any_canvas.name}\ntwo\nthree"
    any_canvas.run(SHOW, text)
    any_canvas.run(BUTTON)
    wait_until(lambda: len(server.get("/history")) >= 3)
    any_canvas.shoot("prompts")
    assert [line for line in shown(server) if not line.startswith(("3 prompts", "Now"))] == text.splitlines()[1:]
    page.wait_for_function(f"() => JSON.stringify(({INDEX})()) === '[-1,\"fixed\"]'")

    any_canvas.add("UltraGenPrompts")
    any_canvas.run(SHOW, '["broken"')
    any_canvas.run(BUTTON)
    page.get_by_text("is not valid JSON").first.wait_for()


def test_button_stops_where_the_queue_refuses(canvas):
    canvas.server.post("/history", {"clear": True})
    canvas.add("UltraGenPrompts")
    canvas.run(SHOW, '["first", {"prompt": "second", "image": "gone.png"}, "third"]')
    canvas.run(BUTTON)  # until the last prompt is queued, or one is refused
    assert canvas.run(INDEX) == [-1, "fixed"]
    wait_until(lambda: not any(canvas.server.get("/queue").values()))
    assert [line for line in shown(canvas.server) if line in ("first", "second", "third")] == ["first"]
    canvas.errors.clear()  # the page logs what the queue refuses


@pytest.mark.parametrize("inside", [False, True])
def test_button_stops_where_another_workflow_is_opened(any_canvas, inside):
    """The page would queue that one in place of the prompts that are left."""
    any_canvas.add("UltraGenPrompts")
    any_canvas.run(SHOW, f"# left {any_canvas.name} {inside}\none\ntwo\nthree\nfour")
    if inside:
        any_canvas.run(IN_SUBGRAPH)
    assert any_canvas.run(LEAVE) == 2
    any_canvas.page.get_by_text("Queued 2 of 4 prompts").first.wait_for()
    wait_until(lambda: not any(any_canvas.server.get("/queue").values()))


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"text": "a\nb", "file": "none"}, {"count": 2}),
        ({"text": "a\nb", "file": "none", "format": "xml"}, "format"),
        ({"text": 5, "file": "none"}, "text must be text"),
        ({"file": "../secret.txt"}, "must be"),
        ({"text": None}, "text"),
        ([1], ""),
    ],
)
def test_question_of_the_button(server, asked, answer):
    import urllib.error

    if isinstance(answer, dict):
        assert server.post("/ultragen/prompts", asked) == answer
        return
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/ultragen/prompts", asked)
    assert refused.value.code == 400 and answer in refused.value.read().decode()
