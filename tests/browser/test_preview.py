"""The moving preview on a running sampler, as ComfyUI's page gets it from its server."""

from __future__ import annotations

import base64
from io import BytesIO

from helpers.waiting import wait_until
from PIL import Image

RECEIVE = """([content, type]) => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    const id = String(app.graph._nodes[0].id);
    const ids = {nodeId: id, displayNodeId: id, parentNodeId: id, realNodeId: id, jobId: "a job", promptId: "a job"};
    app.api.dispatchCustomEvent("b_preview_with_metadata", {blob: new Blob([bytes], {type}), ...ids});
    app.graph.setDirtyCanvas(true); // as progress does
}"""
END = "() => app.api.dispatchCustomEvent('execution_success', {prompt_id: 'a job', timestamp: 0})"
CHOOSE = "value => app.extensionManager.setting.set('UltraGen.Preview.Moving', value)"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def picture(*colours: str) -> str:
    """A loop of one-coloured frames, or a still picture, as ComfyUI's server sends it."""
    from ultragen_core.host.moving_preview import encode

    frames = [Image.new("RGB", (384, 216), COLOURS[name]) for name in colours]
    file = BytesIO()
    (encode(frames) or frames[0]).save(file, format="JPEG")
    return base64.b64encode(file.getvalue()).decode()


def seen(canvas) -> set[str]:
    """The colours that the page shows now."""
    shown = Image.open(BytesIO(canvas.page.screenshot())).convert("RGB").resize((400, 250))
    counts = {rgb: count for count, rgb in shown.getcolors(400 * 250)}

    def amount(wanted) -> int:
        return sum(n for rgb, n in counts.items() if all(abs(a - b) < 25 for a, b in zip(rgb, wanted, strict=True)))

    return {name for name, wanted in COLOURS.items() if amount(wanted) > 100}


def wait_for(canvas, colours: set[str]) -> None:
    """Until all these colours, and no other one in between, were seen: a picture takes a moment to replace the last."""
    found = set()

    def all_seen() -> bool:
        nonlocal found
        now = seen(canvas)
        found = found | now if now <= colours else set()
        return found == colours

    wait_until(all_seen)


def test_a_loop_moves_on_the_sampler_until_the_run_ends(any_canvas):
    any_canvas.add("SamplerCustomAdvanced")
    any_canvas.run(RECEIVE, [picture("red"), "image/jpeg"])  # ComfyUI's own, first
    wait_for(any_canvas, {"red"})
    any_canvas.run(RECEIVE, [picture("green", "blue"), "image/jpeg"])
    wait_for(any_canvas, {"green", "blue"})
    any_canvas.shoot("moving-preview")
    any_canvas.run(RECEIVE, [picture("red"), "image/jpeg"])  # of a run without loops
    wait_for(any_canvas, {"red"})
    assert all(seen(any_canvas) == {"red"} for _ in range(8))
    any_canvas.run(RECEIVE, [picture("blue", "red"), "image/jpeg"])
    wait_for(any_canvas, {"red", "blue"})
    any_canvas.run(END)


def test_the_setting_tells_the_server(canvas):
    try:
        with canvas.page.expect_response("**/ultragen/preview") as told:
            canvas.run(CHOOSE, False)
        asked = told.value.request.post_data_json
        assert asked == {"client_id": canvas.run("() => app.api.clientId"), "moving": False}
        assert told.value.json() == {"moving": False}
    finally:
        with canvas.page.expect_response("**/ultragen/preview") as told:
            canvas.run(CHOOSE, True)
    assert told.value.json() == {"moving": True}
