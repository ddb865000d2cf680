"""Deltas on the feed-forward part against the same model with the deltas merged into its weights."""

from __future__ import annotations

from functools import partial
from itertools import product

import comfy.sd
import pytest
import torch
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from helpers.comfy_run import TINY, attn_state, run_node, sample, velocity
from helpers.deltas import merged, random_extras, with_deltas
from helpers.support import relative_error, seeded
from helpers.wan_models import KINDS, H, T, W
from helpers.wan_models import load as load_kind
from safetensors.torch import load_file, save_file

from ultragen_core.attention.config import GlobalConfig
from ultragen_core.attention.extras import ExtrasShape
from ultragen_core.attention.feed_forward import feed_forward
from ultragen_core.host.attention import block as fused
from ultragen_core.host.attention.extras import blocks_of, build
from ultragen_core.host.attention.layers import FeedForwardLayer, installed
from ultragen_core.host.attention.load import load_extras_file, load_model
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.host.wan_model import blocks_at, diffusion_model
from ultragen_core.ops import dispatch
from ultragen_core.weights.published import Extras

SHAPE = (1, 16, 3, 8, 12)
LATENT, CONTEXT = seeded(*SHAPE), seeded(1, 16, 4096, seed=1)
FLOAT32 = {"dtype": torch.float32}
run = partial(velocity, x=LATENT, context=CONTEXT, sigma=0.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints by name: "deltas" has deltas on the feed-forward part, "merged" has them in its base's weights."""
    folder, state = tmp_path_factory.mktemp("deltas"), with_deltas(load_file(TINY))
    contents = {"deltas": state, "merged": merged(state, 1.0), "half": merged(state, 0.5)}
    for name, content in contents.items():
        save_file(content, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in contents}


@pytest.fixture
def models(files):
    return {name: load_model(path, model_options=FLOAT32) for name, path in files.items()}


def with_strength(model, strength):
    return apply(model, Settings(global_=GlobalConfig(ffn_lora_strength=strength)))


def test_the_model_is_that_with_merged_weights(models, tiny):
    state = attn_state(models["deltas"])
    result = run(models["deltas"])
    assert relative_error(result, run(models["merged"])) < 1e-5
    assert relative_error(result, run(tiny)) > 1e-3
    assert relative_error(run(with_strength(models["deltas"], 0.5)), run(models["half"])) < 1e-5
    assert torch.equal(run(with_strength(models["deltas"], 0.0)), run(tiny)), "nothing is left of them at strength 0"
    ffn = diffusion_model(models["deltas"].model).blocks[1].ffn
    assert attn_state(models["deltas"]) == state and not {"forward", "ultragen_layer"} & vars(ffn).keys()


def test_extras_alone_bring_them_to_any_base(files, dense):
    result = run(apply(dense, Settings(), load_extras_file(files["deltas"])))
    assert torch.equal(result, run(load_model(files["deltas"], model_options=FLOAT32)))


def test_where_the_rule_does_not_act_the_model_is_comfyuis(models, dense):
    """Outside of its part of the run, in dense blocks, under other rules."""
    deltas, plain = models["deltas"], run(dense)
    for settings in (Settings(end_percent=0.2), Settings(start_percent=0.9)):
        assert torch.equal(run(apply(deltas, settings)), plain)
    assert torch.equal(run(apply(deltas, Settings(global_=GlobalConfig(dense_blocks=frozenset(range(4)))))), plain)
    assert torch.equal(run(apply(deltas, Settings(rule="t3"))), run(apply(dense, Settings(rule="t3"))))
    some = Settings(global_=GlobalConfig(dense_blocks=frozenset({0, 1, 3})))
    assert relative_error(run(apply(deltas, some)), run(apply(models["merged"], some))) > 1e-4, "block 1 has none now"


def test_a_small_card_computes_them_in_chunks(models, bounded, monkeypatch):
    expected, budgets, sizes = run(models["merged"]), bounded(), []
    monkeypatch.setattr(
        "ultragen_core.rules.ultragen.feed_forward",
        lambda ffn, x, inner=feed_forward, **given: sizes.append(x.shape[1]) or inner(ffn, x, **given),
    )
    assert relative_error(run(apply(models["deltas"], Settings())), expected) < 1e-5
    assert budgets and set(sizes) == {24} and len(sizes) == 2 * 3


def test_fused_blocks_give_the_same_numbers(models, interpreted_kernels, monkeypatch):
    small = {"x": seeded(1, 16, 1, 4, 4)}  # interpreting the kernels takes long
    expected, ran = run(models["merged"], **small), []
    monkeypatch.setattr(dispatch, "triton_for", lambda x, modules: modules == dispatch.BLOCK_KERNEL_MODULES)
    for name in ("fused_block", "linear_gelu"):
        inner = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *a, _f=inner, _n=name, **k: ran.append(_n) or _f(*a, **k))
    assert relative_error(run(apply(models["deltas"], Settings()), **small), expected) < 1e-5
    assert ran.count("fused_block") == 4 and ran.count("linear_gelu") == 2, "blocks without deltas keep the fused GELU"


@pytest.mark.parametrize("loaded", [0.6, 0.1])
def test_offloaded_weights(models, loaded):
    assert relative_error(run(models["deltas"], loaded=loaded), run(models["merged"])) < 1e-5


