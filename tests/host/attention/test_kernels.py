"""attention_kernel: where a chosen kernel acts, what it leaves to others, and what is refused before sampling."""

from __future__ import annotations

import sys
from functools import partial

import comfy.ldm.modules.attention as core
import pytest
import torch
from helpers.comfy_run import RULES, attention_passed_on, patched, sample, velocity
from helpers.kitchen import Kitchen
from helpers.support import relative_error, seeded

from ultragen_core.attention.config import GlobalConfig
from ultragen_core.host.attention.backend import OVERRIDE, choose_attention
from ultragen_core.host.attention.int8_kernel import Int8Kernel
from ultragen_core.host.attention.kernels import KernelOverride, load_kernel
from ultragen_core.host.attention.load import load_extras_file, load_model
from ultragen_core.host.attention.patch import Settings, apply, runtime_of
from ultragen_core.host.plan import plan_of
from ultragen_core.host.plan_preview import Patch, Source, preview
from ultragen_core.rules.choice import Settings as RuleSettings
from ultragen_core.sizes import VideoSize
from ultragen_core.wan import WanShape

CPU = torch.device("cpu")
PYTORCH = core.attention_pytorch.__wrapped__
TEXT, HEADS, HEAD_DIM = 7, 2, 128
LATENT, CONTEXT = seeded(1, 16, 3, 16, 24), seeded(1, TEXT, 4096)
TOKENS = 3 * 8 * 12
QKV = [seeded(2, 12, 256, seed=i) for i in range(3)]


@pytest.fixture
def int8(kitchen, dense):
    """`int8(rule, **settings)`: the tiny model with that kernel."""
    return partial(patched, dense, attention_kernel="int8")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("memory", ["all at once", "bounded"])
