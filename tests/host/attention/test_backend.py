"""Which attention runs: the user's choice first, then the faster backend, and the same numbers either way."""

from __future__ import annotations

import comfy.ldm.modules.attention as core
import pytest
import torch
from helpers.support import relative_error, seeded

from ultragen_core.host.attention import backend
from ultragen_core.host.attention.backend import OVERRIDE, with_fast_attention

CPU = torch.device("cpu")
PYTORCH = core.attention_pytorch.__wrapped__
QKV = [seeded(2, 12, 32, seed=i) for i in range(3)]


def test_nothing_changes_where_cudnn_is_not():
    options = {"a": 1}
    assert with_fast_attention(options, CPU) is options


def test_an_override_of_the_user_stays(monkeypatch):
    monkeypatch.setattr(backend, "cudnn_is_faster", lambda device: True)
    options = {OVERRIDE: print}
    assert with_fast_attention(options, CPU) is options
    plain = {"a": 1}
    assert with_fast_attention(plain, CPU).keys() == {"a", OVERRIDE} and plain == {"a": 1}


def test_the_environment_switches_it_off(monkeypatch):
    monkeypatch.setenv("ULTRAGEN_ATTENTION", "core")
    backend.cudnn_is_faster.cache_clear()
    assert not backend.cudnn_is_faster(torch.device("cuda"))
    backend.cudnn_is_faster.cache_clear()


def test_it_takes_core_plain_attention_over_with_the_same_numbers(monkeypatch):
    monkeypatch.setattr(backend, "cudnn_is_faster", lambda device: True)
    ran = []
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(backend.F, "scaled_dot_product_attention", lambda *a, **k: ran.append(1) or sdpa(*a, **k))
    expected = PYTORCH(*QKV, 4)
    ran.clear()
    result = core.attention_pytorch(*QKV, heads=4, transformer_options=with_fast_attention({}, CPU))
    assert ran and result.shape == expected.shape and relative_error(result, expected) < 1e-6


@pytest.mark.parametrize("kwargs", [{"mask": torch.zeros(12, 12)}, {"skip_reshape": True}, {"scale": 0.5}])
def test_anything_special_goes_to_core(kwargs):
    seen = []

    def func(*args, **kw):
        seen.append(kw)
        return "core's"

    assert backend._cudnn_attention(func, *QKV, 4, **kwargs) == "core's"
    assert seen == [kwargs]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_choice_draws_nothing_from_the_generator_of_samplers():
    """The first video after a start would differ from the second."""
    before = torch.cuda.get_rng_state()
    backend.cudnn_is_faster.__wrapped__(torch.device("cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), before)
