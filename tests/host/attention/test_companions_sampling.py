"""Whole runs with what users put around the model: distilled steps, hooks, windows in time, previews, several GPUs."""

from __future__ import annotations

import importlib.util
from functools import partial

import comfy.hooks
import comfy.model_management
import comfy.utils
import latent_preview
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from helpers.comfy_run import RULES, lora, patched, run_node, sample, with_lora
from helpers.support import relative_error, seeded

from ultragen_core.host.attention.layers import RuleLayer
from ultragen_core.host.attention.patch import Settings, apply

SHAPE, CONTEXT = (1, 16, 3, 8, 12), seeded(1, 16, 4096, seed=1)
run = partial(sample, shape=SHAPE, context=CONTEXT)


@pytest.fixture
def attended(monkeypatch):
    """A list that gets (module, its layer, the call's options) whenever our attention runs."""
    calls, forward = [], RuleLayer.forward

    def noted(module, x, freqs, transformer_options=None, **kwargs):
        calls.append((module, module.ultragen_layer, transformer_options))
        return forward(module, x, freqs, transformer_options, **kwargs)

    monkeypatch.setattr(RuleLayer, "forward", staticmethod(noted))
    return calls


@pytest.mark.parametrize("rule", RULES)
def test_step_distillation_is_one_evaluation_a_step(dense, rule, attended):
    model = ModelSamplingSD3().patch(with_lora(patched(dense, rule)), 5.0)[0]
    seen = []

    def count(apply_model, arguments):
        seen.append(arguments["input"].shape[0])
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(count)
    assert torch.isfinite(run(model, steps=4, cfg=1.0)).all()
    assert seen == [1] * 4 and len(attended) == 4 * {"ultragen": 2, "t3": 4}[rule]


@pytest.mark.parametrize("shift_first", [False, True])
def test_start_and_end_percent_follow_the_shift_of_other_nodes(tiny, attended, shift_first):
    """The first 60 % of four steps are three, whatever the shift: two, if the percentages were of the model's own."""
    settings, shifted = Settings(end_percent=0.6), lambda model: ModelSamplingSD3().patch(model, 3.0)[0]
    run(apply(shifted(tiny), settings) if shift_first else shifted(apply(tiny, settings)), steps=4, cfg=1.0)
    assert len(attended) == 3 * 2


def scheduled_lora(*strengths):
    """A hook, as *Create Hook LoRA* and *Create Hook Keyframe* make it, with (start_percent, strength)."""
    hooks, keyframes = comfy.hooks.create_hook_lora(lora(), 1.0, 0.0), comfy.hooks.HookKeyframeGroup()
    for start, strength in strengths:
        keyframes.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
    hooks.set_keyframes_on_hooks(keyframes)
    return hooks


@pytest.mark.parametrize("rule", RULES)
def test_a_lora_on_the_prompt_acts_while_its_hook_says(dense, rule):
    model, always, at_first = patched(dense, rule), scheduled_lora((0.0, 1.0)), scheduled_lora((0.0, 1.0), (0.5, 0.0))
    plain, loaded, hooked = run(model), run(with_lora(model)), run(model, hooks=always)
    assert relative_error(hooked, loaded) < 1e-5
    partly = run(model, hooks=at_first)
    assert all(relative_error(partly, other) > 1e-3 for other in (plain, loaded))
    assert relative_error(run(dense, hooks=always), hooked) > 1e-3
    assert torch.equal(run(model), plain), "the weights come back"


@pytest.mark.parametrize("rule", RULES)
def test_each_context_window_is_a_grid_of_its_own(dense, rule, attended, caplog):
    model = run_node(
        WanContextWindowsManualNode,
        patched(dense, rule),
        context_length=9,
        context_overlap=4,
        context_schedule="standard_static",
        fuse_method="pyramid",
    )
    run(model, shape=(1, 16, 7, 8, 12), steps=1)
    tokens = {layer.grid.tokens for _, layer, _ in attended}
    assert 3 * 24 in tokens and 7 * 24 not in tokens
    assert "stay dense" not in caplog.text


@pytest.mark.parametrize("rule", RULES)
def test_previews_show_every_step(dense, rule, monkeypatch):
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)

    def stills(shown, image):  # loops follow them
        if image[0] == "JPEG":
            shown.append(image[1])

    def previews(model):
        shown, latents = [], []
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda step, of, image, **_: stills(shown, image))
        show = latent_preview.prepare_callback(model, 3)
        run(model, steps=3, callback=lambda step, x0, *rest: latents.append(x0) or show(step, x0, *rest))
        assert len(shown) == 3 and all(torch.isfinite(x0).all() for x0 in latents)
        return [image.tobytes() for image in shown]

    ours, core = previews(patched(dense, rule)), previews(dense)
    assert len({*ours, *core}) == 6


if importlib.util.find_spec("comfy.multigpu"):  # newer ComfyUI

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("split_first", [False, True])
    def test_multigpu_cfg_split_runs_each_prompt_on_its_own_gpu(dense, rule, split_first, attended, monkeypatch):
        """Two names of the CPU stand for two GPUs: what they share would be seen, not the transfers."""
        from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode

        devices = [torch.device("cpu"), torch.device("cpu:0")]
        monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: devices)
        expected = run(patched(dense, rule))
        attended.clear()
        split = partial(run_node, MultiGPUCFGSplitNode)
        result = run(patched(split(dense), rule) if split_first else split(patched(dense, rule)))
        assert relative_error(result, expected) < 1e-5 and relative_error(run(dense), result) > 1e-3
        used = {device: set() for device in devices}
        for module, layer, options in attended:
            extras = layer.attention.keywords.get("extras")
            used[options["multigpu_thread_device"]] |= {module} | ({extras} - {None})
        a, b = used.values()
        assert len(a) == len(b) == 4 and not a & b, "2 modules and their extras, or 4 modules"
        comfy.model_management.unload_all_models()

    def test_extras_are_on_the_gpu_that_select_model_device_has_chosen(dense):
        """ComfyUI's dynamic VRAM hands out a weight's address on its patcher's GPU, whatever GPU asks for it."""
        expected, device = run(patched(dense, "ultragen")), torch.device("cpu:0")

        def sent(model):  # as the node does for GPUs
            return model.deepclone_multigpu(new_load_device=device)

        sent_last = sent(patched(dense, "ultragen"))
        for model in (patched(sent(dense), "ultragen"), sent_last, apply(sent_last, Settings())):
            assert [each.load_device for each in (model, *model.get_nested_additional_models())] == [device] * 2
            assert relative_error(run(model), expected) < 1e-5
        comfy.model_management.unload_all_models()
