"""comfy.ldm.wan: the modules of a Wan model, their names and how ComfyUI calls them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import MethodType

import comfy.ldm.modules.attention
import comfy.ldm.wan
import comfy.ldm.wan.model as wan_model
import comfyui_version
import pytest
import torch
from helpers.comfy_run import spied, velocity
from helpers.signatures import lacking, needs, parameters
from helpers.support import seeded
from helpers.wan_models import KINDS

from tools.comfyui import OLDEST
from ultragen_core.attention.config import GlobalConfig
from ultragen_core.attention.rope import rope_table
from ultragen_core.grid import TokenGrid
from ultragen_core.host.attention.layers import rotation_table
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.host.wan_model import has_wans_rotations

TOKENS = 2 * 3 * 4  # of the latent (2, 5, 8), padded to whole patches
INPUT = seeded(1, 16, 2, 5, 8), seeded(1, 3, 4096, seed=1), 0.5
FILES = [path for folder in comfy.ldm.wan.__path__ for path in Path(folder).glob("*.py")]


@pytest.fixture
def calls(wan, evaluate):
    """`calls(path)`: arguments of each call of a module in one evaluation, [(args, kwargs), ...]."""

    def record(path: str) -> list:
        found, module = [], wan.model.diffusion_model.get_submodule(path)
        hook = module.register_forward_pre_hook(lambda _, *given: found.append(given), with_kwargs=True)
        try:
            evaluate()
        finally:
            hook.remove()
        assert found, f"{path} is not called"
        return found

    return record


def test_every_wan_model_is_tested():
    for module in pkgutil.iter_modules(comfy.ldm.wan.__path__):
        importlib.import_module(f"comfy.ldm.wan.{module.name}")
    found, open_classes = set(), [wan_model.WanModel]
    while open_classes:
        each = open_classes.pop()
        found.add(each.__name__)
        open_classes += each.__subclasses__()
    assert found <= {kind.build.__name__ for kind in KINDS.values()}, "a new one belongs to KINDS and docs/models.md"


def test_names_of_the_models_parts(wan):
    dm = wan.model.diffusion_model
    assert not lacking(dm, "blocks", "dim", "num_heads", "ffn_dim", "out_dim", "patch_size", "patch_embedding")
    assert not lacking(dm.blocks[0], "self_attn", "cross_attn", "ffn")
    assert tuple(dm.patch_size) == (1, 2, 2)
    source = inspect.getsource(wan_model.VaceWanModel)
    assert "self.vace_blocks" in source and "self.vace_layers_mapping" in source


def test_names_of_the_self_attentions_parts(wan):
    attn = wan.model.diffusion_model.blocks[0].self_attn
    assert type(attn) is wan_model.WanSelfAttention
    assert not lacking(attn, "q", "k", "v", "o", "norm_q", "norm_k", "num_heads", "head_dim")
    assert not lacking(attn.norm_q, "weight", "eps")


def test_self_attention_takes_x_and_rotations(calls):
    assert parameters(wan_model.WanSelfAttention.forward) == ["x", "freqs", "transformer_options"]
    args, options = calls("blocks.0.self_attn")[0]
    x, freqs = args
    assert x.shape[:2] == (1, TOKENS) and freqs.shape[:2] == (1, TOKENS) and options.keys() == {"transformer_options"}


def test_layout_of_the_rotations(calls, wan):
    freqs = calls("blocks.0.self_attn")[0][0][1]
    assert freqs.shape == (1, TOKENS, 1, wan.model.diffusion_model.blocks[0].self_attn.head_dim // 2, 2, 2)
    (cos, minus_sin), (sin, cos_again) = (row.unbind(-1) for row in freqs.unbind(-2))
    assert torch.equal(cos, cos_again) and torch.equal(sin, -minus_sin)
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))


def test_a_plain_models_rotations_are_those_of_the_packs_tables(calls, wan):
    assert has_wans_rotations(wan.model.diffusion_model)
    freqs = calls("blocks.0.self_attn")[0][0][1]
    table = rope_table(TokenGrid(2, 3, 4), wan.model.diffusion_model.blocks[0].self_attn.head_dim, freqs.device)
    torch.testing.assert_close(rotation_table(freqs), table)


def test_options_that_scale_rotations(evaluate):
    scales = {"scale_t": 1.5, "scale_y": 1.5, "scale_x": 1.5}
    plain = evaluate()
    for name in scales:
        assert not torch.equal(evaluate({"rope_options": {name: scales[name]}}), plain), name


@pytest.fixture
def attention_calls(monkeypatch):
    """The options of each call of the attention function that Wan models and the pack's layers look up."""
    attention, seen = wan_model.optimized_attention, []

    def spy(q, k, v, heads, **options):
        seen.append(options)
        return attention(q, k, v, heads=heads, **options)

    monkeypatch.setattr(wan_model, "optimized_attention", spy)
    return seen


