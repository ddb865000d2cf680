"""Which attention runs: what somebody asked for first, then the fastest backend, and the same numbers either way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import comfy.ldm.modules.attention as core
import comfy.ldm.wan.model as wan
import pytest
import torch
from comfy.ldm.flux.math import apply_rope1
from helpers.comfy_run import sample, spied, velocity
from helpers.support import relative_error, seeded
from torch import nn

from ultragen_core.attention.config import GlobalConfig
from ultragen_core.host.attention import backend
from ultragen_core.host.attention.backend import OVERRIDE, choose_attention
from ultragen_core.host.attention.patch import Settings, apply

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PYTORCH = core.attention_pytorch.__wrapped__
QKV = [seeded(2, 12, 32, seed=i).bfloat16() for i in range(3)]
PLAIN = nn.Linear(2, 2)
LATENT, CONTEXT = seeded(1, 16, 3, 16, 24), seeded(1, 7, 4096)


@pytest.fixture
def faster(monkeypatch):
    """cuDNN counts as faster, and ComfyUI would use plain PyTorch attention."""
    monkeypatch.setattr(backend, "cudnn_is_faster", lambda device: True)
    monkeypatch.setattr(core, "optimized_attention", core.attention_pytorch)


@pytest.fixture
def cudnn_calls(monkeypatch):
    """Calls of cuDNN's attention, which PyTorch's own computes here. They come without gradients, as in sampling."""
    calls, sdpa = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(backend, "cudnn_sdpa", lambda *qkv: calls.append(1) or sdpa(*qkv))
    with torch.no_grad():
        yield calls


def wishing(function=PYTORCH) -> nn.Module:
    """A model whose checkpoint asks for an attention function, as ComfyUI has it from 0.40 on."""
    model = nn.Linear(2, 2)
    model.comfy_attention = Wish()
    model.comfy_attention.function = function
    return model


def test_nothing_changes_where_cudnn_is_not():
    choice = choose_attention(PLAIN, {"a": 1}, CPU)
    assert choice.options == {} and choice.asked_by == "ComfyUI's choice"


def test_the_faster_backend_where_nobody_has_chosen(faster):
    choice = choose_attention(PLAIN, {"a": 1}, CPU)
    assert choice.options == {OVERRIDE: backend.cudnn_attention}
    assert str(choice) == "attention cuDNN (fastest of PyTorch's on this GPU)"


def test_the_command_line_is_respected(faster, monkeypatch):
    monkeypatch.setattr(core, "optimized_attention", core.attention_split)
    choice = choose_attention(PLAIN, {}, CPU)
    assert choice.options == {} and str(choice) == "attention attention_split (ComfyUI's choice)"


def test_the_checkpoint_is_respected(faster):
    choice = choose_attention(wishing(), {}, CPU)
    assert choice.options == {} and choice.asked_by == "asked for by the checkpoint"
    assert choose_attention(wishing(None), {}, CPU).options  # a module that could wish, and does not


def test_an_override_is_respected(faster):
    def theirs(func, *args, **kwargs):
        return "theirs"

    choice = choose_attention(PLAIN, {OVERRIDE: theirs}, CPU)
    assert choice.options[OVERRIDE](PYTORCH, *QKV, 4) == "theirs"
    assert choice.asked_by == "set by a node or another pack" and not choice.sparse
    assert choose_attention(wishing(), {OVERRIDE: theirs}, CPU).options == {}


def test_calls_that_an_override_passes_on_keep_the_speed(faster, cudnn_calls):
    """Of an override that acts on long sequences only, as sparse attention does."""

    def sparse_attention(func, q, k, v, heads, **kwargs):
        return "sparse" if q.shape[1] > 12 else func(q, k, v, heads, **kwargs)

    options = {OVERRIDE: sparse_attention}
    choice = choose_attention(PLAIN, options, CPU)
    assert choice.sparse
    result = core.attention_pytorch(*QKV, heads=4, transformer_options=options | choice.options)
    assert len(cudnn_calls) == 1 and relative_error(result, PYTORCH(*QKV, 4)) < 1e-6
    long = [seeded(1, 24, 32).bfloat16()] * 3
    assert core.attention_pytorch(*long, heads=4, transformer_options=options | choice.options) == "sparse"


@pytest.fixture
def measurements(monkeypatch, request):
    """GPUs of a kind that was not measured before, and what measuring does: the function that a test puts there."""
    gpus = SimpleNamespace(kind=request.node.name, measure=None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpus.kind)
    monkeypatch.setattr(backend, "_compare_on_current_device", lambda: gpus.measure())
    return gpus


def test_the_environment_switches_it_off(measurements, monkeypatch):
    measurements.measure = lambda: (True, 2.0, 1.0)
    monkeypatch.setenv("ULTRAGEN_ATTENTION", "comfyui")
    assert not backend.cudnn_is_faster(GPU)
    monkeypatch.delenv("ULTRAGEN_ATTENTION")
    assert backend.cudnn_is_faster(GPU)


def test_memory_that_runs_out_while_measuring_is_not_remembered(measurements):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    measurements.measure = full
    assert not backend.cudnn_is_faster(GPU)
    measurements.measure = lambda: (True, 2.0, 1.0)
    assert backend.cudnn_is_faster(GPU)


def test_gpus_of_one_kind_compute_with_one_kernel(measurements):
    """Each measured its own, on a busy host: one chose FlashAttention, and the others waited for it in every block."""
    times = iter([1.0, 1.9, 1.9, 1.9, 1.9])
    measurements.measure = lambda: (True, 2.0, next(times))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(backend.cudnn_is_faster, [torch.device("cuda", index) for index in range(4)]))
    measurements.kind += ", another"
    assert not backend.cudnn_is_faster(GPU)


def test_it_replaces_plain_attention_with_the_same_numbers(faster, cudnn_calls):
    expected = PYTORCH(*QKV, 4)
    cudnn_calls.clear()
    result = core.attention_pytorch(*QKV, heads=4, transformer_options=choose_attention(PLAIN, {}, CPU).options)
    assert cudnn_calls and result.shape == expected.shape and relative_error(result, expected) < 1e-6


@pytest.mark.parametrize("kwargs", [{"mask": torch.zeros(12, 12)}, {"skip_reshape": True}, {"scale": 0.5}])
def test_anything_special_goes_to_comfyui(kwargs):
    seen = []

    def func(*args, **kw):
        seen.append(kw)
        return "ComfyUI's"

    assert backend.cudnn_attention(func, *QKV, 4, **kwargs) == "ComfyUI's"
    assert seen == [kwargs]


@pytest.mark.parametrize(
    ("operands", "heads"),
    [
        ([x.float() for x in QKV], 4),
        (QKV, 8),  # 4 channels a head
        ([seeded(2, 12, 512).bfloat16()] * 3, 2),  # 256 channels a head
        ([QKV[0], *(x[:, :1] for x in QKV[1:])], 4),  # one key
    ],
)
def test_what_cudnn_does_not_take_goes_to_comfyui(cudnn_calls, operands, heads):
    assert torch.equal(backend.cudnn_attention(PYTORCH, *operands, heads), PYTORCH(*operands, heads))
    assert not cudnn_calls


def test_calls_with_gradients_go_to_comfyui(cudnn_calls):
    with torch.enable_grad():
        backend.cudnn_attention(PYTORCH, *QKV, 4)
    assert not cudnn_calls


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cudnn_called_directly_gives_what_pytorch_gives():
    if not backend.cudnn_is_faster(torch.device("cuda")):
        pytest.skip("this GPU runs ComfyUI's attention")
    operands = [seeded(3, 700, 256, seed=seed).cuda().bfloat16() for seed in range(3)]
    with torch.no_grad():
        assert relative_error(backend.cudnn_attention(PYTORCH, *operands, 2), PYTORCH(*operands, 2)) < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_choice_draws_nothing_from_the_generator_of_samplers():
    """The first video after a start would differ from the second."""
    before = torch.cuda.get_rng_state()
    backend._compare_on_current_device()
    assert torch.equal(torch.cuda.get_rng_state(), before)


class Wish(nn.Module):
    """As ComfyUI's ComfyAttention, which every attention of a Wan model has from 0.40 on."""

    function = None


