"""Blocks with fused residuals, norms and GELU against ComfyUI's own."""

from __future__ import annotations

from functools import partial

import comfy.ldm.wan.model as wan
import pytest
import torch
from helpers.comfy_run import velocity
from helpers.support import relative_error, seeded
from torch import nn

from ultragen_core.host.attention import block as fused
from ultragen_core.host.attention import layers, runtime
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.host.wan_model import diffusion_model
from ultragen_core.ops import dispatch, linear_gelu

SHAPE = (2, 16, 1, 4, 4)
LATENT, CONTEXT = seeded(*SHAPE), seeded(2, 16, 4096, seed=1)


@pytest.fixture
def counted(monkeypatch):
    """The blocks that ran fused."""
    ran = []
    monkeypatch.setattr(
        fused,
        "fused_block",
        lambda block, *args, inner=fused.fused_block, **kw: ran.append(block) or inner(block, *args, **kw),
    )
    return ran


@pytest.fixture
def kernels_of_blocks(interpreted_kernels, monkeypatch):
    """Those of blocks alone; interpreting the attention's takes seconds."""
    monkeypatch.setattr(dispatch, "triton_for", lambda x, modules: modules == dispatch.BLOCK_KERNEL_MODULES)


@pytest.fixture
def plain(tiny):
    return velocity(apply(tiny, Settings()), LATENT, CONTEXT, 0.5)


def test_blocks_of_this_comfyui_can_be_fused(tiny):
    """A ComfyUI in which this fails runs as fast as its own blocks: bring fused_block up to them."""
    assert all(map(fused.can_fuse, diffusion_model(tiny.model).blocks))
    assert all(fused.fused_feed_forward(block.ffn) for block in diffusion_model(tiny.model).blocks)


def test_a_fused_model_gives_the_same_numbers(tiny, plain, counted, kernels_of_blocks):
    result = velocity(apply(tiny, Settings()), LATENT, CONTEXT, 0.5)
    blocks = diffusion_model(tiny.model).blocks
    assert counted == list(blocks), "not every block ran fused"
    assert 0 < relative_error(result, plain) < 1e-5
    assert not any("forward" in vars(part) for block in blocks for part in block.modules())


def test_a_fused_model_computes_chunks_of_tokens(tiny, plain, counted, kernels_of_blocks, monkeypatch):
    monkeypatch.setattr(runtime, "free_memory", lambda base, device: 0)
    sizes = []
    gelu = linear_gelu.linear_gelu
    monkeypatch.setattr(fused, "linear_gelu", lambda x, *given: sizes.append(x.shape[1]) or gelu(x, *given))
    result = velocity(apply(tiny, Settings()), LATENT, CONTEXT, 0.5)
    assert counted == list(diffusion_model(tiny.model).blocks) and relative_error(result, plain) < 1e-5
    assert len(sizes) > len(counted) and max(sizes) < 4, "the feed-forward parts took all tokens at once"


def test_dense_blocks_of_a_fused_model_run_fused_attention(tiny, plain, kernels_of_blocks, monkeypatch):
    """ComfyUI's own norms and rotates queries and keys in passes of their own."""
    seen, inner = [], layers.dense_attention_
    monkeypatch.setattr(layers, "dense_attention_", lambda attn, *given: seen.append(attn) or inner(attn, *given))
    result = velocity(apply(tiny, Settings()), LATENT, CONTEXT, 0.5)
    blocks = diffusion_model(tiny.model).blocks
    assert seen == [blocks[0].self_attn, blocks[3].self_attn] and relative_error(result, plain) < 1e-5


def test_a_plain_model_on_the_cpu_keeps_comfyuis_blocks(plain, counted):
    assert not counted


def test_a_patch_after_the_cross_attention_acts(tiny, counted, kernels_of_blocks):
    model, seen = apply(tiny, Settings()), []
    options = model.model_options.setdefault("transformer_options", {})
    options["patches"] = {"attn2_patch": [lambda given: seen.append(1) or given["x"]]}
    velocity(model, LATENT, CONTEXT, 0.5)
    assert not counted


def test_hooks_and_forwards_of_other_packs_are_called(tiny, counted, kernels_of_blocks, monkeypatch):
    blocks, seen = list(diffusion_model(tiny.model).blocks), []
    parts = blocks[0].norm2, blocks[1].self_attn, blocks[2].ffn
    hooks = [part.register_forward_hook(lambda *_, name=name: seen.append(name)) for name, part in enumerate(parts)]
    own = blocks[3].forward
    monkeypatch.setattr(blocks[3], "forward", lambda *args, **kwargs: seen.append(3) or own(*args, **kwargs))
    try:
        velocity(apply(tiny, Settings()), LATENT, CONTEXT, 0.5)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(blocks) == 4 and seen == [0, 1, 2, 3] and not counted