BLOCKS = pytest.mark.parametrize("rule", ["dense", "ultragen", "t3"])


def ruled(wan, rule: str):
    some_dense = GlobalConfig(dense_blocks=frozenset({1}))
    return wan if rule == "dense" else apply(wan, Settings(global_=some_dense, rule=rule))


@BLOCKS
def test_attention_is_looked_up_in_the_models_module_and_asks_for_an_override(wan, rule, attention_calls):
    model, overridden = spied(ruled(wan, rule))
    velocity(model, *INPUT)
    assert len(overridden) == len(attention_calls) >= 8  # self- and cross-attention of four blocks
    assert all("transformer_options" in options for options in attention_calls)
    assert ((1, TOKENS, 256), (1, TOKENS, 256)) in overridden


@needs(hasattr(comfy.ldm.modules.attention, "ComfyAttention"), "wishes of checkpoints, which came with 0.40")
@BLOCKS
def test_the_wish_of_a_checkpoint_is_followed_in_every_attention(wan, rule, attention_calls):
    followed, model = [], ruled(wan, rule)

    def function(*args, **kwargs):
        followed.append(args)
        return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)

    wishes = [m for m in wan.model.diffusion_model.modules() if type(m).__name__ == "ComfyAttention"]
    for wish in wishes:
        wish.function = function
    try:
        velocity(model, *INPUT)
    finally:
        for wish in wishes:
            wish.function = None
    assert len(followed) == len(attention_calls) >= 8


def test_patches_of_other_packs_are_under_attn1_patch(evaluate):
    seen = []

    def patch(given: dict) -> torch.Tensor:
        seen.append(sorted(given))
        return given["x"]

    evaluate({"patches": {"attn1_patch": [patch]}})
    has_patches = comfyui_version.__version__ != OLDEST.version  # the oldest's Wan has none
    assert seen[:1] == [["k", "q", "transformer_options", "x"]] * has_patches


def test_ffn_is_called_with_x_alone(calls):
    (x,), options = calls("blocks.0.ffn")[0]
    assert x.shape[:2] == (1, TOKENS) and not options


def test_cross_attention_takes_one_tensor_of_the_videos_tokens(calls):
    (x, *others), options = calls("blocks.0.cross_attn")[0]
    tensors = [each for each in (*others, *options.values()) if isinstance(each, torch.Tensor)]
    assert x.shape[1] == TOKENS and all(each.shape[1] != TOKENS for each in tensors)


def test_patch_embedding_is_called_with_the_float32_latent_alone(calls):
    (x,), options = calls("patch_embedding")[0]
    assert x.shape[2:] == (2, 6, 8) and x.dtype == torch.float32 and not options


def test_blocks_leave_their_self_attention_the_only_holder_of_x(wan, evaluate):
    plain, attn = evaluate(), wan.model.diffusion_model.blocks[0].self_attn
    dense = attn.forward

    def overwriting(module, x, freqs, **options):
        result = dense(x, freqs, **options).clone()
        x.fill_(torch.nan)
        return result

    attn.forward = MethodType(overwriting, attn)
    try:
        assert torch.equal(evaluate(), plain)
    finally:
        del attn.forward


def test_no_graph_of_kernels_is_captured():
    """A captured graph would replay the first evaluation's gates and layers in all others."""
    names = ("model_prefetch", "malloc_graph", "get_dynamic_vram__units")
    found = [(file.name, name) for file in FILES for name in names if name in file.read_text(encoding="utf-8")]
    assert not found, (
        "Wan models take part in ComfyUI's graphs now. Switch these off around the executor's call in"
        " Runtime.apply_model: by pause_malloc_graph(), or by args.disable_comfy_compiler for as long."
    )


@needs(hasattr(wan_model, "WanFeedForward"), "WanFeedForward, which came after 0.30")
def test_the_feed_forward_layer_takes_x_alone():
    assert parameters(wan_model.WanFeedForward.forward) == ["x"]
