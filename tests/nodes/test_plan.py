"""The plan through the real server: the node's words and picture, the canvas's question, and wrong questions."""

from __future__ import annotations

import json
import re
import shutil
import sys
import urllib.error
import urllib.request

import folder_paths
import pytest
from helpers.support import DATA

LOADER = {"checkpoint": "ultragen_1080p.ckpt", "attention_rule": "auto", "weight_dtype": "default"}
APPLY = {"attention_rule": "auto", "extras": "none", "start_percent": 0, "end_percent": 1, "bounded_memory": True}
LATENT = {"preset": "custom", "width": 200, "height": 128, "frames": 9, "batch_size": 2}


def test_node_says_and_draws_what_the_canvas_was_shown(server):
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
    said = server.run(graph)["5"]
    asked = {"node": apply, "model": LOADER["checkpoint"], "local": local, "global": None, "latent": LATENT}
    shown = server.post("/ultragen/plan", asked)
    assert said["text"][0].startswith("208x128, 9 frames: 3x8x13 = 312 tokens; rule ultragen in 4 of 6 blocks")
    assert "local 2x2" in said["text"][1] and "local 3x3" in said["text"][2]
    # From the loaded model more is known: its weights' size, and the trained gates.
    assert [line for line in shown["text"] if "device memory" not in line] == [
        line for line in said["text"] if "device memory" not in line
    ]
    assert "weights 0.0" in "".join(said["text"]) and "gates over the run" in said["ultragen_plan"][0]
    assert shown["picture"].startswith("<svg") and "gates over the run" not in shown["picture"]


ONE_WINDOW = {"windows_even": 2}
WRONG = [
    (None, "The question must be names with values"),
    ([], "The question must be names with values"),
    ({}, "node must be names with values, got a value of type NoneType"),
    *(({"node": value}, "node must be names with values") for value in (None, "text", [LOADER])),
    ({"node": {"checkpoint": 5}}, "Which model this is, is known only in the run"),
    ({"node": APPLY, "model": None}, "Which model this is, is known only in the run"),
    ({"node": {**LOADER, "attention_rule": "t5"}}, "attention_rule must be one of auto, ultragen, t3, dense"),
    ({"node": {**APPLY, "extras": "../x"}, "model": LOADER["checkpoint"]}, "extras must be one of"),
    ({"node": {**APPLY, "start_percent": None}, "model": LOADER["checkpoint"]}, "start_percent comes through a link"),
    ({"node": {**APPLY, "start_percent": 1}, "model": LOADER["checkpoint"]}, "start_percent must be below end_percent"),
    ({"node": LOADER, "latent": {**LATENT, "width": 0}}, "width must be a whole number from 16 to 16384, got 0"),
    ({"node": LOADER, "latent": {**LATENT, "width": 1e300}}, "got 1e+300"),
    ({"node": LOADER, "latent": {**LATENT, "height": float("nan")}}, "got nan"),
    ({"node": LOADER, "latent": {**LATENT, "frames": 10**9}}, "frames must be a whole number from 1 to 4097"),
    ({"node": LOADER, "latent": {**LATENT, "height": None}}, "height comes through a link"),
    ({"node": LOADER, "latent": {**LATENT, "preset": "8K"}}, "preset must be one of"),
    ({"node": LOADER, "latent": {**LATENT, "steps": [{"scale_by": 99}]}}, "width must be a whole number from 16"),
    ({"node": LOADER, "latent": {**LATENT, "steps": [{"scale_by": "2"}]}}, "Sizes are scaled by up to 100, got '2'"),
    ({"node": LOADER, "latent": "1080P"}, "latent must be names with values"),
    ({"node": LOADER, "before": "x"}, "before must be a list"),
    ({"node": LOADER, "local": ONE_WINDOW}, "UltraGen Local Config: windows_odd is missing"),
    ({"node": LOADER, "global": {"compress_ratio": 5_000_000}}, "is missing"),
    (
        {"node": {**LOADER, "attention_rule": "t3"}, "latent": {**LATENT, "width": 2144, "height": 3616}},
        "too few divisors",
    ),
]


@pytest.fixture
def answer(pack, tmp_path, monkeypatch):
    """The route's answer to a question, without a server; the models folder holds the tiny checkpoint."""
    folder = tmp_path / "diffusion_models"
    folder.mkdir()
    shutil.copy(DATA / "tiny_ultragen.safetensors", folder / "ultragen_1080p.safetensors")
    paths = ([str(folder)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", paths)
    plan = sys.modules[f"{pack.__name__}.nodes.plan"]
    return plan.preview_of_graph


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_a_wrong_question_is_answered_with_a_sentence(answer, wrong, said):
    wrong = json.loads(json.dumps(wrong).replace("ultragen_1080p.ckpt", "ultragen_1080p.safetensors"))
    with pytest.raises(ValueError, match=re.escape(said)):
        answer(wrong)


def test_what_is_done_to_an_empty_latent_is_counted(answer):
    """As in two passes: the size that the second sampler is given."""
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


def test_wrong_questions_reach_the_canvas_as_400(server):
    for wrong, said in WRONG[:3]:
        assert_refused(server, wrong, said)
    deep = urllib.request.Request(f"{server.url}/ultragen/plan", b"[" * 100_000, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(deep)
    assert refused.value.code == 400


def assert_refused(server, wrong, said):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/ultragen/plan", wrong)
    assert refused.value.code == 400 and said in json.load(refused.value)["error"]


def test_a_file_that_only_its_loader_reads_is_said_to_be_one(server):
    asked = {"node": {"attention_rule": "auto", "extras": "none"}, "model": "wan2.1-t2v-14b-Q4_K_M.gguf"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/ultragen/plan", asked)
    assert json.load(refused.value)["error"].startswith("Only its own loader can read wan2.1-t2v-14b-Q4_K_M.gguf")


def test_a_name_outside_of_the_models_folder_is_not_opened(server):
    known = server.post("/ultragen/plan", {"node": LOADER})["text"][0]
    outside = server.post("/ultragen/plan", {"node": {**LOADER, "checkpoint": "../../../../etc/passwd"}})["text"][0]
    assert "4 of 6 blocks" in known and "24 of 30 blocks" in outside
