"""Every shipped workflow has all its nodes and links, and ComfyUI accepts each of its values."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import av
import pytest
import torch
from helpers.signatures import skip_without_nodes

from tools import contact_sheet, workflow
from tools.demo import saved_videos
from tools.server import ROOT, Refused
from tools.templates.layout import AUTOGROW, MATCHTYPE
from tools.tiny_bundle import AUDIO_RATE, FRAMES, HEIGHT, VIDEO, VIDEO_FPS, VIDEO_FRAMES, WIDTH
from ultragen_core.metrics.detail import hd_mse

FILES = sorted((ROOT / "workflows").glob("*.json"))
UI_ONLY = {"MarkdownNote", "Note"}
COMPARE = ROOT / "workflows" / "ultragen_compare_1080p.json"


@pytest.fixture(scope="module")
def object_info(server):
    return server.get("/object_info")


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request) -> Path:
    return request.param


@pytest.fixture
def graph(file, object_info) -> dict:
    """The template in API format."""
    types = [node["type"] for node in json.loads(file.read_text())["nodes"]]
    skip_without_nodes([each for each in types if each not in UI_ONLY], object_info)
    return workflow.to_api(file, object_info)


@pytest.fixture(scope="module")
def run_small(server):
    """`run_small(name, graph)`: run a template at 96x64, 5 frames, 5 steps, once; return (graph, outputs, log)."""

    @cache
    def run(name: str, graph: str) -> tuple[dict, dict, str]:
        small = workflow.make_small(json.loads(graph), width=96, height=64, frames=5, steps=5, seed=1)
        small, begin = workflow.with_stand_ins(small), len(server.log.read_text())
        outputs = server.run(small)
        return small, outputs, server.log.read_text()[begin:]

    return lambda name, graph: run(name, json.dumps(graph))


def test_links_join_what_they_name(file):
    content = json.loads(file.read_text())
    nodes = {node["id"]: node for node in content["nodes"]}
    assert len(nodes) == len(content["nodes"])
    assert content["last_node_id"] >= max(nodes) and content["last_link_id"] >= max(
        link[0] for link in content["links"]
    )
    for link_id, source, output, target, slot, kind in content["links"]:
        assert nodes[source]["outputs"][output]["type"] == kind
        assert kind in nodes[target]["inputs"][slot]["type"].split(",")
        assert link_id in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link_id
    named = [link for node in nodes.values() for output in node.get("outputs", []) for link in output["links"]]
    named += [slot["link"] for node in nodes.values() for slot in node.get("inputs", []) if slot["link"] is not None]
    assert sorted(named) == sorted([link[0] for link in content["links"]] * 2)


def inputs_of(schema: dict) -> dict:
    return schema["input"].get("required", {}) | schema["input"].get("optional", {})


def test_nodes_have_the_slots_that_the_schema_has(file, graph, object_info):
    for node in json.loads(file.read_text())["nodes"]:
        if node["type"] in UI_ONLY:
            continue
        schema = object_info[node["type"]]
        accepted = inputs_of(schema)
        for slot in node["inputs"]:
            grows = accepted[slot["name"].partition(".")[0]][0] == AUTOGROW
            assert grows or accepted[slot["name"]][0] == slot["type"]
        for output, type_ in zip(node["outputs"], schema["output"], strict=False):
            assert output["type"] == type_ or type_ == MATCHTYPE
        assert len(node["outputs"]) <= len(schema["output"])


def test_conversion_keeps_every_widget(graph, object_info):
    """One value too many or too few in `widgets_values` would shift all that follow."""
    for node in graph.values():
        schema = object_info[node["class_type"]]["input"]
        required = {name for name, (kind, *_) in schema.get("required", {}).items() if kind != AUTOGROW}
        missing = required - node["inputs"].keys()
        assert not missing, f"{node['class_type']} lacks {missing}"


def test_choices_are_among_the_options(graph, object_info):
    """The server checks this too, but ComfyUI 0.3.75 does not check the choices of V3 nodes."""
    for node in graph.values():
        accepted = inputs_of(object_info[node["class_type"]])
        for name, value in node["inputs"].items():
            kind, settings = (*accepted[name.partition(".")[0]], {})[:2]
            options = kind if isinstance(kind, list) else settings.get("options") if kind == "COMBO" else None
            assert options is None or value in options, f"{node['class_type']}.{name}"


def test_server_accepts_every_value(graph, server):
    """ComfyUI validates all nodes before it runs any: with one bad value it reports that alone and runs nothing.

    Metrics are left out: ComfyUI would run one that does not need the refused node. Each template's run has them.
    """
    graph = {key: node for key, node in graph.items() if node["class_type"] != "UltraGenMetrics"}
    saves = nodes_of(graph, "UltraGenSaveVideo")
    for save in saves:
        graph[save]["inputs"]["crf"] = 0
    with pytest.raises(Refused) as refused:
        server.queue(graph)
    complaints = refused.value.error["node_errors"]
    assert sorted(complaints) == sorted(saves)
    for save in saves:
        assert [error["type"] for error in complaints[save]["errors"]] == ["value_smaller_than_min"]


def test_model_links_name_the_chosen_files(file):
    """The frontend offers a download when `models` names the loader's chosen file and a host that it trusts."""
    for node in json.loads(file.read_text())["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] == node["widgets_values"][0]
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])


