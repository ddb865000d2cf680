"""What the demo queues is what a user opens, but for sizes, steps, seed and the text encoder."""

from __future__ import annotations

import json
from argparse import Namespace

from tools import workflow
from tools.demo import queued_graph
from training.miniature.make import Miniature
from ultragen_core.sizes import VideoSize


def differences(a: dict, b: dict) -> set[tuple]:
    """(node id, field) of every node and input in which two graphs differ."""
    found = set()
    for key in a.keys() | b.keys():
        if key not in a or key not in b:
            found.add((key, "node"))
            continue
        if a[key]["class_type"] != b[key]["class_type"]:
            found.add((key, "class_type"))
        ins, outs = a[key]["inputs"], b[key]["inputs"]
        found |= {(key, name) for name in ins.keys() | outs.keys() if ins.get(name) != outs.get(name)}
    return found


def test_the_small_size_is_that_of_the_tiny_models_training():
    *size, _ = workflow.SMALL.values()
    assert VideoSize(*size) == Miniature().high


def test_served_workflow_is_what_the_demo_queues(server, tmp_path):
    prompt, size = "a snowy night, moon right", {"width": 640, "height": 352, "frames": 17, "steps": 8}
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(workflow.for_canvas(prompt, **size)))
    served = workflow.to_api(file, server.get("/object_info"))
    assert differences(served, queued_graph(server, Namespace(**size, seed=0, prompt=prompt))) == set()


def test_queued_graph_differs_from_the_shipped_one_in_size_and_text_encoder_only(server):
    shipped = workflow.to_api(workflow.SHIPPED, server.get("/object_info"))
    small = workflow.make_small(shipped, width=640, height=352, frames=17, steps=8, seed=7)
    queued = queued_graph(server, Namespace(width=640, height=352, frames=17, steps=8, seed=7, prompt=None))
    ids = {node["class_type"]: key for key, node in shipped.items()}
    prompts = [key for key, node in shipped.items() if node["class_type"] == "CLIPTextEncode"]

    latent, sampling = ids["UltraGenEmptyLatent"], ids["UltraGenModelSampling"]
    sizes = {(latent, name) for name in ("preset", "width", "height", "frames")}
    assert differences(shipped, small) == sizes | {(sampling, "steps"), (ids["RandomNoise"], "noise_seed")}

    text = {(ids["CLIPLoader"], "node"), *((key, field) for key in prompts for field in ("class_type", "clip"))}
    assert len(prompts) == 2
    assert differences(small, queued) == text
    assert all(queued[key]["inputs"] == {"text": shipped[key]["inputs"]["text"]} for key in prompts)
