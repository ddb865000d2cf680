"""The plan through the real server: the node's text and picture, the canvas's request, and wrong requests."""

from __future__ import annotations

import json
import re
import shutil
import sys
import urllib.error
import urllib.request
from xml.etree import ElementTree

import folder_paths
import pytest
from helpers.support import DATA

LOADER = {"checkpoint": "ultragen_1080p.ckpt", "attention_rule": "auto", "weight_dtype": "default"}
APPLY = {"attention_rule": "auto", "extras": "none", "start_percent": 0, "end_percent": 1, "bounded_memory": True}
LATENT = {"preset": "custom", "width": 200, "height": 128, "frames": 9, "batch_size": 2}


def test_node_and_canvas_show_the_same_plan(server):
    local = {
        "windows_even": 2, "windows_odd": 3, "cross_window": "paper", "uneven": "auto", "antialias": False,
        "hierarchical": True, "hierarchical_windows_even": 0, "hierarchical_windows_odd": 0,
        "hierarchical_lora_strength": 1.0,
        "gate": "trained", "gate_at_noise": 0.5, "gate_at_end": 1.0,
    }  # fmt: skip
    apply = APPLY
    graph = {
        "1": {"class_type": "UltraGenLoadModel", "inputs": LOADER},
        "2": {"class_type": "UltraGenLocalConfig", "inputs": local},
        "3": {"class_type": "UltraGenApply", "inputs": {**apply, "model": ["1", 0], "local_config": ["2", 0]}},
        "4": {"class_type": "UltraGenEmptyLatent", "inputs": LATENT},
        "5": {"class_type": "UltraGenPlan", "inputs": {"model": ["3", 0], "latent": ["4", 0]}},
    }
    output = server.run(graph)["5"]
    asked = {"node": apply, "model": LOADER["checkpoint"], "local": local, "global": None, "latent": LATENT}
    shown = server.post("/ultragen/plan", asked)
    assert output["text"][0].startswith("208x128, 9 frames: 3x8x13 = 312 tokens; rule ultragen in 4 of 6 blocks")
    assert "local 2x2" in output["text"][1] and "local 3x3" in output["text"][2]
    # From the loaded model more is known: its weights' size, and the trained gates.
    assert [line for line in shown["text"] if "device memory" not in line] == [
        line for line in output["text"] if "device memory" not in line
    ]
    assert "weights 0.0" in "".join(output["text"]) and "gates over the run" in output["ultragen_plan"][0]
    assert shown["picture"].startswith("<svg") and "gates over the run" not in shown["picture"]


ONE_WINDOW = {"windows_even": 2}
WRONG = [
    (None, "The request must be a JSON object"),
    ([], "The request must be a JSON object"),
    ({}, "node must be a JSON object, got a value of type NoneType"),
    *(({"node": value}, "node must be a JSON object") for value in (None, "text", [LOADER])),
    ({"node": {"checkpoint": 5}}, "The model's file is known only when the graph runs"),
    ({"node": APPLY, "model": None}, "The model's file is known only when the graph runs"),
    ({"node": {**LOADER, "attention_rule": "t5"}}, "attention_rule must be one of auto, ultragen, t3, dense"),
    ({"node": {**LOADER, "attention_rule": "dense", "attention_kernel": "int8"}}, "attention_kernel int8"),
    ({"node": {**APPLY, "attention_kernel": "fp4"}, "model": LOADER["checkpoint"]}, "one of comfyui, int8, fp8, got"),
    ({"node": {**APPLY, "extras": "../x"}, "model": LOADER["checkpoint"]}, "extras must be one of"),
    ({"node": {**APPLY, "start_percent": None}, "model": LOADER["checkpoint"]}, "start_percent is linked"),
    ({"node": {**APPLY, "start_percent": 1}, "model": LOADER["checkpoint"]}, "start_percent must be below end_percent"),
    ({"node": LOADER, "latent": {**LATENT, "width": 0}}, "width must be a whole number from 16 to 16384, got 0"),
    ({"node": LOADER, "latent": {**LATENT, "width": 1e300}}, "got 1e+300"),
    ({"node": LOADER, "latent": {**LATENT, "height": float("nan")}}, "got nan"),
    ({"node": LOADER, "latent": {**LATENT, "frames": 10**9}}, "frames must be a whole number from 1 to 4097"),
    ({"node": LOADER, "latent": {**LATENT, "height": None}}, "height is linked"),
    ({"node": LOADER, "latent": {**LATENT, "preset": "8K"}}, "preset must be one of"),
    ({"node": LOADER, "latent": {"preset": None}}, "The size of the latent is known only when the graph runs"),
    ({"node": LOADER, "latent": {**LATENT, "steps": [{"scale_by": 99}]}}, "width must be a whole number from 16"),
    ({"node": LOADER, "latent": {**LATENT, "steps": [{"scale_by": "2"}]}}, "scale_by must be between 0 and 100, got"),
    ({"node": LOADER, "latent": "1080P"}, "latent must be a JSON object"),
    ({"node": LOADER, "before": "x"}, "before must be a list"),
    ({"node": LOADER, "local": ONE_WINDOW}, "UltraGen Local Config: windows_odd is missing"),
    ({"node": LOADER, "global": {"compress_ratio": 5_000_000}}, "is missing"),
    (
        {"node": {**LOADER, "attention_rule": "t3"}, "latent": {**LATENT, "width": 2144, "height": 3616}},
        "does not divide into any",
    ),
]