def test_loaders_offer_every_file_for_download(file):
    for node in json.loads(file.read_text())["nodes"]:
        if node["type"].endswith(("Loader", "LoadModel", "LoaderModelOnly")):
            assert node["properties"]["models"]


def test_published_settings():
    content = json.loads(workflow.SHIPPED.read_text())
    widgets = {node["type"]: node["widgets_values"] for node in content["nodes"]}
    assert widgets["UltraGenEmptyLatent"][0].startswith("1080P x 81")
    assert widgets["UltraGenEmptyLatent"][1:4] == [1920, 1088, 81]
    assert widgets["UltraGenModelSampling"] == [5, 30]
    assert widgets["CFGGuider"] == [5]
    assert widgets["KSamplerSelect"] == ["euler"]
    assert widgets["RandomNoise"] == [0, "fixed"]
    negative = next(node for node in content["nodes"] if node.get("title") == "Negative prompt")
    assert negative["widgets_values"][0].startswith("Aerial view, overexposed, low quality, deformation")


# What ComfyUI's log says of each. The miniature's models have 6 blocks, the random ones 4. All blocks of the tiny
# UltraGen but the outer two have its weights.
ULTRAGEN, UNTRAINED = "ultragen in 4 of 6 blocks (1-4)", "ultragen in 6 of 6 blocks (0-5)"
T3, T3_RANDOM = "t3 in 6 of 6 blocks (0-5)", "t3 in 4 of 4 blocks (0-3)"
RULES = {
    "ultragen_t2v_1080p": [ULTRAGEN],
    "ultragen_t3_4k_wan21_1_3b": [T3],
    "ultragen_t3_4k_wan22_5b": [T3_RANDOM],
    "ultragen_few_steps_1080p": [ULTRAGEN],
    "ultragen_i2v_1080p": [UNTRAINED],
    "ultragen_two_pass_1080p": [ULTRAGEN],
    "ultragen_refine_1080p": [ULTRAGEN],
    "ultragen_multigpu_1080p": [ULTRAGEN],
    "ultragen_compare_1080p": [ULTRAGEN, ULTRAGEN],  # c and d
    "ultragen_batch_1080p": [ULTRAGEN],  # a run
    "ultragen_decode_only": [],
}
# Of all others: that of the small run.
SIZES = {
    "ultragen_two_pass_1080p": (192, 128, 5),
    "ultragen_refine_1080p": (96, 64, VIDEO_FRAMES),
    "ultragen_decode_only": (WIDTH, HEIGHT, FRAMES),
}


def test_workflow_makes_videos_with_its_attention(file, graph, run_small, server, tmp_path):
    saves = nodes_of(graph, "UltraGenSaveVideo")
    (rate,) = {node["inputs"]["fps"] for key, node in graph.items() if key in saves and not is_link(node, "fps")} or {
        float(VIDEO_FPS)
    }
    _, outputs, log = run_small(file.stem, graph)
    videos = saved_videos(server, outputs)

    assert re.findall(r"rule (.*? blocks \(.*?\))", log) == RULES[file.stem]
    assert len(videos) == (len(saves) if len(saves) > 1 else max(len(RULES[file.stem]), 1))
    size = SIZES.get(file.stem, (96, 64, 5))
    for video_file in videos:
        video = contact_sheet.draw(video_file, tmp_path / "sheet.png")
        assert (video.codec, video.fps, video.width, video.height, video.frames) == ("h264", rate, *size)


def is_link(node: dict, name: str) -> bool:
    return isinstance(node["inputs"][name], list)


