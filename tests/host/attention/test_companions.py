"""What users combine with the patch: LoRA loaders, fp8 weights, other precisions, ComfyUI's samplers, extras files."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_rope import ScaleROPE
from helpers.comfy_run import RULES, patched, run_node, sample, spied, velocity, with_another_embedder, with_lora
from helpers.support import relative_error, seeded
from safetensors.torch import load_file, save_file

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.gate import GateLine
from ultragen_core.host.attention.extras import KEY
from ultragen_core.host.attention.load import WEIGHT_DTYPES, load_extras_file, load_model
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.host.attention.runtime import Runtime
from ultragen_core.weights.extras_file import read_extras, save_extras

SHAPE = (1, 16, 3, 16, 24)
LATENT, CONTEXT = seeded(*SHAPE), seeded(1, 16, 4096, seed=1)


def test_extras_file_on_the_base_gives_the_checkpoints_result(tiny, dense, tiny_path, tmp_path):
    save_extras(read_extras(tiny_path), tmp_path / "extras.safetensors")
    with_extras = apply(dense, Settings(), load_extras_file(tmp_path / "extras.safetensors"))
    assert torch.equal(velocity(with_extras, LATENT, CONTEXT, 0.5), velocity(tiny, LATENT, CONTEXT, 0.5))


def test_extras_on_another_base_warn(dense, tiny_path, tmp_path, caplog):
    extras = read_extras(tiny_path)
    extras.fingerprint[1] = [3.0 * value for value in extras.fingerprint[1]]
    save_extras(extras, tmp_path / "other.safetensors")
    apply(dense, Settings(), load_extras_file(tmp_path / "other.safetensors"))
    assert "trained with a different base model" in caplog.text
    caplog.clear()
    apply(dense, Settings(), load_extras_file(tiny_path))
    for model_options in WEIGHT_DTYPES.values():
        load_model(tiny_path, model_options=model_options)
    assert "different base model" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16])
def test_base_in_another_precision(tiny, tiny_path, dtype):
    rounded = velocity(load_model(tiny_path, model_options={"dtype": dtype}), LATENT, CONTEXT, 0.5)
    error = relative_error(rounded, velocity(tiny, LATENT, CONTEXT, 0.5))
    # The file is in float16 already.
    assert error == 0 if dtype == torch.float16 else 0 < error < (0.2 if dtype == torch.float8_e4m3fn else 2e-2)


def test_lora_with_partly_loaded_weights(tiny):
    whole = velocity(with_lora(tiny), LATENT, CONTEXT, 0.5)
    assert relative_error(velocity(with_lora(tiny), LATENT, CONTEXT, 0.5, loaded=0.3), whole) < 1e-5


def test_fp8_base_with_bf16_extras(tiny, tiny_path, tmp_path):
    state = load_file(tiny_path)
    bf16 = {
        k: v.bfloat16() if any(part in k for part in ("lora", "alpha", "sample_conv")) else v for k, v in state.items()
    }
    save_file(bf16, tmp_path / "mixed.safetensors")
    model = load_model(tmp_path / "mixed.safetensors", model_options={"dtype": torch.float8_e4m3fn})
    extras = model.get_additional_models_with_key(KEY)[0].model
    assert {p.dtype for p in extras.parameters()} == {torch.bfloat16}
    assert model.model.diffusion_model.blocks[1].self_attn.q.weight.dtype == torch.float8_e4m3fn
    result, exact = (velocity(m, LATENT, CONTEXT, 0.5) for m in (model, tiny))
    assert relative_error(result, exact) < 0.2


def test_copies_for_other_gpus_are_made_from_the_files(tiny_path):
    """ComfyUI copies a model to another GPU by calling the factory in `cached_patcher_init` of each of its parts."""
    model = load_model(tiny_path, "dense", {"dtype": torch.float32})
    for part in (model, load_extras_file(tiny_path).patcher):
        factory, arguments = part.cached_patcher_init
        copy = factory(*arguments)
        a, b = copy.model.state_dict(), part.model.state_dict()
        assert copy.model is not part.model and a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_rope_scale_of_the_user_acts_in_windows_as_in_dense_attention(tiny, dense):
    whole = LocalConfig(windows=(1, 1), hierarchical_windows=(1, 1), gate=GateLine(1.0, 1.0))
    patched = apply(tiny, Settings(whole, GlobalConfig(gate=GateLine(1.0, 1.0))))
    scale = {"scale_t": 1.0, "scale_y": 0.5, "scale_x": 0.5, "shift_t": 0.0, "shift_y": 3.0, "shift_x": 0.0}
    plain = velocity(patched, LATENT, CONTEXT, 0.5)
    for model in (patched, dense):
        model.model_options["transformer_options"]["rope_options"] = scale
    ours, core = (velocity(model, LATENT, CONTEXT, 0.5) for model in (patched, dense))
    assert relative_error(ours, core) < 1e-5
    assert relative_error(ours, plain) > 1e-3


def with_another_encode(model):
    model, dm = model.clone(), model.model.diffusion_model
    halved = {"transformer_options": {"rope_options": {"scale_y": 0.5, "scale_x": 0.5}}}
    encode = type(dm).rope_encode
    model.add_object_patch("diffusion_model.rope_encode", lambda *size, **more: encode(dm, *size, **more | halved))
    return model


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("add", [with_another_embedder, with_another_encode])
def test_positions_of_another_pack_act_in_windows_as_those_of_scalerope(dense, rule, add):
    model = patched(dense, rule)
    scaled = run_node(ScaleROPE, model, scale_x=0.5, scale_y=0.5)
    plain, expected, result = (velocity(each, LATENT, CONTEXT, 0.5) for each in (model, scaled, add(model)))
    assert relative_error(result, expected) < 1e-5 < 1e-3 < relative_error(plain, expected)
    assert torch.equal(velocity(model, LATENT, CONTEXT, 0.5), plain), "ComfyUI's own come back"


def test_another_base_of_the_rotations_acts_in_windows_as_in_dense_attention(tiny, dense):
    whole = LocalConfig(windows=(1, 1), hierarchical_windows=(1, 1), gate=GateLine(1.0, 1.0))
    patched = apply(tiny, Settings(whole, GlobalConfig(gate=GateLine(1.0, 1.0))))
    plain = velocity(patched, LATENT, CONTEXT, 0.5)
    for model in (patched, dense):
        model.model.diffusion_model.rope_embedder.theta = 100.0
    ours, core = (velocity(model, LATENT, CONTEXT, 0.5) for model in (patched, dense))
    assert relative_error(ours, core) < 1e-5 < 1e-3 < relative_error(ours, plain)


@pytest.mark.parametrize(("rule", "windows"), [("ultragen", (16, 18)), ("t3", (3, 96))])
def test_an_attention_override_is_asked_for_all_windows_together(dense, rule, windows):
    """As packs with attention kernels bring it: (windows, tokens of each), contiguous, and what it returns is used."""
    model, shapes = patched(dense, rule), []
    expected = velocity(model, LATENT, CONTEXT, 0.5)

    def override(func, q, k, v, heads, **kwargs):
        shapes.append(q.shape[:2])
        assert all(x.is_contiguous() for x in (q, k, v))
        return func(q, k, v, heads, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(velocity(model, LATENT, CONTEXT, 0.5), expected)
    assert windows in shapes


@pytest.fixture
def fun(tiny_path, tmp_path):
    """A patched model whose reference frames join the sequence next to the grid, as in Wan Fun."""
    reference = {"ref_conv.weight": seeded(256, 16, 2, 2, seed=5) / 8, "ref_conv.bias": torch.zeros(256)}
    save_file(load_file(tiny_path) | reference, tmp_path / "fun.safetensors")
    return load_model(tmp_path / "fun.safetensors", model_options={"dtype": torch.float32})


REFERENCE = [seeded(1, 16, 1, 16, 24)]


def test_extra_tokens_are_said_in_every_run_that_has_them(fun, caplog):
    """The blocks stay dense, and each run says so."""
    for _ in range(2):
        caplog.clear()
        sample(fun, SHAPE, CONTEXT, reference_latents=REFERENCE)
        assert caplog.text.count("all blocks stay dense, because 96 extra tokens joined the video's 288") == 1
    caplog.clear()
    sample(fun, SHAPE, CONTEXT)
    assert "stay dense" not in caplog.text


def test_blocks_that_stay_dense_for_extra_tokens_are_bounded_too(fun, bounded):
    whole = sample(fun, SHAPE, CONTEXT, steps=1, reference_latents=REFERENCE)
    bounded()
    model, calls = spied(fun)
    assert relative_error(sample(model, SHAPE, CONTEXT, steps=1, reference_latents=REFERENCE), whole) < 1e-5
    assert max(q[1] for q, _ in calls) <= 288 // 3


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_core_sampler_batched_or_not(tiny, cfg, monkeypatch):
    """Cond and uncond in one call (enough memory) or in two: the same video."""
    together = sample(tiny, SHAPE, CONTEXT, cfg=cfg)
    monkeypatch.setattr(Runtime, "memory_required", lambda *a, **k: 2**60)
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
