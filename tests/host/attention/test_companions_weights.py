"""Base weights in other forms than plain tensors: packed layers as GGUF has them, scaled fp8, merged models."""

from __future__ import annotations

import comfy.ops
import comfy.sd
import pytest
import torch
import torch.nn.functional as F
from comfy_extras.nodes_model_merging import ModelMergeSimple
from helpers.comfy_run import RULES, TINY, patched, velocity, with_lora
from helpers.scaled_fp8 import LAYOUTS, scaled
from helpers.support import relative_error, seeded
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ultragen_core.host.attention.load import load_model

LATENT, CONTEXT = seeded(1, 16, 3, 8, 12), seeded(1, 16, 4096, seed=1)
FLOAT32 = {"dtype": torch.float32}


def pack(weight: Tensor) -> Tensor:
    """(out, in) -> bytes (out, in + 4): int8, then the float32 scale of the row."""
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    return torch.cat(((weight / scale).round().to(torch.int8).view(torch.uint8), scale.view(torch.uint8)), 1)


def unpack(packed: Tensor) -> Tensor:
    return packed[:, :-4].view(torch.int8) * packed[:, -4:].contiguous().view(torch.float32)


class PackedOps(comfy.ops.manual_cast):
    """Layers as ComfyUI-GGUF loads a model with: `weight` is packed bytes, and only a call of the layer unpacks it."""

    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            self.weight = nn.Parameter(pack(state_dict[f"{prefix}weight"]), requires_grad=False)
            self.bias = nn.Parameter(state_dict[f"{prefix}bias"].float(), requires_grad=False)

        def forward_comfy_cast_weights(self, x):
            return F.linear(x, unpack(self.weight), self.bias)


def rounded(model):
    """The model with ordinary layers, whose weights are what packing leaves of them."""
    for module in model.model.diffusion_model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = unpack(pack(module.weight.data))
    return model


@pytest.mark.parametrize("rule", RULES)
def test_packed_layers_are_called_and_never_read(dense, rule, bounded, caplog):
    options = {"custom_operations": PackedOps, **FLOAT32}
    packed = comfy.sd.load_diffusion_model_state_dict(load_file(TINY), model_options=options)
    assert packed.model.diffusion_model.blocks[1].self_attn.q.weight.dtype == torch.uint8
    whole = velocity(patched(dense, rule), LATENT, CONTEXT, 0.5)
    model, expected = patched(packed, rule), velocity(patched(rounded(dense), rule), LATENT, CONTEXT, 0.5)
    assert 1e-4 < relative_error(expected, whole) < 0.1
    assert relative_error(velocity(packed, LATENT, CONTEXT, 0.5), expected) > 1e-3, "our attention is lost"
    for loaded in (1.0, 0.3):
        assert relative_error(velocity(model, LATENT, CONTEXT, 0.5, loaded=loaded), expected) < 1e-6
    rooms, model = bounded(), patched(packed, rule)
    assert relative_error(velocity(model, LATENT, CONTEXT, 0.5), expected) < 1e-5 and rooms
    assert "different base model" not in caplog.text


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scaled_fp8_keeps_its_scales(dense, rule, layout, tmp_path):
    """Both layouts of ComfyUI's repackaged Wan files: a marker among the tensors, or the file's metadata."""
    state, metadata = scaled(load_file(TINY), layout)
    save_file(state, tmp_path / "scaled.safetensors", metadata)
    core = comfy.sd.load_diffusion_model(str(tmp_path / "scaled.safetensors"))
    result = velocity(patched(core, rule), LATENT, CONTEXT, 0.5)
    assert torch.equal(velocity(load_model(tmp_path / "scaled.safetensors", rule), LATENT, CONTEXT, 0.5), result)
    assert 1e-3 < relative_error(result, velocity(patched(dense, rule), LATENT, CONTEXT, 0.5)) < 0.1
    assert relative_error(result, velocity(core, LATENT, CONTEXT, 0.5)) > 1e-3, "our attention is lost"


@pytest.mark.parametrize("rule", RULES)
def test_a_merge_has_the_attention_of_its_first_model(dense, rule):
    other = with_lora(load_model(TINY, "dense", FLOAT32))

    def merge(first, second):
        return velocity(ModelMergeSimple().merge(first, second, 0.3)[0], LATENT, CONTEXT, 0.5)

    ours, core = merge(patched(dense, rule), other), merge(dense, other)
    assert torch.equal(merge(patched(dense, rule), patched(other, rule)), ours)
    assert torch.equal(merge(dense, patched(other, rule)), core)
    assert relative_error(ours, core) > 1e-3