def test_int8_computes_all_self_attention_and_no_other(kitchen, int8, dense, rule, memory, request):
    if memory == "bounded":
        request.getfixturevalue("bounded")()
    exact = velocity(patched(dense, rule), LATENT, CONTEXT, 0.5)
    model = int8(rule)
    left = attention_passed_on(model)
    result = velocity(model, LATENT, CONTEXT, 0.5)
    assert 1e-4 < relative_error(result, exact) < 3e-2
    assert left and {keys for _, keys in left} == {TEXT}  # cross-attention alone
    keys = [shape[2] for _, shape in kitchen.calls]
    assert TEXT not in keys and {q[3] for q, _ in kitchen.calls} == {HEAD_DIM}
    # Blocks 0 and 3 under "ultragen"; under "t3" the windows of a strided cut that is not cut at all.
    whole = [q[2] for q, k in kitchen.calls if k[2] == TOKENS]
    assert whole == {
        ("ultragen", "all at once"): [TOKENS] * 2,
        ("ultragen", "bounded"): [TOKENS // 3] * 6,
    }.get((rule, memory), [TOKENS])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("memory", ["all at once", "bounded"])
def test_q_k_and_v_are_gone_before_the_attention(kitchen, int8, rule, memory, request):
    if memory == "bounded":
        request.getfixturevalue("bounded")()
    velocity(int8(rule), LATENT, CONTEXT, 0.5)
    chunks = sum(q != k for q, k in kitchen.calls)  # of dense self-attention, which needs k and v again
    assert kitchen.freed.count(False) == chunks < kitchen.freed.count(True)


def test_a_batch_and_a_negative_prompt(kitchen, int8):
    model = int8("ultragen")
    one, two = (velocity(model, LATENT.repeat(n, 1, 1, 1, 1), CONTEXT.repeat(n, 1, 1), 0.5) for n in (1, 2))
    assert relative_error(two, one.repeat(2, 1, 1, 1, 1)) < 1e-4
    assert torch.isfinite(sample(model, LATENT.shape, CONTEXT)).all()


def test_it_acts_in_steps_outside_the_rules_share_and_in_models_that_stay_dense(kitchen, int8, caplog):
    velocity(int8("ultragen", end_percent=0.5), LATENT, CONTEXT, 0.01)
    assert [k[2] for _, k in kitchen.calls] == [TOKENS] * 4
    kitchen.calls.clear()
    sample(int8("ultragen", global_=GlobalConfig(dense_blocks=frozenset(range(4)))), LATENT.shape, CONTEXT, 1, cfg=1.0)
    assert [k[2] for _, k in kitchen.calls] == [TOKENS] * 4
    assert "only comfy-kitchen int8 acts: all blocks of this model stay dense" in caplog.text


def test_the_log_names_it_once_a_run(kitchen, int8, caplog):
    caplog.set_level("INFO")
    sample(int8("t3"), LATENT.shape, CONTEXT)
    assert caplog.text.count("UltraGen: attention comfy-kitchen int8 (set by attention_kernel)") == 1
    assert "in this run" not in caplog.text


def test_it_goes_before_another_nodes_choice_and_says_so(kitchen, int8, caplog):
    def radial_attention(func, *args, **kwargs):
        return func(*args, **kwargs)

    model = int8("t3")
    model.model_options["transformer_options"] = {OVERRIDE: radial_attention}
    sample(model, LATENT.shape, CONTEXT)
    assert kitchen.calls and caplog.text.count("radial_attention, set by a node or another pack, gets only the") == 1
    assert "set attention_kernel to comfyui to give it all" in caplog.text and "skips tokens" not in caplog.text


def test_cross_attention_keeps_the_choice_that_was_there(kitchen, monkeypatch):
    from ultragen_core.host.attention import backend

    monkeypatch.setattr(backend, "cudnn_is_faster", lambda device: True)
    monkeypatch.setattr(core, "optimized_attention", core.attention_pytorch)
    kernel, plain = load_kernel("int8"), torch.nn.Linear(2, 2)
    assert choose_attention(plain, {}, CPU, kernel).options[OVERRIDE].passed_on is backend.cudnn_attention
    monkeypatch.undo()
    monkeypatch.setattr(Int8Kernel, "device_types", ("cpu",))
    assert choose_attention(plain, {}, CPU, kernel).options[OVERRIDE].passed_on is None


@pytest.mark.parametrize(
    "kwargs", [{"mask": torch.zeros(12, 12)}, {"skip_reshape": True}, {"low_precision_attention": False}]
)
def test_anything_special_is_passed_on(kitchen, kwargs):
    seen = []

    def func(*args, **kw):
        seen.append(kw)
        return "ComfyUI's"

    override = KernelOverride(load_kernel("int8"), None)
    assert override(func, *QKV, HEADS, **kwargs) == "ComfyUI's" and seen == [kwargs] and not kitchen.calls
    assert override(func, *QKV, HEADS, None) == "ComfyUI's" and not kitchen.calls  # a mask by position


def test_compiled_graphs_call_the_function_that_they_know(kitchen, monkeypatch):
    override = KernelOverride(load_kernel("int8"), None)
    expected, operands = override(PYTORCH, *QKV, HEADS), list(QKV)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(override.self_attention_(operands, HEADS), expected)
    assert operands == [] and kitchen.freed == []


def test_the_estimate_counts_keys_and_values_in_int8(int8, dense, tiny_path):
    plain, ours = (
        runtime_of(apply(dense, Settings(attention_kernel=name), load_extras_file(tiny_path)))
        for name in ("comfyui", "int8")
    )
    shape = LATENT.shape
    more = ours.memory_required(dense.model, shape) - plain.memory_required(dense.model, shape)
    assert more == TOKENS * HEADS * HEAD_DIM * 4  # one map in float32


def test_the_plan_names_it_before_and_after_loading(int8, tiny_path):
    assert plan_of(int8("t3"), LATENT.shape).rule == "rule t3 in 4 of 4 blocks, attention comfy-kitchen int8"
    source = Source(tiny_path.name, tiny_path, "auto", "int8")
    assert preview(VideoSize(96, 64, 5), source).rule.endswith("attention comfy-kitchen int8")
    assert preview(VideoSize(96, 64, 5), source, [Patch(Settings())]).rule.endswith("blocks")


def test_a_later_apply_replaces_the_choice_and_warns(int8, caplog):
    model = int8("t3")
    assert runtime_of(apply(model, Settings(attention_kernel="int8"))).kernel and not caplog.text
    assert runtime_of(apply(model, Settings())).kernel is None
    assert "attention_kernel comfyui of this UltraGen Apply replaces comfy-kitchen int8" in caplog.text


@pytest.mark.parametrize("found", ["missing", "too old", "broken"])
def test_without_the_package_nothing_is_loaded(kitchen, dense, monkeypatch, tmp_path, found):
    if found == "missing":
        monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    elif found == "too old":
        monkeypatch.delattr(Kitchen, "prequantize_int8_attention")
    else:
        monkeypatch.delitem(sys.modules, "comfy_kitchen")
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "comfy_kitchen.py").write_text("raise RuntimeError('0 active drivers')")
    words = {"missing": "it is not installed", "too old": " is installed", "broken": "RuntimeError: 0 active drivers"}
    for load in (
        lambda: apply(dense, Settings(rule="t3", attention_kernel="int8")),
        lambda: load_model("not there.safetensors", "t3", attention_kernel="int8"),
    ):
        with pytest.raises(
            ValueError, match="needs comfy-kitchen 0.2.30 or newer, but .*set attention_kernel"
        ) as error:
            load()
        assert words[found] in str(error.value)


