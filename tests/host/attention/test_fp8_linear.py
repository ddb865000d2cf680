"""ComfyUI's fp8 layers in fused blocks: inputs rounded in one pass, with the numbers of ComfyUI's own forward."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy import quant_ops
from helpers.comfy_run import RULES, TINY, patched, velocity, with_lora
from helpers.scaled_fp8 import NAMES, scaled
from helpers.signatures import needs
from helpers.support import seeded
from safetensors.torch import load_file, save_file

from ultragen_core.host.attention import block, fp8_linear, layers
from ultragen_core.host.attention.load import WEIGHT_DTYPES, load_model
from ultragen_core.host.wan_model import diffusion_model
from ultragen_core.ops import dispatch
from ultragen_core.ops.quantize import FP8, LARGEST

LATENT, CONTEXT = seeded(1, 16, 3, 8, 12), seeded(1, 7, 4096, seed=1)
NEWER = hasattr(getattr(quant_ops, "TensorCoreFP8Layout", None), "Params")
needs_newer = needs(NEWER, "fp8 layers whose inputs the pack rounds")


class Calls(NamedTuple):
    """roundings: the layer, the first of those that share the result, and whether GELU came with it. products: the
    layer of each.
    """

    roundings: list
    products: list


@pytest.fixture
def calls(monkeypatch):
    """What UltraGen rounds and multiplies in fp8."""
    made, of, product = Calls([], []), fp8_linear.Rounded.of, fp8_linear.fp8_product

    def spy(x, layer, gelu=False):
        made.roundings.append((layer, gelu))
        return of(x, layer, gelu)

    monkeypatch.setattr(fp8_linear.Rounded, "of", spy)
    monkeypatch.setattr(fp8_linear, "fp8_product", lambda layer, x: made.products.append(layer) or product(layer, x))
    return made


@pytest.fixture
def fast(fp8_layers):
    return load_model(TINY, "dense", WEIGHT_DTYPES["fp8_e4m3fn_fast"])


def load_scaled(tmp_path, input_scales: dict[str, torch.Tensor]):
    state, metadata = scaled(load_file(TINY), "metadata")
    save_file(state | input_scales, tmp_path / "scaled.safetensors", metadata)
    return load_model(tmp_path / "scaled.safetensors", "dense", {"fp8_optimizations": True})


@pytest.fixture
def with_scales(fp8_layers, tmp_path):
    names = [f"blocks.{index}.{name}" for index in range(4) for name in NAMES]
    return load_scaled(tmp_path, {f"{name}.input_scale": torch.tensor(0.03 + 0.01 * i) for i, name in enumerate(names)})


@pytest.fixture
def without_input_scales(fp8_layers, tmp_path):
    return load_scaled(tmp_path, {})


def with_comfyuis_layers(model, monkeypatch, **given):
    """An evaluation with fused blocks, whose fp8 layers keep ComfyUI's own forward."""
    with monkeypatch.context() as patch:
        for module in (block, layers):
            patch.setattr(module, "is_fp8_linear", lambda layer: False)
        return velocity(model, LATENT, CONTEXT, 0.5, **given)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weights", ["fast", "with_scales", "without_input_scales"])
def test_the_numbers_equal_comfyuis(weights, rule, calls, fused_blocks, monkeypatch, request):
    model = patched(request.getfixturevalue(weights), rule)
    expected = with_comfyuis_layers(model, monkeypatch)
    assert not calls.roundings
    assert torch.equal(velocity(model, LATENT, CONTEXT, 0.5), expected)
    blocks = diffusion_model(model.model).blocks
    with_gelu = [layer for layer, gelu in calls.roundings if gelu]
    assert with_gelu == ([each.ffn[2] for each in blocks] if NEWER else [])
    layers_in_fp8 = {(index, name) for index in range(4) for name in NAMES} if NEWER else set()
    ran = set(calls.products)
    found = {(index, name) for index, each in enumerate(blocks) for name in NAMES if each.get_submodule(name) in ran}
    assert found == layers_in_fp8


@needs_newer
@pytest.mark.parametrize(("weights", "alike"), [("fast", True), ("with_scales", False), ("without_input_scales", True)])
def test_q_k_and_v_share_what_they_round_alike(weights, alike, calls, fused_blocks, request):
    model = patched(request.getfixturevalue(weights), "t3")
    velocity(model, LATENT, CONTEXT, 0.5)
    rounding = [layer for layer, _ in calls.roundings]
    attentions = [block.self_attn for block in diffusion_model(model.model).blocks]
    shared = [each for each in attentions if each.k not in rounding]
    assert all(each.q in rounding for each in attentions)
    assert len(shared) == (len(attentions) if alike else 0)


@needs_newer
@pytest.mark.parametrize("loaded", [0.6, 0.1])
@pytest.mark.parametrize("weights", ["fast", "with_scales"])
def test_offloaded_weights_and_lora(weights, loaded, calls, fused_blocks, monkeypatch, request):
    model = patched(with_lora(request.getfixturevalue(weights)), "t3")
    expected = with_comfyuis_layers(model, monkeypatch, loaded=loaded)
    assert torch.equal(velocity(model, LATENT, CONTEXT, 0.5, loaded=loaded), expected)
    assert sum(gelu for _, gelu in calls.roundings) == 4, (
        "layers without LoRA multiply in fp8, wherever their weights are"
    )


