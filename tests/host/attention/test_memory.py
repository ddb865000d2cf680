"""Bounded activations: the same numbers for some tokens at a time, and peaks as they are predicted."""

from __future__ import annotations

import inspect

import comfy.ldm.modules.attention as core_attention
import comfy.ldm.wan.model as wan
import pytest
import torch
from helpers.comfy_run import attn_state, sample, spied, velocity
from helpers.support import relative_error, seeded

from ultragen_core.grid import TokenGrid
from ultragen_core.host.attention import runtime
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.host.attention.runtime import Runtime
from ultragen_core.host.wan_model import diffusion_model, shape_of, token_grid
from ultragen_core.plan.memory import MAX_PIECES, ActivationMemory
from ultragen_core.vae.memory import PeakMemoryMode
from ultragen_core.wan import WAN_1_3B

SHAPE = (1, 16, 3, 16, 24)
LATENT, CONTEXT = seeded(*SHAPE), seeded(1, 16, 4096, seed=1)
GIB = 2**30


@pytest.fixture
def small_card(monkeypatch):
    """set(bytes): what ComfyUI's memory manager says is free on every device."""

    def set_free(free):
        monkeypatch.setattr(runtime, "free_memory", lambda base, device: free)

    return set_free


@pytest.mark.parametrize("rule", ["ultragen", "t3"])
@pytest.mark.parametrize("batch", [1, 2])
def test_some_tokens_at_a_time_give_the_same_result(tiny, rule, batch, small_card):
    x, context = seeded(batch, *SHAPE[1:]), CONTEXT.expand(batch, -1, -1)
    whole = velocity(apply(tiny, Settings(rule=rule)), x, context, 0.5)
    small_card(0)
    model, calls = spied(apply(tiny, Settings(rule=rule)))
    bounded = velocity(model, x, context, 0.5)
    assert 0 < relative_error(bounded, whole) < 1e-5 or torch.equal(bounded, whole)
    assert len(calls) > 3 * MAX_PIECES


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("too much"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=["PyTorch's", "CUDA's", "Metal's", "cuDNN's"],
)
def test_memory_that_runs_out_halves_the_pieces_not_the_run(tiny, small_card, caplog, monkeypatch, error):
    """The first tries raise in the middle of a block; the evaluation continues with less at once."""
    whole, state = velocity(apply(tiny, Settings()), LATENT, CONTEXT, 0.5), attn_state(tiny)
    small_card(2**40)
    ffn, sizes = diffusion_model(tiny.model).blocks[2].ffn, []

    def greedy(x):
        sizes.append(x.shape[1])
        if x.shape[1] > 10:
            raise error
        return type(ffn).forward(ffn, x)

    monkeypatch.setattr(ffn, "forward", greedy)
    model = apply(tiny, Settings())
    assert relative_error(velocity(model, LATENT, CONTEXT, 0.5), whole) < 1e-5
    assert sizes[:3] == [288, 36, 18] and set(sizes[3:]) == {9}
    assert "out of memory, retrying with 9 tokens at a time" in caplog.text
    sizes.clear()
    velocity(model, LATENT, CONTEXT, 0.4)
    assert set(sizes) == {9}, "what was learnt is kept for the steps that follow"
    with pytest.raises(type(error)):
        velocity(apply(tiny, Settings(bounded_memory=False)), LATENT, CONTEXT, 0.5)
    monkeypatch.undo()
    assert attn_state(tiny) == state


def test_other_errors_end_the_run(tiny, small_card, monkeypatch):
    small_card(2**40)
    ffn, tries = diffusion_model(tiny.model).blocks[2].ffn, []

    def broken(x):
        tries.append(x.shape[1])
        raise RuntimeError("The size of tensor a must match the size of tensor b")

    monkeypatch.setattr(ffn, "forward", broken)
    with pytest.raises(RuntimeError, match="must match"):
        velocity(apply(tiny, Settings()), LATENT, CONTEXT, 0.5)
    assert len(tries) == 1


