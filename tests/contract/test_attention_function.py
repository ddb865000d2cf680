"""comfy.ldm.modules.attention: attention functions and how a pack overrides them."""

from __future__ import annotations

import comfy.ldm.modules.attention as attention_module
import torch
from helpers.signatures import needs, parameters
from helpers.support import dense_attention, seeded

OVERRIDE = "optimized_attention_override"
QKV = tuple(seeded(1, 6, 8, seed=seed) for seed in range(3))
WISHES = needs(hasattr(attention_module, "ComfyAttention"), "wishes of checkpoints, which came with 0.40")
CONTAINERS = needs(hasattr(attention_module, "AttentionTensorContainer"), "containers, which came after 0.30")


def overridden(wrap=lambda x: x, **more) -> list:
    """What an override of attention_pytorch gets. wrap: applied to q, k and v."""
    seen = []

    def override(function, *args, **kwargs):
        seen.extend((function, args, kwargs))
        return function(*args, **kwargs)

    options = {"transformer_options": {OVERRIDE: override}}
    attention_module.attention_pytorch(*map(wrap, QKV), heads=2, **options, **more)
    return seen


def test_attention_pytorch_has_a_function_inside():
    assert callable(attention_module.attention_pytorch.__wrapped__)
    assert parameters(attention_module.attention_pytorch)[:5] == ["q", "k", "v", "heads", "mask"]


def test_an_override_gets_the_function_inside_and_plain_tensors():
    function, args, kwargs = overridden()
    assert function is attention_module.attention_pytorch.__wrapped__
    assert all(isinstance(each, torch.Tensor) and each.shape == (1, 6, 8) for each in args) and len(args) == 3
    assert kwargs.keys() - {"heads"} <= {"transformer_options", "_inside_attn_wrapper"}


def wish(answer: str):
    made = attention_module.ComfyAttention()
    assert made.function is None
    made.function = lambda *args, **kwargs: answer
    return made


@WISHES
def test_an_override_goes_before_a_wish_and_does_not_get_it():
    function, _, kwargs = overridden(preferred_attention=wish("wished"))
    assert function is attention_module.attention_pytorch.__wrapped__ and "preferred_attention" not in kwargs


@WISHES
def test_a_wish_goes_before_comfyuis_choice():
    options = {"heads": 2, "transformer_options": {}}
    assert attention_module.attention_pytorch(*QKV, **options, preferred_attention=wish("wished")) == "wished"


@CONTAINERS
def test_an_override_gets_what_containers_hold():
    _, args, _ = overridden(attention_module.AttentionTensorContainer)
    assert all(map(torch.equal, args, QKV))


@CONTAINERS
def test_a_container_gives_its_tensor_away_once():
    held = [attention_module.AttentionTensorContainer(x) for x in QKV]
    attention_module.attention_pytorch(*held, heads=2)
    assert all(each.tensor is None for each in held)


def test_attention_pytorch_computes_plain_attention():
    torch.testing.assert_close(attention_module.attention_pytorch(*QKV, heads=2), dense_attention(*QKV, 2))
