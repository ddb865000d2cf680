"""Any latent under any settings through ComfyUI's own model and sampler: finite videos of the right shape, the same in
bounded memory, or a refusal that names a size; and a model left as it was.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from helpers.comfy_run import attn_state, sample, velocity
from helpers.strategies import few, global_configs, local_configs
from helpers.support import relative_error, seeded
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ultragen_core.attention.config import GlobalConfig
from ultragen_core.host.attention import runtime
from ultragen_core.host.attention.load import load_model
from ultragen_core.host.attention.patch import Settings, apply

CONTEXT = seeded(3, 16, 4096, seed=1)
PLENTY = 2**40  # bytes free; 0 makes the most pieces
latents = st.builds(
    lambda b, t, h, w: (b, 16, t, h, w), st.integers(1, 3), st.integers(1, 4), st.integers(1, 26), st.integers(1, 26)
)
dense_blocks = st.none() | st.frozensets(st.integers(0, 4))


@pytest.fixture(scope="module")
def models(tiny_path):
    """By the rule to apply: the tiny checkpoint with its extra weights, and without."""
    trained, base = (load_model(tiny_path, rule, {"dtype": torch.float32}) for rule in ("auto", "dense"))
    return {"auto": trained, "t3": base, "ultragen": base}


@st.composite
def chosen(draw):
    """A rule and settings that it takes."""
    rule = draw(st.sampled_from(["auto", "ultragen", "t3"]))
    if rule == "t3":
        return Settings(global_=GlobalConfig(dense_blocks=draw(dense_blocks)), rule=rule)
    global_ = draw(global_configs)
    ratio = draw(st.integers(1, 16)) if rule == "ultragen" else None  # trained weights fix it
    global_ = replace(global_, dense_blocks=draw(dense_blocks), compress_ratio=ratio)
    return Settings(draw(local_configs), global_, rule=rule)


@contextmanager
def allowing_refusal(settings):
    """The t3 rule may refuse a grid with too few divisors, such as 1x1x13; nothing else may raise."""
    try:
        yield
    except ValueError as refusal:
        if settings.rule != "t3" or "The nearest size that does" not in str(refusal):
            raise


@few
@given(chosen(), latents, st.floats(0.01, 1))
@example(Settings(rule="t3"), (1, 16, 1, 1, 25), 0.5)
def test_an_evaluation(models, settings, shape, sigma):
    model = apply(models[settings.rule], settings)
    x, context, state = seeded(*shape), CONTEXT[: shape[0]], attn_state(model)
    results = []
    with allowing_refusal(settings):
        for free in (PLENTY, 0):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(runtime, "free_memory", lambda base, device, free=free: free)
                results.append(velocity(apply(model, settings), x, context, sigma))
        assert results[0].shape == shape and torch.isfinite(results[0]).all()
        assert relative_error(results[1], results[0]) < 1e-5
    assert attn_state(model) == state


@few
@given(chosen(), latents, st.sampled_from([1.0, 5.0]), st.tuples(st.floats(0, 1), st.floats(0, 1)), st.integers(1, 2))
@example(Settings(rule="t3"), (1, 16, 1, 1, 25), 5.0, (0.0, 1.0), 1)
def test_a_run(models, settings, shape, cfg, percent, steps):
    start, end = sorted(percent)
    assume(start < end)
    model = apply(models[settings.rule], replace(settings, start_percent=start, end_percent=end))
    state = attn_state(model)
    with allowing_refusal(settings):
        video = sample(model, shape, CONTEXT[:1], steps, cfg)
        assert video.shape == shape and torch.isfinite(video).all()
    assert attn_state(model) == state and "memory_required" not in model.model.__dict__
