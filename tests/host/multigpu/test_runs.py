"""Whole runs on several GPUs, for which names of the CPU stand, against the same runs on one."""

from __future__ import annotations

import logging
from functools import partial

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_easycache import EasyCacheNode
from helpers.comfy_run import TINY, lora, patched, run_node, sample, with_lora
from helpers.deltas import merged, with_deltas
from helpers.signatures import needs
from helpers.support import relative_error, seeded
from helpers.wan_models import KINDS, H, T, W, load
from safetensors.torch import load_file, save_file

from ultragen_core.host.attention.load import load_model
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.copies import Copies
from ultragen_core.host.multigpu.evaluation import Part
from ultragen_core.host.multigpu.patch import use_gpus
from ultragen_core.sampling import flow_sigmas

pytestmark = needs(gpu_pool_class() is not None, "a thread pool for GPUs")
SHAPE, CONTEXT = (1, 16, 2, 16, 20), seeded(1, 16, 4096, seed=1)
run = partial(sample, shape=SHAPE, context=CONTEXT)


@pytest.fixture
def parts(monkeypatch):
    """A list that gets (device, rectangle) of every part that a GPU computes."""
    computed, compute = [], Part.compute

    def noted(part):
        computed.append((str(part.device), part.rectangle))
        return compute(part)

    monkeypatch.setattr(Part, "compute", noted)
    return computed


@pytest.mark.parametrize(
    ("rule", "count", "cfg", "by", "devices_of_a_prompt"),
    [
        ("ultragen", 2, 1.0, "auto", 2),
        ("t3", 4, 1.0, "video", 4),
        ("dense", 3, 5.0, "auto", 3),
        ("ultragen", 4, 5.0, "auto", 2),
        ("t3", 4, 5.0, "auto", 2),
        ("ultragen", 2, 5.0, "prompts", 0),
    ],
)
def test_ksampler_gives_the_video_of_one_gpu(dense, rule, count, cfg, by, devices_of_a_prompt, cpus, parts):
    devices = cpus(count)
    model = dense if rule == "dense" else patched(dense, rule)
    one = run(model, cfg=cfg)
    assert relative_error(run(use_gpus(model, 0, by), cfg=cfg), one) < 1e-5
    assert {device for device, _ in parts} == (set(map(str, devices)) if devices_of_a_prompt else set())
    assert len({rectangle for _, rectangle in parts}) == devices_of_a_prompt
    assert torch.equal(run(model, cfg=cfg), one), "the incoming model samples on one GPU, with the same bits"


def test_a_run_ends_when_all_gpus_have_done_their_work(dense, cpus, parts, monkeypatch):
    """What frees the buffers may not wait, and another GPU may still read them."""
    cpus(2)
    monkeypatch.setattr(Copies, "synchronize", lambda self: parts.append("all done"))
    run(use_gpus(patched(dense, "t3"), 0, "video"), steps=3)
    assert parts[-1] == "all done" != parts[-2]


def test_deltas_on_the_feed_forward_part(cpus, parts, tmp_path):
    cpus(2)
    state, models = with_deltas(load_file(TINY)), []
    for content in (state, merged(state)):
        save_file(content, tmp_path / "model.safetensors")
        models.append(load_model(tmp_path / "model.safetensors", model_options={"dtype": torch.float32}))
        if len(models) == 1:  # copies for other GPUs are read from the file
            several = run(use_gpus(models[0], 0, "video"), cfg=1.0)
            first_step = apply(models[0], Settings(end_percent=0.4))
            assert relative_error(run(use_gpus(first_step, 0, "video"), cfg=1.0), run(first_step, cfg=1.0)) < 1e-5
    assert relative_error(several, run(models[1], cfg=1.0)) < 1e-5 and len(parts) == 2 * 2 * 2


def eased(model):
    return run_node(EasyCacheNode, model, reuse_threshold=3.0)


def windowed(model):
    return run_node(
        WanContextWindowsManualNode, model, context_length=9, context_overlap=4,
        context_schedule="standard_static", fuse_method="pyramid",
    )  # fmt: skip


@pytest.mark.parametrize("gpus_first", [False, True])
@pytest.mark.parametrize("add", [with_lora, eased, windowed], ids=lambda add: add.__name__)
def test_companions_of_one_gpu_act_on_several(dense, add, gpus_first, cpus, parts):
    cpus(2)
    model, split = patched(dense, "ultragen"), partial(use_gpus, count=0, by="auto")
    settings = {"steps": 6, "cfg": 1.0, "shape": (1, 16, 4, 8, 12)} if add is not with_lora else {"cfg": 1.0}
    one, plain = run(add(model), **settings), run(model, **settings)
    several = run(add(split(model)) if gpus_first else split(add(model)), **settings)
    assert relative_error(several, one) < 1e-5 < 1e-3 < relative_error(plain, one)
    assert len({device for device, _ in parts}) == 2


def test_a_scheduled_lora_acts_on_all_gpus(dense, cpus, parts):
    import comfy.hooks

    cpus(2)
    hooks, keyframes = comfy.hooks.create_hook_lora(lora(), 1.0, 0.0), comfy.hooks.HookKeyframeGroup()
    for start, strength in ((0.0, 1.0), (0.5, 0.0)):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
    hooks.set_keyframes_on_hooks(keyframes)
    model = patched(dense, "ultragen")
    one, several = (run(each, cfg=1.0, hooks=hooks) for each in (model, use_gpus(model, 0, "video")))
    assert relative_error(several, one) < 1e-5 and len(parts) == 4
    assert relative_error(run(model, cfg=1.0), one) > 1e-3


def test_sampler_custom_advanced_and_the_bits_of_a_second_run(dense, cpus, parts):
    cpus(2)

    def video(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds([[CONTEXT, {}]], [[torch.zeros_like(CONTEXT), {}]])
        guider.set_cfg(5.0)
        sampler, latent = comfy.samplers.sampler_object("euler"), {"samples": torch.zeros(SHAPE)}
        out = SamplerCustomAdvanced.execute(Noise_RandomNoise(0), guider, sampler, flow_sigmas(2, 5.0), latent)
        return out[0]["samples"]

    model = patched(dense, "t3")
    split = use_gpus(model, 0, "video")
    several = video(split)
    assert relative_error(several, video(model)) < 1e-5 and torch.equal(video(split), several)
    assert len(parts) == 2 * 2 * 2, "both prompts of a step in one batch"


SPLIT = {
    "Wan2.1 T2V", "Wan2.1 I2V", "Wan2.1 FLF2V", "Wan2.1 VACE", "Wan2.1 Fun Control", "Wan2.1 Fun Inpaint",
    "Wan2.1 Phantom", "Wan2.2 T2V A14B", "Wan2.2 I2V A14B", "Wan2.2 TI2V 5B",
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_what_cannot_be_split_keeps_whole_prompts(name, cpus, parts, caplog):
    caplog.set_level(logging.INFO)
    cpus(2)
    kind = KINDS[name]
    model = load(kind)
    model.cached_patcher_init = load, (kind,)
    given = (1, kind.latent_channels, T, H, W), seeded(1, 8, 4096, seed=1)
    several = sample(use_gpus(model, 0, "video"), *given, steps=1, cfg=1.0, **kind.conditions())
    refused = "each prompt stays on one GPU, because" in caplog.text
    assert refused == (name not in SPLIT) and len(parts) == (0 if refused else 2)
    if not refused:
        one = sample(model, *given, steps=1, cfg=1.0, **kind.conditions())
        assert relative_error(several, one) < 1e-5