class Container:
    """As ComfyUI's AttentionTensorContainer: gives its tensor away once."""

    def __init__(self, tensor):
        self.tensor = tensor

    def take(self):
        tensor, self.tensor = self.tensor, None
        return tensor


def self_attention(module, x, freqs, transformer_options=None):
    shape = (*x.shape[:2], module.num_heads, module.head_dim)
    q, k = (
        apply_rope1(norm(linear(x)).view(shape), freqs).flatten(2)
        for norm, linear in ((module.norm_q, module.q), (module.norm_k, module.k))
    )
    return attended(module, q, k, module.v(x), transformer_options)


def cross_attention(module, x, context, transformer_options=None, **_):
    q, k = module.norm_q(module.q(x)), module.norm_k(module.k(context))
    return attended(module, q, k, module.v(context), transformer_options)


def attended(module, q, k, v, options):
    qkv, wish = map(Container, (q, k, v)), module.comfy_attention
    attention = wan.optimized_attention
    return module.o(attention(*qkv, heads=module.num_heads, preferred_attention=wish, transformer_options=options))


class NewestAttention:
    """ComfyUI's attention as of 0.40 in a model: an override goes before a wish, and that before ComfyUI's choice.

    calls: who was asked, of each call. wishes: of the model's attention modules.
    """

    def __init__(self, model, monkeypatch):
        self.calls: list[str] = []
        attentions = [each for each in model.model.diffusion_model.modules() if isinstance(each, wan.WanSelfAttention)]
        if not hasattr(attentions[0], "comfy_attention"):  # an older ComfyUI
            monkeypatch.setattr(wan.WanSelfAttention, "forward", self_attention)
            monkeypatch.setattr(wan.WanT2VCrossAttention, "forward", cross_attention)
            for each in attentions:
                each.comfy_attention = Wish()
        self.wishes = [each.comfy_attention for each in attentions]
        monkeypatch.setattr(wan, "AttentionTensorContainer", Container, raising=False)
        monkeypatch.setattr(wan, "optimized_attention", self.attention)

    def attention(self, *qkv, preferred_attention=None, **kwargs):
        qkv, override = [each.take() for each in qkv], kwargs["transformer_options"].get(OVERRIDE)
        wish = getattr(preferred_attention, "function", None)
        self.calls.append("override" if override else "checkpoint" if wish else "ComfyUI")
        return override(PYTORCH, *qkv, **kwargs) if override else (wish or PYTORCH)(*qkv, **kwargs)