@pytest.mark.parametrize("part", ["self_attn", "cross_attn", "ffn"])
def test_a_result_that_another_pack_keeps_stays_as_it_was(tiny, kernels_of_blocks, monkeypatch, part):
    """Packs that reuse a part's result in later steps keep the tensor that they return."""
    module, kept = diffusion_model(tiny.model).blocks[0].get_submodule(part), []
    own = module.forward

    def forward(*args, **kwargs):
        y = own(*args, **kwargs)
        kept.append((y, y.clone()))
        return y

    monkeypatch.setattr(module, "forward", forward)
    velocity(apply(tiny, Settings()), LATENT, CONTEXT, 0.5)
    assert kept and all(torch.equal(*before_and_now) for before_and_now in kept)


def test_a_patch_that_is_off_again_has_changed_nothing(tiny):
    """ComfyUI then leaves each part's own forward on it as an attribute."""
    model, block = tiny.clone(), diffusion_model(tiny.model).blocks[1]
    parts = {name: block.get_submodule(name) for name in ("", "self_attn", "cross_attn", "ffn")}
    for name, part in parts.items():
        key = ".".join(filter(None, ("diffusion_model.blocks.1", name, "forward")))
        model.add_object_patch(key, partial(type(part).forward, part))
    for each in (model, tiny):
        velocity(each, LATENT, CONTEXT, 0.5)
    assert all("forward" in vars(part) for part in parts.values())
    assert fused.can_fuse(block) and fused.fused_feed_forward(block.ffn)


@pytest.mark.parametrize(("timesteps", "others"), [(3, {}), (1, {"audio": None})], ids=["a timestep a frame", "new"])
def test_what_the_fused_block_does_not_know_is_comfyuis(tiny, timesteps, others):
    block, given = diffusion_model(tiny.model).blocks[0], []
    block.ultragen_layer = fused.FusedBlockLayer(lambda *args, **kwargs: given.append(kwargs))
    try:
        e = seeded(1, timesteps, 6, block.dim)
        fused.FusedBlockLayer.forward(block, seeded(1, 6, block.dim), e, None, None, **others)
    finally:
        del block.ultragen_layer
    assert given == [{"context_img_len": 257, "transformer_options": {}, **others}]


@pytest.mark.parametrize("changed", ["more arithmetic", "another argument", "gone"])
def test_a_comfyui_that_changed_its_blocks_keeps_them(tiny, monkeypatch, caplog, changed):
    def forward(self, x, e, freqs, context, context_img_len=257, transformer_options=None):
        if changed == "gone":
            raise AttributeError("no modulation")
        if changed == "another argument":
            attn = self.self_attn
            self.self_attn = lambda *args, **kwargs: attn(*args, mask=None, **kwargs)
        return own(self, x, e, freqs, context, context_img_len, transformer_options) + (changed == "more arithmetic")

    own = wan.WanAttentionBlock.forward
    fused._same_as_comfyui.cache_clear()
    monkeypatch.setattr(wan.WanAttentionBlock, "forward", forward)
    try:
        with caplog.at_level("INFO"):
            assert not fused.can_fuse(diffusion_model(tiny.model).blocks[0])
    finally:
        fused._same_as_comfyui.cache_clear()
    assert "this ComfyUI's Wan blocks are not fused" in caplog.text


def test_quantised_and_patched_linear_layers_stay_comfyuis(tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(fused, "linear_gelu", lambda *given: calls.append(given) or linear_gelu.linear_gelu(*given))
    ffn = diffusion_model(tiny.model).blocks[0].ffn
    forward, x = fused.fused_feed_forward(ffn), seeded(1, 4, ffn[0].in_features)
    with torch.no_grad():
        assert torch.equal(forward(x), ffn(x)) and len(calls) == 1
        ffn[0].weight_function = [lambda weight: 2 * weight]
        try:
            forward(x)
        finally:
            ffn[0].weight_function = []
    assert len(calls) == 1
    exact = nn.Sequential(ffn[0], nn.GELU(), ffn[2])
    assert fused.fused_feed_forward(exact) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_gelu_in_the_product():
    x, weight, bias = (seeded(*size).cuda().bfloat16() for size in ((2, 640, 256), (1024, 256), (1024,)))
    with torch.inference_mode():
        result = linear_gelu.linear_gelu(x, weight, bias)
        apart = nn.functional.gelu(nn.functional.linear(x, weight, bias), approximate="tanh")
        exact = nn.functional.gelu(nn.functional.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    assert not torch.equal(result, apart)
    assert relative_error(result, exact) < relative_error(apart, exact)
