"""Incomplete models, models in pieces, and names of other libraries: refused with what is missing, or loaded whole."""

from __future__ import annotations

import os

import pytest
import safetensors.torch
import torch
from helpers.support import DATA
from safetensors.torch import load_file

from ultragen_core.weights.complete import check_complete
from ultragen_core.weights.files import WeightsError, read_shapes, read_state_dict
from ultragen_core.weights.published import split

FLAT = load_file(DATA / "tiny_ultragen.safetensors")
PLAIN = split(FLAT, "tiny")[0]


def without(*parts, state=PLAIN):
    return {key: value for key, value in state.items() if not key.startswith(parts)}


def only(*parts, state=PLAIN):
    return {key: value for key, value in state.items() if key.startswith(parts)}


def published(blocks, channels=1536):
    """Keys and sizes of a Wan model of a published width, without data."""
    block = {key.removeprefix("blocks.0."): value for key, value in only("blocks.0.").items()}
    state = without("blocks.") | {f"blocks.{i}.{key}": value for i in range(blocks) for key, value in block.items()}
    return {
        key: torch.empty([channels if n == 256 else n for n in value.shape], device="meta")
        for key, value in state.items()
    }


INCOMPLETE = {
    "the last piece": (only("blocks.3.", "head."), "found blocks 3, but 0-2 are missing"),
    "the first piece": (only("blocks.0.", "blocks.1.", "patch", "text", "time"), "head.head.weight and 2 more are"),
    "a piece between": (only("blocks.1.", "blocks.2."), "found blocks 1-2, but 0 is missing"),
    "a gap": (without("blocks.2."), "found blocks 0-1, 3, but 2 is missing"),
    "the outside": (only("head.", "patch", "text", "time"), "it has no blocks"),
    "no time embedding": (without("time_embedding.0.weight"), "time_embedding.0.weight is missing"),
    "no head": (without("head.head"), "head.head.weight and 1 more are missing"),
    "no modulation of the head": (without("head.modulation"), "head.modulation is missing"),
    "half a block": (
        without("blocks.3.ffn", "blocks.3.cross_attn"),
        r"blocks.3.cross_attn.k.bias and \d+ more are missing, although other blocks have them",
    ),
    "half of block 0": (without("blocks.0.self_attn.q"), "blocks.0.self_attn.q.bias and 1 more are missing"),
    "no modulation": (without("blocks.1.modulation"), "blocks.1.modulation is missing"),
    "another size": (
        PLAIN | {"blocks.2.ffn.0.weight": torch.zeros(128, 256)},
        r"blocks.2.ffn.0.weight has shape \(128, 256\), but block 0 has \(256, 256\)",
    ),
    "UltraGen's without a block's base": (
        {key: value for key, value in FLAT.items() if not key.startswith("blocks.2.") or key not in PLAIN},
        "blocks.2.cross_attn.k.bias and .* more are missing",
    ),
    "1.3B without its last block": (published(29), "it has 29 blocks; Wan models of 1536 channels have 30"),
    "14B without its last blocks": (published(37, 5120), "it has 37 blocks; Wan models of 5120 channels have 40"),
    "VACE without its last": (
        published(30) | {f"vace_{key}": value for key, value in only("blocks.", state=published(14)).items()},
        "it has 14 vace_blocks, which do not divide its 30 blocks evenly",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INCOMPLETE)
def test_part_of_a_model_is_refused(name):
    state, found = INCOMPLETE[name]
    with pytest.raises(WeightsError, match=f"part.safetensors holds only part of a Wan model: .*{found}"):
        check_complete(state, "part.safetensors")


@pytest.mark.parametrize(
    "shapes",
    [
        {"head.modulation": ()},
        {"head.modulation": (1, 2, 0)},
        {"head.modulation": (1, 2, 100)},
        {"head.head.weight": (64,)},
        {"patch_embedding.weight": (256, 16)},
        {"patch_embedding.weight": (128, 16, 1, 2, 2)},
    ],
    ids=str,
)
def test_a_model_of_no_possible_size_is_refused(shapes):
    state = PLAIN | {key: torch.zeros(shape) for key, shape in shapes.items()}
    with pytest.raises(WeightsError, match="odd.ckpt is a Wan model with impossible sizes: .*modulation"):
        check_complete(state, "odd.ckpt")


@pytest.mark.parametrize("key", ["blocks.0.attn1.to_q.weight", "condition_embedder.time_proj.weight"])
def test_names_of_diffusers_are_recognised(key):
    with pytest.raises(WeightsError, match="uses the tensor names of the diffusers library.*Comfy-Org"):
        check_complete({key: torch.zeros(1)}, "diffusion_pytorch_model.safetensors")


COMPLETE = {
    "UltraGen's": FLAT,
    "Wan's": PLAIN,
    "1.3B": published(30),
    "14B": published(40, 5120),
    "extras alone": {key: value for key, value in FLAT.items() if key not in PLAIN},
    "a LoRA": {"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2)},
    "another model": {"double_blocks.0.img_attn.qkv.weight": torch.zeros(2)},
    "scales in some blocks": PLAIN | {"blocks.1.ffn.0.scale_weight": torch.zeros(()), "scaled_fp8": torch.zeros(0)},
    "packed in some blocks": PLAIN
    | {"blocks.1.ffn.0.weight": torch.zeros(256, 128, dtype=torch.uint8)}
    | {"blocks.1.ffn.0.weight_scale": torch.zeros(256, 16), "blocks.1.ffn.0.comfy_quant": torch.zeros(20)},
    "another library's layers": without("blocks.1.ffn.0.weight") | {"blocks.1.ffn.0.qweight": torch.zeros(256, 128)},
}


@pytest.mark.parametrize("name", COMPLETE)
def test_whole_models_and_other_files_pass(name):
    check_complete(COMPLETE[name], name)


def pieces(folder, ending, count=3):
    keys = sorted(FLAT)
    for index in range(count):
        part = {key: FLAT[key] for key in keys[index::count]}
        path = folder / f"wan-{index + 1:05}-of-{count:05}.{ending}"
        torch.save(part, path) if ending == "bin" else safetensors.torch.save_file(part, path)
        yield path


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_any_piece_loads_the_whole_model(tmp_path, ending):
    for path in list(pieces(tmp_path, ending)):
        state = read_state_dict(path)
        assert state.keys() == FLAT.keys() and all(torch.equal(state[key], FLAT[key]) for key in FLAT)
        assert {key: value.shape for key, value in read_shapes(path).items()} == {k: v.shape for k, v in FLAT.items()}


def test_a_missing_piece_is_named(tmp_path):
    first, second, third = pieces(tmp_path, "safetensors")
    second.unlink()
    for read in (read_state_dict, read_shapes):
        with pytest.raises(WeightsError, match="is one of 3 shards.*wan-00002-of-00003.safetensors is missing"):
            read(third)
    first.rename(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="holds only part of a Wan model"):
        check_complete(read_state_dict(tmp_path / "model.safetensors"), "model.safetensors")


@pytest.mark.parametrize(
    "name", ["x-00001-of-00000.ckpt", "x-00001-of-99999.ckpt", os.fsdecode(b"\xf6-00001-of-00002.ckpt")]
)
def test_odd_names_of_pieces(tmp_path, name):
    name = os.fsdecode(name)
    (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(WeightsError) as error:
        read_state_dict(tmp_path / name)
    str(error.value).encode()
