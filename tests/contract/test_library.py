"""A program that uses ComfyUI as a library: no server runs, and the pack's nodes work."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from conftest import ROOT

PROGRAM = """
import asyncio, json, sys
tree, root, models = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, tree)
import comfy.options
comfy.options.enable_args_parsing(False)
import comfy.cli_args
comfy.cli_args.args.cpu = True
import folder_paths, nodes
folder_paths.add_model_folder_path("diffusion_models", models)
loaded = asyncio.run(nodes.load_custom_node(root))
ours = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("UltraGen")}


def run(name, **inputs):
    node = ours[name]
    return node.execute(**{each.id: each.default for each in node.define_schema().inputs if each.id in inputs} | inputs)


latent, *_ = ours["UltraGenEmptyLatent"].execute(preset="custom", width=64, height=64, frames=5, batch_size=1).result
model = ours["UltraGenLoadModel"].execute("tiny_ultragen.safetensors", "auto", "default").result[0]
sampler = nodes.NODE_CLASS_MAPPINGS["KSampler"]
context = __import__("torch").zeros(1, 4, model.model.diffusion_model.text_dim)
sampled = sampler().sample(model, 0, 2, 5.0, "euler", "simple", [[context, {}]], [[context, {}]], latent)[0]
print(json.dumps({
    "loaded": loaded, "nodes": sorted(ours), "server": "server" in sys.modules,
    "latent": list(latent["samples"].shape), "model": type(model.model.diffusion_model).__name__,
    "sampled": bool(sampled["samples"].isfinite().all()),
}))
"""


def test_the_nodes_load_and_run_where_no_server_runs(tiny_path):
    command = [sys.executable, "-c", PROGRAM, os.environ["COMFYUI_PATH"], str(ROOT), str(tiny_path.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] and len(found["nodes"]) > 10 and not found["server"]
    assert found["latent"] == [1, 16, 2, 8, 8] and found["model"] == "WanModel" and found["sampled"]
