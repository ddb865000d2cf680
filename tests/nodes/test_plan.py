"""The plan through the real server: the node's words and picture, the canvas's question, and wrong questions."""

from __future__ import annotations

import json
import urllib.error

import pytest

LOADER = {"checkpoint": "ultragen_1080p.ckpt", "attention_rule": "auto", "weight_dtype": "default"}
LATENT = {"preset": "custom", "width": 200, "height": 128, "frames": 9, "batch_size": 2}


def test_node_says_and_draws_what_the_canvas_was_shown(server):
    local = {
        "windows_even": 2, "windows_odd": 3, "cross_window": "paper", "cut": "auto", "antialias": False,
        "hierarchical": True, "hierarchical_windows_even": 0, "hierarchical_windows_odd": 0,
        "gate": "trained", "gate_at_noise": 0.5, "gate_at_end": 1.0,
    }  # fmt: skip
    apply = {"attention_rule": "auto", "extras": "none", "start_percent": 0, "end_percent": 1, "bounded_memory": True}
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
    assert said["text"][0].startswith("208x128, 9 frames: 3x8x13 = 312 tokens; rule ultragen in 5 of 6 blocks")
    assert "local 2x2" in said["text"][1] and "local 3x3" in said["text"][2]
    # From the loaded model more is known: its weights' size, and the trained gates.
    assert [line for line in shown["text"] if "device memory" not in line] == [
        line for line in said["text"] if "device memory" not in line
    ]
    assert "weights 0.0" in "".join(said["text"]) and "gates over the run" in said["ultragen_plan"][0]
    assert shown["picture"].startswith("<svg") and "gates over the run" not in shown["picture"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "node"),
        (
            {"node": {**LOADER, "attention_rule": "t3"}, "latent": {**LATENT, "width": 2144, "height": 3616}},
            "too few divisors",
        ),
        ({"node": LOADER, "local": {"windows_even": 2}}, "missing"),
    ],
)
def test_a_wrong_question_is_answered_with_a_sentence(server, wrong, said):
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
    assert "5 of 6 blocks" in known and "24 of 30 blocks" in outside
