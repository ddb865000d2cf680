"""Where several GPUs cannot sample a model: what the user reads, and that the model samples on."""

from __future__ import annotations

from types import MethodType

import comfy.sd
import pytest
import torch
from helpers.comfy_run import lora, patched, sample, with_another_embedder
from helpers.signatures import needs
from helpers.support import seeded

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.patch import gpus_of, use_gpus
from ultragen_core.host.multigpu.split import KEY


def test_one_gpu_or_an_old_comfyui_samples_as_before_and_says_why(dense, caplog):
    model = use_gpus(dense, 0, "auto")
    old = gpu_pool_class() is None
    assert f"uses one GPU, because {'this ComfyUI is older' if old else 'there is no other'}" in caplog.text
    assert model is not dense and not any(KEY in by_key for by_key in model.wrappers.values())
    given = (1, 16, 2, 8, 12), seeded(1, 8, 4096, seed=1)
    assert torch.equal(sample(model, *given, steps=1, cfg=1.0), sample(dense, *given, steps=1, cfg=1.0))


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
def test_a_loader_that_cannot_load_again_is_named(dense, cpus):
    cpus(2)
    dense.cached_patcher_init = None
    with pytest.raises(ValueError, match="its loader cannot make one. Load the model with UltraGen Load Model"):
        use_gpus(dense, 0, "auto")


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
def test_a_video_with_few_tokens_uses_fewer_gpus(dense, cpus, caplog):
    cpus(4)
    given = (1, 16, 2, 2, 6), seeded(1, 8, 4096, seed=1)
    several = sample(use_gpus(dense, 0, "video"), *given, steps=1, cfg=1.0)
    assert "3 of 4 GPUs share a prompt, because a frame has only 1x3 tokens" in caplog.text
    assert (several - sample(dense, *given, steps=1, cfg=1.0)).abs().max() < 1e-4


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
def test_another_packs_self_attention_keeps_whole_prompts(dense, cpus, caplog):
    cpus(2)

    def half(x, freqs, transformer_options=None):
        return 0.5 * x

    dense.add_object_patch("diffusion_model.blocks.1.self_attn.forward", half)
    given = (1, 16, 2, 8, 12), seeded(1, 8, 4096, seed=1)
    one = sample(dense, *given, steps=1, cfg=1.0)
    assert torch.equal(sample(use_gpus(dense, 0, "video"), *given, steps=1, cfg=1.0), one)
    assert caplog.text.count("each prompt stays on one GPU, because another node has patched its blocks") == 1


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
def test_another_packs_positions_keep_whole_prompts(dense, cpus, caplog):
    cpus(2)
    model = with_another_embedder(patched(dense, "t3"))
    given = (1, 16, 2, 8, 12), seeded(1, 8, 4096, seed=1)
    one = sample(model, *given, steps=1, cfg=1.0)
    assert torch.equal(sample(use_gpus(model, 0, "video"), *given, steps=1, cfg=1.0), one)
    assert "each prompt stays on one GPU, because another node has replaced the positions of its tokens" in caplog.text


def bypassed(model):
    """As *Load LoRA (Bypass, Model Only)*: it calls the LoRA beside the layers, and changes no weights."""
    return comfy.sd.load_bypass_lora_for_models(model, None, lora(), 1.0, 0.0)[0]


def tied(model):
    """As packs replace the forward of a cross-attention: by a method of the module that they found."""
    model, module = model.clone(), model.model.diffusion_model.blocks[1].cross_attn

    def forward(module, x, context, **kwargs):
        return 0.5 * type(module).forward(module, x, context, **kwargs)

    model.add_object_patch("diffusion_model.blocks.1.cross_attn.forward", MethodType(forward, module))
    return model


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
@pytest.mark.parametrize("split_first", [False, True])
@pytest.mark.parametrize(("add", "reason"), [(bypassed, "bypass_lora"), (tied, "another node has tied")])
def test_what_acts_on_one_gpus_modules_is_sampled_there(dense, add, reason, split_first, cpus, caplog):
    cpus(2)
    given = (1, 16, 2, 8, 12), seeded(1, 8, 4096, seed=1)
    plain, one = sample(dense, *given, steps=1), sample(add(dense), *given, steps=1)
    several = add(use_gpus(dense, 0, "auto")) if split_first else use_gpus(add(dense), 0, "auto")
    assert torch.equal(sample(several, *given, steps=1), one) and not torch.equal(one, plain)
    assert caplog.text.count(f"MultiGPU uses one GPU, because {reason}") == 1
    assert gpus_of(several).count == 1 and reason in gpus_of(several).warnings[0]
