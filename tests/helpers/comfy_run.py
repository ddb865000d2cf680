"""Run a loaded ComfyUI model in a test."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.sd
import torch
from comfy.ldm.flux.layers import EmbedND
from torch import Tensor

from helpers.support import DATA, seeded
from ultragen_core.host.attention.kernels import OVERRIDE
from ultragen_core.host.attention.load import load_extras_file
from ultragen_core.host.attention.patch import Settings, apply

TINY = DATA / "tiny_ultragen.safetensors"
RULES = ("ultragen", "t3")


@torch.no_grad()
def velocity(model, x: Tensor, context: Tensor, sigma: float, loaded: float = 1.0, **conditions) -> Tensor:
    """Evaluate the model once as a sampler does, through BaseModel.apply_model. Returns (x - denoised) / sigma.

    loaded: share of the weights to load; ComfyUI casts the others layer by layer, as on small cards.
    """
    patchers = [model, *model.get_nested_additional_models()]
    comfy.model_management.load_models_gpu(patchers)
    for patcher in patchers if loaded < 1 else ():
        patcher.detach()
        patcher.patch_model(patcher.load_device, lowvram_model_memory=int(loaded * patcher.model_size()))
        assert patcher.loaded_size() < patcher.model_size()
    model.pre_run()
    try:
        options = {**model.model_options.get("transformer_options", {}), "wrappers": model.wrappers}
        t = torch.full((x.shape[0],), sigma)
        denoised = model.model.apply_model(x, t, c_crossattn=context, transformer_options=options, **conditions)
    finally:
        model.cleanup()
        if loaded < 1:
            comfy.model_management.unload_all_models()
    return (x - denoised) / sigma


def sample(
    model,
    shape: tuple[int, ...],
    context: Tensor,
    steps: int = 2,
    cfg: float = 5.0,
    seed: int = 0,
    callback=None,
    **conditions,
) -> Tensor:
    """Sample from noise with ComfyUI's KSampler (euler, simple). The negative prompt is zeros."""
    latent = torch.zeros(shape)
    noise = comfy.sample.prepare_noise(latent, seed)
    positive, negative = [[context, conditions]], [[torch.zeros_like(context), conditions]]
    choices = ("euler", "simple", positive, negative, latent)
    return comfy.sample.sample(model, noise, steps, cfg, *choices, callback=callback, disable_pbar=True, seed=seed)


def spied(model) -> tuple:
    """Return a clone, and the shapes of q and k of each attention that it computes from now on.

    They are recorded by an override: what ComfyUI's models hand to their attention differs between versions, what an
    override gets does not.
    """
    model, calls = model.clone(), []

    def override(func, q, k, v, heads, **kwargs):
        calls.append((tuple(q.shape), tuple(k.shape)))
        return func(q, k, v, heads, **kwargs)

    model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = override
    return model, calls


def run_node(node, model, **inputs):
    """Run one of ComfyUI's V3 nodes on a model, with the node's defaults."""
    defaults = {each.id: each.default for each in node.define_schema().inputs[1:]}
    return node.execute(model, **defaults | inputs)[0]


def patched(model, rule: str, **settings):
    """Patch the tiny base model, with trained extras if the rule has any. settings: further ones of the patch.

    Under "ultragen" two of its four blocks are dense.
    """
    return apply(model, Settings(rule=rule, **settings), load_extras_file(TINY) if rule == "ultragen" else None)


def attention_passed_on(model) -> list[tuple[int, int]]:
    """Give a patched model an attention override. Returns its calls to come: numbers of queries and keys.

    With an attention_kernel they are those that the kernel passes on.
    """
    calls = []

    def spy(func, q, k, v, heads, *args, **kwargs):
        calls.append((q.shape[1], k.shape[1]))
        return func(q, k, v, heads, *args, **kwargs)

    model.model_options["transformer_options"] = {OVERRIDE: spy}
    return calls


def with_lora(model):
    return comfy.sd.load_lora_for_models(model, None, lora(), 1.0, 0.0)[0]


def with_another_embedder(model):
    """Half the distance in height and width, by an object patch as packs for long videos (RIFLEx) bring it."""
    model, own = model.clone(), model.model.diffusion_model.rope_embedder
    embedder = EmbedND(own.dim, own.theta, own.axes_dim)
    embedder.forward = lambda ids: EmbedND.forward(embedder, ids * torch.tensor([1.0, 0.5, 0.5]))
    model.add_object_patch("diffusion_model.rope_embedder", embedder)
    return model


def lora(rank: int = 4) -> dict[str, Tensor]:
    """Make a LoRA for the tiny models, on the projections that UltraGen's branches share."""
    state = {}
    for block in range(4):
        for name in ("q", "v", "o"):
            key = f"diffusion_model.blocks.{block}.self_attn.{name}"
            state[f"{key}.lora_down.weight"] = 0.1 * seeded(rank, 256, seed=block)
            state[f"{key}.lora_up.weight"] = 0.1 * seeded(256, rank, seed=block + 9)
    return state


def attn_state(model) -> list[dict]:
    """Return what a patch could leave on a model's attention modules."""
    return [
        {key: value for key, value in block.self_attn.__dict__.items() if not key.startswith("_")}
        for block in model.model.diffusion_model.blocks
    ]