def test_a_refined_video_keeps_length_rate_and_sound_and_tells_what_changed(object_info, server):
    """Seven frames at 24000 / 1001 per second, which is neither 4n + 1 nor a round rate."""
    graph = workflow.to_api(ROOT / "workflows" / "ultragen_refine_1080p.json", object_info)
    graph = workflow.with_stand_ins(workflow.make_small(graph, width=96, height=64, frames=5, steps=5, seed=2))
    outputs = server.run(graph)
    (refined,) = saved_videos(server, outputs)
    with av.open(str(refined)) as made, av.open(str(server.base / VIDEO)) as given:
        assert made.streams.video[0].average_rate == given.streams.video[0].average_rate == VIDEO_FPS
        heard = [sum(frame.samples for frame in file.decode(audio=0)) for file in (made, given)]
        assert heard[0] == pytest.approx(float(VIDEO_FRAMES / VIDEO_FPS * AUDIO_RATE), abs=1024)  # blocks of AAC
        assert heard[1] == pytest.approx(heard[0], abs=1024)
    enlarged, after = ("\n".join(outputs[key]["text"]) for key in nodes_of(graph, "UltraGenMetrics"))
    assert "HD-MSE" in enlarged and "HD-MSE" in after and enlarged != after


def test_a_video_without_sound_is_refined_too(object_info, server, tmp_path):
    graph = workflow.to_api(ROOT / "workflows" / "ultragen_refine_1080p.json", object_info)
    graph = workflow.with_stand_ins(workflow.make_small(graph, width=96, height=64, frames=5, steps=2, seed=2))
    (loader,) = nodes_of(graph, "LoadVideo")
    with av.open(str(server.base / "input" / "without_sound.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=16)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(9):
            file.mux(stream.encode(av.VideoFrame(64, 64, "rgb24")))
        file.mux(stream.encode(None))
    graph[loader]["inputs"]["file"] = "without_sound.mp4"
    (refined,) = saved_videos(server, server.run(graph))
    with av.open(str(refined)) as made:
        assert not made.streams.audio and sum(1 for _ in made.decode(video=0)) == 9


@pytest.mark.parametrize("file", [COMPARE], ids=["compare"], indirect=True)
def test_four_videos_of_one_prompt_and_seed_are_measured_and_shown_side_by_side(file, graph, run_small, server):
    """SeedVR2 is ComfyUI's own class, tiny and random, because ComfyUI's sizes are fixed and too large here.

    Only the two loaders' constants are replaced (tools/tiny_seedvr2.py); its nodes, sampling and VAE are ComfyUI's.
    """
    small, outputs, log = run_small(file.stem, graph)
    assert "Traceback" not in log
    (noise,), (restored,) = nodes_of(small, "RandomNoise"), nodes_of(small, "KSampler")
    assert small[noise]["inputs"]["noise_seed"] == small[restored]["inputs"]["seed"]
    assert all(small[key]["inputs"]["noise"] == [noise, 0] for key in nodes_of(small, "SamplerCustomAdvanced"))

    listed, (table,) = nodes_of(small, "CreateList")[0], nodes_of(small, "UltraGenMetrics")
    saves = [small[listed]["inputs"][f"inputs.input{index}"][0] for index in range(4)]
    videos = [pixels(saved_videos(server, {key: outputs[key]})[0]) for key in saves]
    shown = re.search(r"videos 1 to 4: (.*)", "\n".join(outputs[table]["text"])).group(1).split(", ")
    assert len(set(shown)) == 4
    for video, value in zip(videos, shown, strict=True):
        mean = torch.stack([hd_mse(frame.movedim(-1, 0)).sum() for frame in video]).mean()
        assert float(value) == pytest.approx(mean.item(), abs=0.01)

    (saved,) = (outputs[key]["images"][0] for key in nodes_of(small, "SaveVideo"))
    whole = pixels(server.base / "output" / saved["subfolder"] / saved["filename"])
    assert whole.shape == videos[0].shape == (5, 64, 96, 3)
    quarters = [part for half in whole.chunk(2, dim=1) for part in half.chunk(2, dim=2)]
    for index, quarter in enumerate(quarters):
        errors = [(quarter - halved(video)).abs().mean().item() for video in videos]
        assert errors[index] == min(errors) < 0.1


def pixels(file: Path) -> torch.Tensor:
    """Return a file's frames, (t, h, w, 3) in 0..1."""
    with av.open(str(file)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames) / 255


def halved(video: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(video.movedim(-1, 1), 2).movedim(1, -1)


def nodes_of(graph: dict, class_type: str) -> list[str]:
    return [key for key, node in graph.items() if node["class_type"] == class_type]


def test_workflows_are_offered_as_templates(server):
    assert set(server.get("/workflow_templates")["ultragen"]) == {file.stem for file in FILES}
