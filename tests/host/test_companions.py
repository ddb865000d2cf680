"""What users combine with the patch: LoRA loaders, fp8 weights, other precisions, core's samplers, extras files."""

from __future__ import annotations

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_run import sample, velocity
from support import relative_error, seeded

from ultragen_core.host.load import load_extras_file, load_model
from ultragen_core.host.patch import Settings, apply
from ultragen_core.weights.extras_file import load_extras, save_extras

SHAPE = (1, 16, 3, 16, 24)
LATENT, CONTEXT = seeded(*SHAPE), seeded(1, 16, 4096, seed=1)


def lora(rank=4):
    """A LoRA on the projections that UltraGen's branches share."""
    state = {}
    for block in range(4):
        for name in ("q", "v", "o"):
            key = f"diffusion_model.blocks.{block}.self_attn.{name}"
            state[f"{key}.lora_down.weight"] = 0.1 * seeded(rank, 256, seed=block)
            state[f"{key}.lora_up.weight"] = 0.1 * seeded(256, rank, seed=block + 9)
    return state


def test_lora_before_and_after_are_the_same(tiny, dense, tiny_path):
    with_lora, _ = comfy.sd.load_lora_for_models(dense, None, lora(), 1.0, 0.0)
    before = velocity(apply(with_lora, Settings(), load_extras_file(tiny_path)), LATENT, CONTEXT, 0.5)
    after = velocity(comfy.sd.load_lora_for_models(tiny, None, lora(), 1.0, 0.0)[0], LATENT, CONTEXT, 0.5)
    assert torch.equal(before, after)
    assert relative_error(after, velocity(tiny, LATENT, CONTEXT, 0.5)) > 1e-3


def test_extras_file_on_the_base_gives_the_checkpoints_result(tiny, dense, tiny_path, tmp_path):
    save_extras(load_extras(tiny_path), tmp_path / "extras.safetensors")
    patched = apply(dense, Settings(), load_extras_file(tmp_path / "extras.safetensors"))
    assert torch.equal(velocity(patched, LATENT, CONTEXT, 0.5), velocity(tiny, LATENT, CONTEXT, 0.5))


def test_extras_on_another_base_warn(dense, tiny_path, tmp_path, caplog):
    extras = load_extras(tiny_path)
    extras.fingerprint[1] = [3.0 * value for value in extras.fingerprint[1]]
    save_extras(extras, tmp_path / "other.safetensors")
    apply(dense, Settings(), load_extras_file(tmp_path / "other.safetensors"))
    assert "trained with another base model" in caplog.text
    caplog.clear()
    apply(dense, Settings(), load_extras_file(tiny_path))
    assert "another base model" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16])
def test_base_in_another_precision(tiny, tiny_path, dtype):
    rounded = velocity(load_model(tiny_path, model_options={"dtype": dtype}), LATENT, CONTEXT, 0.5)
    error = relative_error(rounded, velocity(tiny, LATENT, CONTEXT, 0.5))
    # The file is in float16 already.
    assert error == 0 if dtype == torch.float16 else 0 < error < (0.2 if dtype == torch.float8_e4m3fn else 2e-2)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_core_sampler_batched_or_not(tiny, cfg, monkeypatch):
    """Cond and uncond in one call (enough memory) or in two: the same video."""
    together = sample(tiny, SHAPE, CONTEXT, cfg=cfg)
    monkeypatch.setattr(tiny.model, "memory_required", lambda *a, **k: 2**60)
    apart = sample(tiny, SHAPE, CONTEXT, cfg=cfg)
    assert torch.isfinite(together).all() and relative_error(apart, together) < 1e-4


def test_sampling_leaves_the_base_model_as_it_was(dense, tiny_path):
    before = velocity(dense, LATENT, CONTEXT, 0.5)
    patched = apply(dense, Settings(), load_extras_file(tiny_path))
    ran = sample(patched, SHAPE, CONTEXT)
    del patched
    comfy.model_management.unload_all_models()
    assert torch.equal(velocity(dense, LATENT, CONTEXT, 0.5), before)
    assert relative_error(sample(dense, SHAPE, CONTEXT), ran) > 1e-3


def test_sampling_with_no_step_in_range_is_core_bit_for_bit(tiny, dense):
    off = apply(tiny, Settings(start_percent=0.999999))
    assert torch.equal(sample(off, SHAPE, CONTEXT), sample(dense, SHAPE, CONTEXT))


def test_compiled_model_agrees_and_does_not_recompile_over_steps(tiny):
    frames = []

    def backend(graph, inputs):
        frames.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = tiny.clone()
    dm = compiled.model.diffusion_model
    compiled.add_object_patch("diffusion_model", torch.compile(dm, backend=backend))
    expected = [velocity(tiny, LATENT, CONTEXT, sigma) for sigma in (0.9, 0.5, 0.2)]
    counts = []
    for sigma, reference in zip((0.9, 0.5, 0.2), expected, strict=True):
        assert relative_error(velocity(compiled, LATENT, CONTEXT, sigma), reference) < 1e-5
        counts.append(len(frames))
    assert counts[0] > 0 and counts[1] == counts[2]