@pytest.fixture
def answer(pack, tmp_path, monkeypatch):
    """The route's answer to a request, without a server; the models folder holds the tiny checkpoint."""
    folder = tmp_path / "diffusion_models"
    folder.mkdir()
    shutil.copy(DATA / "tiny_ultragen.safetensors", folder / "ultragen_1080p.safetensors")
    paths = ([str(folder)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", paths)
    plan = sys.modules[f"{pack.__name__}.nodes.plan"]
    return plan.preview_of_graph


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_wrong_request_is_refused_with_a_reason(answer, wrong, message):
    wrong = json.loads(json.dumps(wrong).replace("ultragen_1080p.ckpt", "ultragen_1080p.safetensors"))
    with pytest.raises(ValueError, match=re.escape(message)):
        answer(wrong)


def test_what_is_done_to_an_empty_latent_is_counted(answer):
    """As in the two-pass template: the size of the second sampler's latent."""
    loader = {**LOADER, "checkpoint": "ultragen_1080p.safetensors"}
    steps = [{"scale_by": 2}, {"width": 640, "height": 384}]
    sizes = ["208x128", "400x256", "640x384"]
    for count, size in enumerate(sizes):
        asked = {"node": loader, "latent": {**LATENT, "steps": steps[:count]}}
        assert answer(asked)["text"][0].startswith(f"{size}, 9 frames")
    assert answer({"node": loader})["text"][0].startswith("1920x1088, 81 frames")


def test_nodes_between_loader_and_patch_count(answer):
    loader = {"node": {**LOADER, "checkpoint": "ultragen_1080p.safetensors"}}
    t3 = {"node": {**APPLY, "attention_rule": "t3"}}
    asked = {"node": APPLY, "model": loader["node"]["checkpoint"], "latent": LATENT}
    for before, rule in (([loader], "rule ultragen in 2"), ([loader, t3], "rule t3"), ([t3], "rule t3")):
        assert rule in answer({**asked, "before": before})["text"][0]
    with pytest.raises(ValueError, match="The model has no extras, so its attention rule is unknown"):
        answer({**asked, "before": []})


def test_wrong_requests_reach_the_canvas_as_400(server):
    for wrong, message in WRONG[:3]:
        assert_refused(server, wrong, message)
    deep = urllib.request.Request(f"{server.url}/ultragen/plan", b"[" * 100_000, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(deep)
    assert refused.value.code == 400


def assert_refused(server, wrong, message):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/ultragen/plan", wrong)
    assert refused.value.code == 400 and message in json.load(refused.value)["error"]


def test_a_file_that_only_its_loader_can_read_is_reported(server):
    asked = {"node": {"attention_rule": "auto", "extras": "none"}, "model": "wan2.1-t2v-14b-Q4_K_M.gguf"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/ultragen/plan", asked)
    assert json.load(refused.value)["error"].startswith("Only its own loader can read wan2.1-t2v-14b-Q4_K_M.gguf")


def test_a_name_outside_of_the_models_folder_is_not_opened(server):
    known = server.post("/ultragen/plan", {"node": LOADER})["text"][0]
    outside = server.post("/ultragen/plan", {"node": {**LOADER, "checkpoint": "../../../../etc/passwd"}})["text"][0]
    assert "4 of 6 blocks" in known and "24 of 30 blocks" in outside


def test_names_are_text_in_the_picture(answer):
    """The canvas puts the picture into its page."""
    name = '</text><image href="x" onerror="alert(1)"/>.safetensors'
    drawn = list(ElementTree.fromstring(answer({"node": {**LOADER, "checkpoint": name}})["picture"]).iter())
    assert {each.tag.rpartition("}")[2] for each in drawn} <= {"svg", "g", "title", "rect", "path", "text"}
    assert not [attribute for each in drawn for attribute in each.attrib if attribute.startswith("on")]
    assert name in " ".join(each.text or "" for each in drawn)


@pytest.mark.parametrize("route", ["plan", "prompts", "preview"])
def test_pages_of_other_sites_get_no_answer(server, route):
    headers = {"Content-Type": "text/plain", "Origin": "http://other.example"}
    asked = urllib.request.Request(f"{server.url}/ultragen/{route}", b"{}", headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked)
    assert refused.value.code == 403
