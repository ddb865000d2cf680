"""The patch on ComfyUI's own model, patcher, samplers and memory manager: on, off, cloned, interleaved, interrupted."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.sd
import pytest
import torch
from helpers.comfy_run import attn_state, sample, velocity
from helpers.support import relative_error, seeded

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.gate import GateLine
from ultragen_core.host.attention.extras import KEY
from ultragen_core.host.attention.patch import Settings, apply, runtime_of
from ultragen_core.rules.ultragen import UNTRAINED_WARNING

SHAPE = (1, 16, 3, 16, 24)
LATENT, CONTEXT = seeded(*SHAPE), seeded(1, 16, 4096, seed=1)


def test_the_patch_does_something(tiny, dense):
    a, b = (velocity(model, LATENT, CONTEXT, 0.5) for model in (tiny, dense))
    assert relative_error(a, b) > 1e-3


@pytest.mark.parametrize(("percent", "sigma"), [((0.0, 0.4), 0.2), ((0.7, 1.0), 0.999)])
def test_outside_start_and_end_percent_it_is_core_bit_for_bit(tiny, dense, percent, sigma):
    bypassed = apply(tiny, Settings(start_percent=percent[0], end_percent=percent[1]))
    assert torch.equal(velocity(bypassed, LATENT, CONTEXT, sigma), velocity(dense, LATENT, CONTEXT, sigma))


def test_all_blocks_dense_is_core_bit_for_bit(tiny, dense):
    bypassed = apply(tiny, Settings(global_=GlobalConfig(dense_blocks=frozenset(range(4)))))
    assert torch.equal(velocity(bypassed, LATENT, CONTEXT, 0.5), velocity(dense, LATENT, CONTEXT, 0.5))


def test_one_window_and_local_gates_agree_with_dense_attention(tiny, dense):
    whole = LocalConfig(windows=(1, 1), hierarchical_windows=(1, 1), gate=GateLine(1.0, 1.0))
    patched = apply(tiny, Settings(whole, GlobalConfig(gate=GateLine(1.0, 1.0))))
    assert relative_error(velocity(patched, LATENT, CONTEXT, 0.5), velocity(dense, LATENT, CONTEXT, 0.5)) < 1e-5


def test_applying_twice_is_applying_once_and_keeps_the_extras(tiny):
    once = apply(tiny, Settings())
    assert torch.equal(velocity(apply(once, Settings()), LATENT, CONTEXT, 0.5), velocity(tiny, LATENT, CONTEXT, 0.5))
    assert len(once.get_additional_models_with_key(KEY)) == 1


def test_trained_defaults_are_the_published_layout_bit_for_bit(tiny, dense):
    """Whatever the defaults without trained weights are. The golden numbers pin the values themselves."""
    published = Settings(
        LocalConfig(windows=(4, 5), hierarchical_windows=(2, 3), uneven="resize"),
        GlobalConfig(enabled=True, compress_ratio=4, dense_blocks=frozenset()),
    )
    for sigma in (0.9, 0.2):
        trained, spelled_out = (velocity(model, LATENT, CONTEXT, sigma) for model in (tiny, apply(tiny, published)))
        assert torch.equal(trained, spelled_out)
    untrained, other = (apply(dense, replace(settings, rule="ultragen")) for settings in (Settings(), published))
    assert not torch.equal(velocity(untrained, LATENT, CONTEXT, 0.9), velocity(other, LATENT, CONTEXT, 0.9))


def test_the_incoming_model_is_never_changed(dense):
    before, state = velocity(dense, LATENT, CONTEXT, 0.5), attn_state(dense)
    patched = apply(dense, Settings(rule="ultragen"))
    velocity(patched, LATENT, CONTEXT, 0.5)
    assert attn_state(dense) == state
    assert torch.equal(velocity(dense, LATENT, CONTEXT, 0.5), before)


def test_two_clones_with_different_settings_interleave(tiny):
    a, b = tiny, apply(tiny, Settings(LocalConfig(windows=(2, 3)), GlobalConfig(enabled=False)))
    first = [velocity(model, LATENT, CONTEXT, 0.5) for model in (a, b)]
    again = [velocity(model, LATENT, CONTEXT, 0.5) for model in (a.clone(), b, a)]
    assert torch.equal(again[0], first[0]) and torch.equal(again[2], first[0]) and torch.equal(again[1], first[1])
    assert relative_error(*first) > 1e-4


@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_an_exception_in_the_model_leaves_nothing_behind(tiny, error, monkeypatch):
    before, state = velocity(tiny, LATENT, CONTEXT, 0.5), attn_state(tiny)
    block = tiny.model.diffusion_model.blocks[2]
    with monkeypatch.context() as patch:
        patch.setattr(block.ffn, "forward", lambda *a: (_ for _ in ()).throw(error("stop")))
        with pytest.raises(error):
            velocity(tiny, LATENT, CONTEXT, 0.5)
    assert attn_state(tiny) == state
    assert torch.equal(velocity(tiny, LATENT, CONTEXT, 0.5), before)


def test_another_packs_patch_on_a_block_returns(tiny, dense, caplog):
    calls = []
    attn = dense.model.diffusion_model.blocks[1].self_attn
    original = attn.forward
    other = tiny.clone()
    other.add_object_patch(
        "diffusion_model.blocks.1.self_attn.forward", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    velocity(other, LATENT, CONTEXT, 0.5)
    assert not calls, "inside a run UltraGen's attention is what runs on its blocks"
    assert caplog.text.count("what another pack has put in place of self-attention acts on dense blocks only") == 1
    caplog.clear()
    velocity(apply(other, Settings(end_percent=0.2)), LATENT, CONTEXT, 0.1)
    assert calls, "outside start and end percent the other pack's patch is active"
    velocity(tiny, LATENT, CONTEXT, 0.5)
    assert "another pack" not in caplog.text, "ComfyUI has taken it off"


def test_another_packs_patch_on_a_dense_block_acts_on_a_small_card_too(tiny, bounded):
    """It is theirs that runs there, however much memory is free."""
    model, block = tiny.clone(), tiny.model.diffusion_model.blocks[0]
    original = block.self_attn.forward
    model.add_object_patch("diffusion_model.blocks.0.self_attn.forward", lambda *a, **k: 0.5 * original(*a, **k))
    whole = velocity(model, LATENT, CONTEXT, 0.5)
    assert relative_error(velocity(tiny, LATENT, CONTEXT, 0.5), whole) > 1e-3
    rooms = bounded()
    assert relative_error(velocity(apply(model, Settings()), LATENT, CONTEXT, 0.5), whole) < 1e-5 and rooms


def test_weightless_run_is_labelled_and_runs(dense, caplog):
    caplog.set_level("INFO")
    sample(apply(dense, Settings(rule="ultragen")), SHAPE, CONTEXT, steps=1)
    assert UNTRAINED_WARNING in caplog.text


def test_applying_again_without_weights_keeps_the_rule(dense):
    """As a chain of UltraGen Apply does it, the last with its default rule; new settings count."""
    first = apply(dense, Settings(rule="ultragen"))
    again = apply(first, Settings())
    assert torch.equal(velocity(again, LATENT, CONTEXT, 0.5), velocity(first, LATENT, CONTEXT, 0.5))
    other = apply(first, Settings(LocalConfig(windows=(2, 3))))
    assert relative_error(velocity(other, LATENT, CONTEXT, 0.5), velocity(first, LATENT, CONTEXT, 0.5)) > 1e-4


@pytest.mark.parametrize("sigma", [1.00000012, 1.4])
def test_a_run_may_start_above_sigma_1(tiny, dense, sigma):
    """Schedules of some shifts do by a rounding, samplers that add noise by more."""
    assert relative_error(velocity(tiny, LATENT, CONTEXT, sigma), velocity(dense, LATENT, CONTEXT, sigma)) > 1e-3


def test_one_log_line_a_run_names_every_block_and_one_a_bad_size(tiny, caplog):
    caplog.set_level("INFO")
    sample(tiny, SHAPE, CONTEXT, steps=2)
    lines = [record.message for record in caplog.records if record.message.startswith("UltraGen:")]
    assert lines[:-1] == [
        "UltraGen: grid 3x8x12, rule ultragen in 2 of 4 blocks (1-2), even blocks local 4x4 + hierarchical 2x2 +"
        " global, odd blocks local 5x5 + hierarchical 3x3 + global, dense 0, 3 (no extras)",
        "UltraGen: Frames of 192x128 divide badly into windows: features are resized by up to 25.0%. The nearest good"
        " sizes: 384x384.",
    ]
    assert lines[-1].startswith("UltraGen: attention ") and lines[-1].endswith("(ComfyUI's choice)")


@pytest.mark.parametrize("shape", [(1, 16, 1, 2, 2), (1, 16, 1, 6, 4), (2, 16, 2, 15, 21), (1, 16, 5, 7, 40)])
@pytest.mark.parametrize("cut", ["resize", "balanced"])
def test_any_latent_size_runs(tiny, shape, cut):
    for cross_window in ("paper", "swin"):
        model = apply(tiny, Settings(LocalConfig(uneven=cut, cross_window=cross_window)))
        result = velocity(model, seeded(*shape), CONTEXT.expand(shape[0], -1, -1), 0.5)
        assert result.shape == shape and torch.isfinite(result).all()


def test_a_batch_is_its_items(tiny):
    x, context = seeded(2, *SHAPE[1:]), seeded(2, 16, 4096, seed=3)
    together = velocity(tiny, x, context, 0.5)
    alone = torch.cat([velocity(tiny, x[i : i + 1], context[i : i + 1], 0.5) for i in range(2)])
    assert relative_error(together, alone) < 1e-5


def test_partial_loading_gives_the_same_result(tiny):
    whole = velocity(tiny, LATENT, CONTEXT, 0.5)
    assert torch.equal(velocity(tiny, LATENT, CONTEXT, 0.5, loaded=0.3), whole)


def test_an_unfit_model_is_refused(tiny, dense):
    class NotWan:
        model = type("Base", (), {"diffusion_model": torch.nn.Linear(2, 2)})()

    with pytest.raises(ValueError, match="patches Wan models, got Linear"):
        apply(NotWan(), Settings())
    with pytest.raises(ValueError, match="The extras were trained with a compress ratio of 4"):
        apply(tiny, Settings(global_=GlobalConfig(compress_ratio=2)))
    with pytest.raises(ValueError, match="The model has no extras, so its attention rule is unknown"):
        apply(dense, Settings())
    with pytest.raises(ValueError, match="attention rule must be one of auto, ultragen, t3, got 'dense'"):
        Settings(rule="dense")
    with pytest.raises(ValueError, match="start_percent must be below end_percent"):
        Settings(start_percent=0.5, end_percent=0.5)


def test_sampling_inside_a_sampling_on_one_base(tiny):
    """Other nodes' callbacks sample too, on clones that share base and runtime; the outer run keeps its estimate of
    memory and what it has decided.
    """
    inner, runtime, estimates, runs, done = tiny.clone(), runtime_of(tiny), [], [], []
    before = runtime.run

    def callback(*_):
        runs.append(runtime.run)
        if not done:
            done.append(sample(inner, SHAPE, CONTEXT, steps=1))
        estimates.append(vars(tiny.model).get("memory_required") is not None)

    sample(tiny, SHAPE, CONTEXT, steps=2, callback=callback)
    assert done and estimates == [True, True] and "memory_required" not in vars(tiny.model)
    assert runtime_of(inner) is runtime and runs[0] is runs[1] is not before and runs[0].budgets
    assert runtime.run is before and not before.budgets


def test_the_estimate_of_memory_takes_core_s_arguments_by_name(tiny):
    estimates = []

    def callback(*_):
        estimates.append(tiny.model.memory_required(input_shape=SHAPE, cond_shapes={}))
        estimates.append(tiny.model.memory_required(SHAPE))

    sample(tiny, SHAPE, CONTEXT, steps=1, callback=callback)
    assert estimates[0] == estimates[1] > 0