@pytest.mark.parametrize(
    ("device_types", "available", "backend", "message"),
    [
        (("cuda",), True, {}, "compute capability 7.5 or newer.*but this model runs on cpu. .*attention_kernel"),
        (("cpu",), True, {"disabled": True}, "PyTorch for CUDA 13.0 or newer.*this PyTorch is for CUDA .*kernel"),
        (("cpu",), False, {}, r"compute capability 7.5 or newer.*but got Tesla V100, 7.0. .*attention_kernel"),
        (("cpu",), False, {"unavailable_reason": "no file"}, r"comfy-kitchen has no kernel here \(no file\)"),
    ],
)
def test_a_device_without_it_is_refused_before_sampling(
    int8, kitchen, monkeypatch, device_types, available, backend, message
):
    monkeypatch.setattr(Int8Kernel, "device_types", device_types)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    kitchen.available, kitchen.backends = available, {"cuda": backend}
    model, evaluations = int8("ultragen"), []
    model.set_model_unet_function_wrapper(lambda *args: evaluations.append(args))
    with pytest.raises(ValueError, match=message):
        sample(model, LATENT.shape, CONTEXT)
    assert evaluations == []
    with pytest.raises(ValueError, match=message):  # another GPU than the model's may run a part of it
        velocity(int8("ultragen"), LATENT, CONTEXT, 0.5)


def test_what_does_not_fit_is_refused(kitchen):
    with pytest.raises(ValueError, match="heads of at most 256 channels, but this model's have 512. .*to comfyui"):
        load_kernel("int8", WanShape(blocks=1, channels=512, heads=1, ffn_channels=8))
    with pytest.raises(ValueError, match="attention_kernel must be one of comfyui, int8, fp8, got 'fp4'"):
        load_kernel("fp4")
    with pytest.raises(ValueError, match="attention_rule dense is ComfyUI's own attention, got attention_kernel int8"):
        load_model("not there.safetensors", "dense", attention_kernel="int8")
    assert load_kernel(RuleSettings().attention_kernel) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_real_kernel_is_near_exact_attention():
    device = torch.device("cuda")
    try:
        kernel = load_kernel("int8")
        kernel.require_device(device)
    except ValueError as refusal:
        pytest.skip(f"needs a GPU and a comfy-kitchen that support it: {refusal}")
    q, k, v = (seeded(2, 1500, 256, seed=i).to(device, torch.bfloat16) for i in range(3))
    expected = PYTORCH(q.float(), k.float(), v.float(), HEADS)
    override = KernelOverride(kernel, None)
    assert relative_error(override(PYTORCH, q, k, v, HEADS), expected) < 5e-2
    operands = [q[:, :400], k, v]
    assert relative_error(override.self_attention_(operands, HEADS), expected[:, :400]) < 5e-2 and operands == []