def test_a_lora_on_the_base_acts_too(models):
    lora = {}
    for layer in (f"blocks.{index}.ffn.{number}" for index in (1, 2) for number in (0, 2)):
        outputs, inputs = models["merged"].model.diffusion_model.get_submodule(layer).weight.shape
        lora[f"diffusion_model.{layer}.lora_down.weight"] = 0.1 * seeded(4, inputs)
        lora[f"diffusion_model.{layer}.lora_up.weight"] = 0.1 * seeded(outputs, 4, seed=1)
    both, alone = (comfy.sd.load_lora_for_models(models[name], None, lora, 1, 0)[0] for name in ("deltas", "merged"))
    expected = run(alone)
    assert relative_error(expected, run(models["merged"])) > 1e-3
    for share in (1.0, 0.3):
        assert relative_error(run(both, loaded=share), expected) < 1e-5


def test_half_precision(files):
    for dtype, tolerance in ((torch.float16, 3e-3), (torch.bfloat16, 3e-2)):
        several = [load_model(files[name], model_options={"dtype": dtype}) for name in ("deltas", "merged")]
        assert relative_error(*map(run, several)) < tolerance


def test_a_base_in_fp8(files, tiny):
    """Whatever a linear layer's weights are, it is called, and the delta is added to its output."""
    fp8 = load_model(files["deltas"], model_options={"dtype": torch.float8_e4m3fn})
    rounded = {key: value.float() for key, value in fp8.model.diffusion_model.state_dict().items()}
    state = {**load_file(files["deltas"]), **rounded}
    for name in ("deltas", "merged"):
        save_file(state if name == "deltas" else merged(state), files["deltas"].with_name("rounded.safetensors"))
        exact = load_model(files["deltas"].with_name("rounded.safetensors"), model_options=FLOAT32)
        assert relative_error(run(fp8), run(exact)) < 0.02


def test_compiled(models):
    """As one graph, and not again at the next step."""
    ffn, x, graphs = diffusion_model(models["deltas"].model).blocks[1].ffn, seeded(1, 6, 256), []
    (patcher,) = models["deltas"].get_nested_additional_models()
    deltas = partial(feed_forward, extras=blocks_of(patcher)[1].ffn)
    torch._dynamo.reset()
    with torch.inference_mode():
        expected = deltas(ffn, x)
        compiled = torch.compile(ffn, backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
        for _ in range(2):
            with installed({ffn: FeedForwardLayer(ffn.forward, 2, deltas, tokens=6)}):
                assert relative_error(compiled(x), expected) < 1e-6
    assert len(graphs) == 1


def test_context_windows(models):
    def windowed(name):
        settings = {"context_schedule": "standard_static", "fuse_method": "pyramid"}
        made = run_node(WanContextWindowsManualNode, models[name], context_length=9, context_overlap=4, **settings)
        return sample(made, (1, 16, 4, 8, 12), CONTEXT, cfg=1.0)

    assert relative_error(windowed("deltas"), windowed("merged")) < 1e-5


def of_kind(name: str, shape: ExtrasShape, merge: Extras | None = None):
    """A video of a variant of Wan with random extras, for `merge` with its deltas inside the base's weights."""
    kind = KINDS[name]
    model, extras = load_kind(kind), random_extras(shape, range(1, 4))
    for index, state in merge.blocks.items() if merge else ():
        for block, name in product(blocks_at(model.model.diffusion_model, index), "02"):
            a, b = ({p: state[f"ffn.{name}.lora_{f}.{p}"] for p in ("weight", "bias")} for f in "AB")
            layer = block.ffn.get_submodule(name)
            layer.weight.data += b["weight"] @ a["weight"]
            layer.bias.data += b["weight"] @ a["bias"] + b["bias"]
    patched = apply(model, Settings(), build(extras, lambda: extras))
    given = (1, kind.latent_channels, T, H, W), seeded(1, 8, 4096, seed=1)
    return sample(patched, *given, steps=1, cfg=1.0, **kind.conditions())


WITH, WITHOUT = (ExtrasShape(128, rank=4, refined=True, ffn_channels=hidden) for hidden in (256, 0))


def test_blocks_that_stay_dense_for_extra_tokens_have_none():
    """A reference joins the sequence: the attention is ComfyUI's, and so is the feed-forward part."""
    name = "Wan2.1 Fun Control with a reference"
    assert torch.equal(of_kind(name, WITH), of_kind(name, WITHOUT))


def test_blocks_of_vace_have_the_deltas_of_the_blocks_that_they_feed():
    result = of_kind("Wan2.1 VACE", WITH)
    assert relative_error(result, of_kind("Wan2.1 VACE", WITHOUT, random_extras(WITH, range(1, 4)))) < 1e-5
    assert relative_error(result, of_kind("Wan2.1 VACE", WITHOUT)) > 1e-3


def test_a_feed_forward_part_of_another_pack_is_its_own(models, monkeypatch, caplog):
    ffn, seen = diffusion_model(models["deltas"].model).blocks[1].ffn, []
    own = type(ffn).forward
    monkeypatch.setattr(ffn, "forward", lambda x: seen.append(x.shape) or own(ffn, x))
    result = run(models["deltas"])
    assert seen and relative_error(result, run(models["merged"])) > 1e-4
    assert "a feed-forward part that another pack has replaced has no deltas" in caplog.text
