"""comfy.ldm.modules.attention: attention functions and how a pack overrides them."""

from __future__ import annotations

import comfy.ldm.modules.attention as attention_module
import torch
from helpers.signatures import parameters
from helpers.support import dense_attention, seeded

OVERRIDE = "optimized_attention_override"


def overridden(**more) -> list:
    """What an override of attention_pytorch gets."""
    seen = []

    def override(function, *args, **kwargs):
        seen.extend((function, args, kwargs))
        return function(*args, **kwargs)

    options = {"transformer_options": {OVERRIDE: override}}
    attention_module.attention_pytorch(*(seeded(1, 6, 8, seed=seed) for seed in range(3)), heads=2, **options, **more)
    return seen


def test_attention_pytorch_has_a_function_inside():
    assert callable(attention_module.attention_pytorch.__wrapped__)
    assert parameters(attention_module.attention_pytorch)[:5] == ["q", "k", "v", "heads", "mask"]


def test_an_override_gets_the_function_inside_and_plain_tensors():
    function, args, kwargs = overridden()
    assert function is attention_module.attention_pytorch.__wrapped__
    assert all(isinstance(each, torch.Tensor) and each.shape == (1, 6, 8) for each in args) and len(args) == 3
    assert kwargs.keys() - {"heads"} <= {"transformer_options", "_inside_attn_wrapper"}


def test_an_override_gets_no_wish_for_another_attention():
    if hasattr(attention_module, "ComfyAttention"):  # later than 0.33.0
        assert "preferred_attention" not in overridden(preferred_attention=None)[2]


def test_attention_pytorch_computes_plain_attention():
    q, k, v = (seeded(1, 6, 8, seed=seed) for seed in range(3))
    torch.testing.assert_close(attention_module.attention_pytorch(q, k, v, heads=2), dense_attention(q, k, v, 2))