def test_unbounded_stays_whole_on_any_card(tiny, small_card):
    whole = velocity(tiny, LATENT, CONTEXT, 0.5)
    small_card(0)
    assert torch.equal(velocity(apply(tiny, Settings(bounded_memory=False)), LATENT, CONTEXT, 0.5), whole)


def test_a_card_with_room_leaves_dense_blocks_to_core(tiny, dense, small_card):
    """Bit-identical to ComfyUI in every block that is dense, because nothing there is replaced."""
    replaced = []
    small_card(2**40)
    with pytest.MonkeyPatch.context() as patch:
        inner = runtime.installed
        patch.setattr(runtime, "installed", lambda layers: replaced.extend(layers) or inner(layers))
        velocity(tiny, LATENT, CONTEXT, 0.5)
    assert replaced == [diffusion_model(tiny.model).blocks[i].self_attn for i in (1, 2)]


if "attn1_patch" in inspect.getsource(wan.WanSelfAttention.forward):  # newer ComfyUI

    def test_attention_patches_of_others_see_dense_blocks_as_core_makes_them(tiny, small_card):
        seen = []
        after = tiny.clone()
        after.set_model_attn1_patch(lambda a: seen.append(a["transformer_options"]["block_index"]) or a["x"])
        small_card(0)
        for model in (after, apply(after, Settings())):
            seen.clear()
            velocity(model, LATENT, CONTEXT, 0.5)
            assert seen == [0, 3]


@pytest.mark.parametrize("rule", ["ultragen", "t3"])
def test_peaks_are_as_predicted(tiny, rule, small_card, monkeypatch):
    """A block holds HELD_MAPS maps and the pieces little more, counted on every tensor of a whole evaluation."""
    monkeypatch.setattr(wan, "optimized_attention", core_attention.attention_pytorch)
    x, dm = seeded(1, 16, 4, 64, 96), diffusion_model(tiny.model)
    activations = ActivationMemory.of(shape_of(dm), token_grid(x.shape), 1, 4)
    one_map = activations.tokens * dm.dim * 4
    weights = sum(patcher.model_size() for patcher in (tiny, *tiny.get_nested_additional_models()))
    peaks = {}
    for bounded in (False, True):
        small_card(0 if bounded else 2**40)
        model = apply(tiny, Settings(rule=rule))
        with PeakMemoryMode() as memory:
            velocity(model, x, CONTEXT, 0.5)
        peaks[bounded] = memory.peak
    held = weights + activations.held  # a toy's window is an eighth of a map, and so is each of its projections
    assert held - one_map < peaks[True] < held + 1.5 * one_map < peaks[False]


def test_what_comfyui_keeps_free_is_what_is_needed(tiny, monkeypatch):
    """ComfyUI plans for our peak while a run lasts, and for its own afterwards."""
    asked = []
    inner = Runtime.memory_required
    monkeypatch.setattr(Runtime, "memory_required", lambda *a, **k: asked.append(inner(*a, **k)) or asked[-1])
    sample(tiny, SHAPE, CONTEXT, steps=1)
    dm = diffusion_model(tiny.model)
    two, one = (ActivationMemory.of(shape_of(dm), token_grid(SHAPE), batch, 4) for batch in (2, 1))
    assert asked[:2] == [two.planned(True), one.planned(True)]
    assert "memory_required" not in tiny.model.__dict__
    asked.clear()
    sample(apply(tiny, Settings(end_percent=0.5)), SHAPE, CONTEXT, steps=1)
    assert asked[:2] == [two.planned(False), one.planned(False)], "steps of ComfyUI's own need the whole"


@pytest.mark.parametrize(("free_gib", "pieces"), [(40, 1), (3.7, 7), (3, 19), (1, MAX_PIECES)])
def test_pieces_are_few_and_large(free_gib, pieces):
    """Wan 2.1 1.3B at 1920x1088, 81 frames, 16 bit."""
    activations = ActivationMemory.of(WAN_1_3B, TokenGrid(21, 68, 120), 1, 2)
    assert activations.budget(int(free_gib * GIB)).pieces == pieces
