"""What differs between ComfyUI versions: one function for each difference, with the version at which it can go.

0.3.75 is the oldest supported version. "From X on" says what replaces the function once X is the oldest. What 0.40
brings is prepared for and tested with stand-ins, not with 0.40 itself.
One more difference is in ultragen_core/vae/cached_conv.py, which may not import ComfyUI: the padding of a first frame.
What every version must have in common is tested in tests/contract.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable

import comfy.ldm.wan.model as wan
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.k_diffusion import sampling
from torch import Tensor, nn


def patcher_class(dynamic: bool = True) -> type[comfy.model_patcher.ModelPatcher]:
    """Return the ModelPatcher class for new models. dynamic: with dynamic VRAM where ComfyUI has switched it on.

    0.3.75 has no dynamic VRAM. From 0.30.0 on: comfy.model_patcher.CoreModelPatcher, which ComfyUI replaces at start.
    """
    classic = comfy.model_patcher.ModelPatcher
    return getattr(comfy.model_patcher, "CoreModelPatcher", classic) if dynamic else classic


def is_dynamic(patcher) -> bool:
    """Whether a ModelPatcher uses dynamic VRAM.

    0.3.75 has no dynamic VRAM. From 0.30.0 on: patcher.is_dynamic().
    """
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def for_device(patcher, device: torch.device):
    """Return `patcher`, or one with a model of its own where `patcher` loads its model to another device.

    0.3.75 has no node that chooses the device of a model. From 0.30.0 on: the same without the check for the method.
    """
    if patcher.load_device == device or not hasattr(patcher, "deepclone_multigpu"):
        return patcher
    return patcher.deepclone_multigpu(new_load_device=device)


def free_memory(patcher, device: torch.device) -> int:
    """Return the free bytes on `device`, with what ComfyUI would give up for the activations of `patcher`'s model.

    0.3.75 counts the free bytes alone. From 0.30.0 on: patcher.get_free_memory(device).
    """
    return getattr(patcher, "get_free_memory", comfy.model_management.get_free_memory)(device)


def is_oom(error: BaseException) -> bool:
    """Whether ComfyUI takes an error for an out-of-memory; also clears the error that CUDA keeps.

    0.3.75 knows its exception class alone. From 0.30.0 on: comfy.model_management.is_oom(error).
    """
    known = getattr(comfy.model_management, "is_oom", None)
    return known(error) if known else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def cast_parameters(module: nn.Module, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of one of ComfyUI's layers: offloaded ones fetched, LoRA applied, cast, safe to keep.

    0.3.75 returns a stream or None as third value of cast_bias_weight, 0.30.0 always a tuple. From 0.30.0 on: the same
    without the check for None.
    """
    weight, bias, stream = comfy.ops.cast_bias_weight(
        module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
    )
    if stream is not None:  # the values may be in a buffer that the next cast overwrites
        weight = weight if weight is module.weight else weight.clone()
        bias = bias if bias is None or bias is module.bias else bias.clone()
    comfy.ops.uncast_bias_weight(module, weight, bias, stream)
    return weight, bias


def vae_output_dtype(vae) -> torch.dtype:
    """Return the dtype of a VAE's images and latents.

    0.3.75 always uses float32. From 0.30.0 on: vae.vae_output_dtype().
    """
    return vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32


def trim_window(video) -> tuple[float, float]:
    """Return start and duration in seconds of the part of a VideoFromFile that counts; a duration of 0 is the rest.

    0.3.75 cannot trim. From 0.30.0 on: video.get_active_trim_window().
    """
    return getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()


def frame_count(video) -> int:
    """Return the number of frames of a VIDEO. Raises what its container raises.

    0.30.0's get_frame_count returns 1 for containers that do not store the number, such as .mkv. From the first version
    that counts them on: video.get_frame_count().
    """
    return max(1, round(video.get_duration() * video.get_frame_rate()))


def sampler_functions(names: Iterable[str]) -> dict[Callable[..., Tensor], str]:
    """Return the names of ComfyUI's sampler functions, by function.

    0.3.75 lacks exp_heun_2_x0 and its SDE form. From 0.30.0 on: getattr(sampling, f"sample_{name}") for each name.
    """
    found = {name: getattr(sampling, f"sample_{name}", None) for name in names}
    return {function: name for name, function in found.items() if function}


def preferred_attention(module: nn.Module):
    """Return a module's wish for an attention function, an object with `function`, or None.

    Versions before 0.40 have no `comfy_attention` on attention modules, which checkpoints fill. From 0.40 on: the
    module's `comfy_attention`, if its `function` is set.
    """
    wish = getattr(module, "comfy_attention", None)
    return wish if getattr(wish, "function", None) is not None else None


def attention_operands(*tensors: Tensor) -> tuple:
    """Return q, k and v as ComfyUI's Wan models hand them over.

    Before 0.40 these are plain tensors, later containers that give their tensor away once, so that attention can free
    it early. Other packs may replace the function by one that knows its version's form alone. From 0.40 on:
    map(AttentionTensorContainer, tensors).
    """
    container = getattr(wan, "AttentionTensorContainer", None)
    return tensors if container is None else tuple(map(container, tensors))


def gpu_pool_class() -> type | None:
    """Return ComfyUI's pool with one thread per GPU; None where ComfyUI cannot run several.

    0.3.75 has none. From 0.30.0 on: comfy.multigpu.MultiGPUThreadPool.
    """
    if importlib.util.find_spec("comfy.multigpu") is None:
        return None
    return importlib.import_module("comfy.multigpu").MultiGPUThreadPool