@needs_newer
def test_triton_rounds_in_the_model_too(fast, interpreted_kernels, monkeypatch):
    small, model, used = seeded(1, 16, 1, 4, 4), patched(fast, "t3"), []
    inner = dispatch.kernels("to_fp8_kernels").to_fp8
    monkeypatch.setattr(dispatch.kernels("to_fp8_kernels"), "to_fp8", lambda *a: used.append(a[2]) or inner(*a))
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "triton_for", lambda x, modules: modules == dispatch.BLOCK_KERNEL_MODULES)
        plain = velocity(model, small, CONTEXT, 0.5)
    assert not used
    monkeypatch.setattr(
        dispatch,
        "triton_for",
        lambda x, modules: modules in (dispatch.BLOCK_KERNEL_MODULES, dispatch.FP8_LINEAR_KERNEL_MODULES),
    )
    result = velocity(model, small, CONTEXT, 0.5)
    assert used.count(True) == 4 and len(used) > 4 * len(NAMES)
    assert ((result - plain).norm() / plain.norm()).item() < 1e-2


def linear() -> torch.nn.Module:
    layer = comfy.ops.fp8_ops.Linear(32, 64, dtype=FP8)
    for name, parameter in (("weight", seeded(64, 32)), ("bias", seeded(64, seed=1))):
        setattr(layer, name, torch.nn.Parameter(parameter.to(FP8), requires_grad=False))
    return layer


@needs_newer
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 32), (5, 32)])
def test_values_out_of_range_become_the_largest_and_the_input_stays(dtype, gelu, shape):
    layer, x = linear(), (300 * seeded(*shape)).to(dtype)
    assert x.abs().max() > LARGEST
    given = x.clone()
    result = fp8_linear.fp8_linear(layer, x, gelu)
    assert torch.equal(x, given) and result.dtype == dtype
    assert torch.equal(result, layer(torch.nn.functional.gelu(x, approximate="tanh") if gelu else x))


@needs_newer
@torch.no_grad()
@pytest.mark.parametrize("biased", [True, False])
def test_inputs_of_any_strides_and_number_of_rows(biased, monkeypatch):
    layer, x, inner = linear(), seeded(2, 40, 64).bfloat16(), fp8_linear.to_fp8
    contiguous = []  # which the kernel needs
    monkeypatch.setattr(fp8_linear, "to_fp8", lambda x, *a: contiguous.append(x.is_contiguous()) or inner(x, *a))
    if not biased:
        layer.bias = None
    for part in (x[:, :, ::2], x[:, 3:20, :32], x.transpose(0, 1)[..., 32:], x[1, :17, :32], x[:1, :1, :32]):
        assert torch.equal(fp8_linear.fp8_linear(layer, part), layer(part.clone()))
    assert contiguous == [True] * 5


@needs_newer
def test_an_unknown_comfyui_keeps_its_own_layers(monkeypatch):
    assert fp8_linear.is_fp8_linear(linear())
    fp8_linear.is_supported.cache_clear()
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lambda layer, input: None)
    try:
        assert not fp8_linear.is_fp8_linear(linear())
    finally:
        fp8_linear.is_supported.cache_clear()


@needs_newer
@torch.no_grad()
def test_weights_are_fetched_as_comfyui_fetches_them(monkeypatch):
    """With the arguments of its fp8_linear: they keep LoRA in fp8 under dynamic VRAM, and give buffers back."""
    layer, x, calls, returned = linear(), seeded(2, 5, 32).bfloat16(), [], []
    cast, uncast = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight
    signature = inspect.signature(cast)

    def seen(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        x = given.pop("input", None)
        calls.append(({"device": layer.weight.device} if x is not None else {}) | given)
        return cast(*args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", seen)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *given: returned.append(given) or uncast(*given))
    assert torch.equal(layer(x.clone()), fp8_linear.fp8_linear(layer, x))
    assert len(calls) == len(returned) == 2 and calls[0] == calls[1]


@needs_newer
@torch.no_grad()
def test_an_interrupt_by_the_user_stops_at_the_next_layer():
    layer, x = linear(), seeded(2, 5, 32)
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            fp8_linear.fp8_linear(layer, x)
    finally:
        comfy.model_management.interrupt_current_processing(False)


@needs_newer
def test_every_other_case_is_comfyuis_own_forward(monkeypatch):
    layer, x, calls = linear(), seeded(2, 5, 32).bfloat16(), []
    monkeypatch.setattr(fp8_linear, "fp8_linear", lambda layer, x: calls.append(x) or x)
    layer.ultragen_layer = fp8_linear.Fp8LinearLayer(lambda x: "ComfyUI's")

    def forward(x):
        return fp8_linear.Fp8LinearLayer.forward(layer, x)

    assert forward(x) == "ComfyUI's" and not calls, "gradients are recorded"
    with torch.no_grad():
        assert forward(x) is x and len(calls) == 1
        for other in (x[None], x[0, 0], x.long()):
            assert forward(other) == "ComfyUI's"
        for functions in ("weight_function", "bias_function"):
            with monkeypatch.context() as patch:
                patch.setattr(layer, functions, [lambda parameter: parameter])
                assert forward(x) == "ComfyUI's"
    assert len(calls) == 1
    for weight in (torch.float8_e5m2, torch.bfloat16):
        assert not fp8_linear.is_fp8_linear(comfy.ops.fp8_ops.Linear(8, 8, dtype=weight))
    assert not fp8_linear.is_fp8_linear(comfy.ops.manual_cast.Linear(8, 8, dtype=FP8))
