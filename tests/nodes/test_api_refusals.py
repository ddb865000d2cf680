"""Wrong files and values through the real server: the errors that users read."""

from __future__ import annotations

import shutil
import zipfile

import pytest
import safetensors.torch
import torch
from helpers.support import DATA
from safetensors.torch import load_file

from tools.server import Failed

FLAT = load_file(DATA / "tiny_ultragen.safetensors")
PLAIN = {
    key: value for key, value in FLAT.items() if not any(part in key for part in ("lora", "alpha_time", "sample_conv"))
}


class Runs:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("this must not run",)


def truncated(path):
    torch.save(FLAT, path)
    path.write_bytes(path.read_bytes()[:100_000])


FILES = {
    "lora.safetensors": (
        lambda p: safetensors.torch.save_file(
            {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.zeros(4, 256)}, p
        ),
        "lora.safetensors looks like a LoRA (load it with a LoRA loader after the model). Expected an UltraGen"
        " checkpoint",
    ),
    "vae.safetensors": (
        lambda p: safetensors.torch.save_file({"decoder.conv1.weight": torch.zeros(4)}, p),
        "vae.safetensors looks like a VAE (load it with a VAE loader). Expected an UltraGen checkpoint",
    ),
    "wan.safetensors": (
        lambda p: safetensors.torch.save_file(PLAIN, p),
        "wan.safetensors is a Wan model without UltraGen's extras. Expected an UltraGen checkpoint",
    ),
    "truncated.ckpt": (truncated, "truncated.ckpt (100,000 bytes) is damaged, incomplete or not a weights file"),
    "hostile.ckpt": (
        lambda p: torch.save({"state_dict": Runs()}, p),
        "hostile.ckpt holds Python objects other than tensors and was not opened",
    ),
    "mixed.safetensors": (
        lambda p: safetensors.torch.save_file(
            {
                key: value[:128].clone() if key.endswith("2.self_attn.downsample_conv.weight") else value
                for key, value in FLAT.items()
            },
            p,
        ),
        "blocks.2.self_attn.downsample_conv.weight should be (256, 1, 4, 4), found (128, 1, 4, 4)",
    ),
}


def load(checkpoint, rule="auto"):
    return {
        "class_type": "UltraGenLoadModel",
        "inputs": {"checkpoint": checkpoint, "attention_rule": rule, "weight_dtype": "default"},
    }


def extract(checkpoint, name):
    return {"class_type": "UltraGenExtractWeights", "inputs": {"checkpoint": checkpoint, "file_name": name}}


def sampled(load_node, **apply):
    """A graph that loads, optionally applies, and runs one step: the least that executes the loader."""
    graph = {"1": load_node}
    if apply:
        inputs = {
            "model": ["1", 0],
            "attention_rule": "auto",
            "extras": "none",
            "start_percent": 0.0,
            "end_percent": 1.0,
            "bounded_memory": True,
        }
        graph["2"] = {"class_type": "UltraGenApply", "inputs": inputs | apply}
    graph["3"] = {"class_type": "UltraGenModelSampling", "inputs": {"model": [max(graph), 0], "shift": 5.0, "steps": 1}}
    graph["4"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}}
    return graph


@pytest.mark.parametrize("name", FILES)
def test_wrong_files(server, name):
    write, sentence = FILES[name]
    write(server.base / "models" / "diffusion_models" / name)
    for graph in (sampled(load(name)), {"1": extract(name, "never")}):
        with pytest.raises(Failed) as failed:
            server.run(graph)
        assert sentence in str(failed.value)
    assert "this must not run" not in server.log.read_text()
    assert not (server.base / "models" / "model_patches" / "never.safetensors").exists()


def test_extracted_weights_patch_a_model_of_another_loader(server):
    models = server.base / "models"
    shutil.copy(DATA / "tiny_ultragen.safetensors", models / "diffusion_models" / "golden.safetensors")
    safetensors.torch.save_file(PLAIN, models / "diffusion_models" / "golden_base.safetensors")
    server.run({"1": extract("golden.safetensors", "golden_extras")})
    unet = {"class_type": "UNETLoader", "inputs": {"unet_name": "golden_base.safetensors", "weight_dtype": "default"}}
    server.run(sampled(unet, extras="golden_extras.safetensors"))
    with pytest.raises(Failed, match="holds only UltraGen's extras"):
        shutil.copy(
            models / "model_patches" / "golden_extras.safetensors", models / "diffusion_models" / "alone.safetensors"
        )
        server.run(sampled(load("alone.safetensors")))


def test_values_that_contradict_are_refused(server):
    with pytest.raises(Failed, match="start_percent must be below end_percent, both between 0 and 1, got 0.6 and 0.5"):
        server.run(sampled(load("ultragen_1080p.ckpt"), start_percent=0.6, end_percent=0.5))
    for name in ("../outside", "a/b", ".hidden", " "):
        with pytest.raises(Failed, match="file_name must be a plain name that every system accepts, without folders"):
            server.run({"1": extract("ultragen_1080p.ckpt", name)})
    assert zipfile.is_zipfile(server.base / "models" / "diffusion_models" / "ultragen_1080p.ckpt"), (
        "published as a torch checkpoint"
    )