@pytest.mark.parametrize("rule", ["ultragen", "t3"])
@pytest.mark.parametrize("memory", ["all at once", "bounded"])
def test_the_wish_of_a_checkpoint_is_followed_in_every_attention(
    faster, cudnn_calls, tiny, rule, memory, bounded, monkeypatch
):
    """Dense, windowed and cross-attention; where nobody wishes, all are cuDNN's."""
    if memory == "bounded":
        bounded()
    monkeypatch.setattr(backend, "cudnn_takes", lambda *call: True)  # this model's float32 too
    expected = velocity(apply(tiny, Settings(rule=rule)), LATENT, CONTEXT, 0.5)
    newest = NewestAttention(tiny, monkeypatch)
    cudnn_calls.clear()
    assert relative_error(velocity(apply(tiny, Settings(rule=rule)), LATENT, CONTEXT, 0.5), expected) < 1e-5
    assert set(newest.calls) == {"override"} and len(newest.calls) == len(cudnn_calls) >= 8

    wished, made = [], newest.calls[:]
    for wish in newest.wishes:
        wish.function = lambda *args, **kwargs: wished.append(1) or PYTORCH(*args, **kwargs)
    newest.calls.clear()
    assert relative_error(velocity(apply(tiny, Settings(rule=rule)), LATENT, CONTEXT, 0.5), expected) < 1e-5
    assert set(newest.calls) == {"checkpoint"} and len(wished) == len(made)


def test_an_override_gets_every_call_also_where_a_checkpoint_wishes(faster, tiny, monkeypatch):
    newest, (model, calls) = NewestAttention(tiny, monkeypatch), spied(tiny)
    plain = velocity(tiny, LATENT, CONTEXT, 0.5)
    newest.calls.clear()
    for wish in newest.wishes:
        wish.function = PYTORCH
    assert relative_error(velocity(model, LATENT, CONTEXT, 0.5), plain) < 1e-5
    assert set(newest.calls) == {"override"} and len(calls) == len(newest.calls) >= 8


def test_the_log_names_the_attention_once_a_run_and_warns_of_sparse_ones(tiny, caplog, monkeypatch):
    def radial_attention(func, *args, **kwargs):
        return func(*args, **kwargs)

    caplog.set_level("INFO")
    model = tiny.clone()
    sample(model, LATENT.shape, CONTEXT, steps=2)
    assert caplog.text.count("UltraGen: attention ") == 1 and "skips tokens" not in caplog.text
    caplog.clear()
    model.model_options["transformer_options"][OVERRIDE] = radial_attention
    sample(model, LATENT.shape, CONTEXT, steps=2)
    assert caplog.text.count("set by a node or another pack") == 1
    assert caplog.text.count("radial_attention skips tokens inside UltraGen's windows") == 1


def test_where_a_rule_takes_no_block_comfyui_keeps_its_memory_estimate(tiny, caplog):
    seen, every = [], GlobalConfig(dense_blocks=frozenset(range(4)))
    model = apply(tiny, Settings(global_=every))
    model.set_model_sampler_pre_cfg_function(
        lambda args: seen.append("memory_required" in vars(model.model)) or args["conds_out"]
    )
    sample(model, LATENT.shape, CONTEXT, steps=1)
    assert seen == [False] and "nothing to do" in caplog.text
