"""Which attention runs: what somebody asked for first, then the fastest backend, and the same numbers either way."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.ldm.modules.attention as core
import comfy.ldm.wan.model as wan
import pytest
import torch
from helpers.comfy_run import sample, velocity
from helpers.support import relative_error, seeded
from torch import nn

from ultragen_core.attention.config import GlobalConfig
from ultragen_core.host.attention import backend
from ultragen_core.host.attention.backend import OVERRIDE, choose_attention
from ultragen_core.host.attention.patch import Settings, apply

CPU = torch.device("cpu")
PYTORCH = core.attention_pytorch.__wrapped__
QKV = [seeded(2, 12, 32, seed=i) for i in range(3)]
PLAIN = nn.Linear(2, 2)
LATENT, CONTEXT = seeded(1, 16, 3, 16, 24), seeded(1, 7, 4096)


@pytest.fixture
def faster(monkeypatch):
    """cuDNN counts as faster, and ComfyUI would use plain PyTorch attention."""
    monkeypatch.setattr(backend, "cudnn_is_faster", lambda device: True)
    monkeypatch.setattr(core, "optimized_attention", core.attention_pytorch)


@pytest.fixture
def sdpa_calls(monkeypatch):
    calls, sdpa = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(backend.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or sdpa(*a, **k))
    return calls


def wishing(function=PYTORCH) -> nn.Module:
    """A model whose checkpoint asks for an attention function, as ComfyUI has it from 0.40 on."""
    model = nn.Linear(2, 2)
    model.comfy_attention = SimpleNamespace(function=function)
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


def test_calls_that_an_override_passes_on_keep_the_speed(faster, sdpa_calls):
    """Of an override that acts on long sequences only, as sparse attention does."""

    def sparse_attention(func, q, k, v, heads, **kwargs):
        return "sparse" if q.shape[1] > 12 else func(q, k, v, heads, **kwargs)

    options = {OVERRIDE: sparse_attention}
    choice = choose_attention(PLAIN, options, CPU)
    assert choice.sparse
    result = core.attention_pytorch(*QKV, heads=4, transformer_options=options | choice.options)
    assert len(sdpa_calls) == 1 and relative_error(result, PYTORCH(*QKV, 4)) < 1e-6
    long = [seeded(1, 24, 32)] * 3
    assert core.attention_pytorch(*long, heads=4, transformer_options=options | choice.options) == "sparse"


def test_the_environment_switches_it_off(monkeypatch):
    monkeypatch.setenv("ULTRAGEN_ATTENTION", "comfyui")
    backend.measure_cudnn.cache_clear()
    assert not backend.cudnn_is_faster(torch.device("cuda"))
    backend.measure_cudnn.cache_clear()


def test_memory_that_runs_out_while_measuring_is_not_remembered(monkeypatch):
    def full(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend, "measure_cudnn", full)
    assert not backend.cudnn_is_faster(CPU)
    monkeypatch.setattr(backend, "measure_cudnn", lambda device: True)
    assert backend.cudnn_is_faster(CPU)


def test_it_replaces_plain_attention_with_the_same_numbers(faster, sdpa_calls):
    expected = PYTORCH(*QKV, 4)
    sdpa_calls.clear()
    result = core.attention_pytorch(*QKV, heads=4, transformer_options=choose_attention(PLAIN, {}, CPU).options)
    assert sdpa_calls and result.shape == expected.shape and relative_error(result, expected) < 1e-6


@pytest.mark.parametrize("kwargs", [{"mask": torch.zeros(12, 12)}, {"skip_reshape": True}, {"scale": 0.5}])
def test_anything_special_goes_to_comfyui(kwargs):
    seen = []

    def func(*args, **kw):
        seen.append(kw)
        return "ComfyUI's"

    assert backend.cudnn_attention(func, *QKV, 4, **kwargs) == "ComfyUI's"
    assert seen == [kwargs]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_choice_draws_nothing_from_the_generator_of_samplers():
    """The first video after a start would differ from the second."""
    before = torch.cuda.get_rng_state()
    backend.measure_cudnn.__wrapped__(torch.device("cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), before)


class Container:
    """As ComfyUI's from 0.40 on: gives its tensor away once."""

    def __init__(self, tensor):
        self.tensor = tensor

    def take(self):
        tensor, self.tensor = self.tensor, None
        return tensor


@pytest.fixture
def newest_attention(monkeypatch):
    """ComfyUI's attention as of 0.40: containers, and an override before a preferred function before its own.

    Returns the calls as (who computed, whether operands came in containers).
    """
    calls = []

    def attention(q, k, v, heads, mask=None, transformer_options=None, preferred_attention=None, **kwargs):
        contained = isinstance(q, Container)
        q, k, v = (x.take() if isinstance(x, Container) else x for x in (q, k, v))
        override = (transformer_options or {}).get(OVERRIDE)
        if override is not None:
            calls.append(("override", contained))
            return override(PYTORCH, q, k, v, heads, mask=mask, transformer_options=transformer_options)
        calls.append(("ComfyUI" if preferred_attention is None else "checkpoint", contained))
        function = PYTORCH if preferred_attention is None else preferred_attention.function
        return function(q, k, v, heads, mask=mask)

    monkeypatch.setattr(wan, "AttentionTensorContainer", Container, raising=False)
    monkeypatch.setattr(wan, "optimized_attention", attention)
    return calls


@pytest.mark.parametrize("rule", ["ultragen", "t3"])
@pytest.mark.parametrize("memory", ["all at once", "bounded"])
def test_the_wish_of_a_checkpoint_is_followed_in_our_layers(newest_attention, faster, tiny, rule, memory, request):
    if memory == "bounded":
        request.getfixturevalue("bounded")()
    model = apply(tiny, Settings(rule=rule))
    expected = velocity(model, LATENT, CONTEXT, 0.5)
    assert ("override", True) in newest_attention and ("checkpoint", True) not in newest_attention
    for block in model.model.diffusion_model.blocks:
        block.self_attn.comfy_attention = SimpleNamespace(function=PYTORCH)
    newest_attention.clear()
    try:
        result = velocity(apply(tiny, Settings(rule=rule)), LATENT, CONTEXT, 0.5)  # another run
    finally:
        for block in model.model.diffusion_model.blocks:
            del block.self_attn.comfy_attention
    # This version's own dense and cross attention knows no wishes; from 0.40 on it follows them itself.
    own = [who for who, contained in newest_attention if contained]
    assert own and set(own) == {"checkpoint"} and "override" not in dict(newest_attention)
    assert relative_error(result, expected) < 1e-5


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
