"""Chooses the attention function of a run: what the user, the checkpoint or another pack asks for, else the fastest.

From 0.30.0 on ComfyUI prefers FlashAttention; on Hopper cuDNN's kernel is 1.6 times as fast. ULTRAGEN_ATTENTION=comfyui
in the environment leaves the choice to ComfyUI.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import comfy.ldm.modules.attention as comfy_attention
import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from ...built_once import built_once
from ..compat import preferred_attention
from ..memory import is_out_of_memory
from .kernels import OVERRIDE, Kernel, KernelOverride, join_heads, split_heads

SPARSE = re.compile("sparse|radial|sliding|jenga", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttentionChoice:
    """The attention function of a run.

    name: for the log. asked_by: who chose it. options: changes to ComfyUI's transformer_options. sparse: whether the
    function leaves tokens out, as far as its name tells. set_aside: the name of another pack's function that now gets
    only the calls which this one passes on.
    """

    name: str
    asked_by: str
    options: dict
    sparse: bool = False
    set_aside: str = ""

    def __str__(self) -> str:
        return f"attention {self.name} ({self.asked_by})"


def choose_attention(
    dm: nn.Module, transformer_options: dict, device: torch.device, kernel: Kernel | None = None
) -> AttentionChoice:
    """Respect every choice that was made; where ComfyUI would use plain PyTorch attention, use the fastest backend.

    kernel: the one that the user set as attention_kernel. It goes before every other choice: an override gets only the
    calls that the kernel passes on, a checkpoint's wish none. Raises ValueError where the kernel cannot run on this
    device.
    In ComfyUI an override of a node or a pack goes before the wish of a checkpoint, and that before the command line.
    """
    choice = _choice_of_others(dm, transformer_options, device)
    if kernel is None:
        return choice
    kernel.require_device(device)
    override = transformer_options.get(OVERRIDE)
    options = {OVERRIDE: KernelOverride(kernel, choice.options.get(OVERRIDE, override))}
    set_aside = "" if override is None else choice.name
    return AttentionChoice(kernel.name, "set by attention_kernel", options, set_aside=set_aside)


def _choice_of_others(dm: nn.Module, transformer_options: dict, device: torch.device) -> AttentionChoice:
    plain = comfy_attention.optimized_attention is comfy_attention.attention_pytorch
    override = transformer_options.get(OVERRIDE)
    wish = next((found for module in dm.modules() if (found := preferred_attention(module))), None)
    if override is not None:
        name, fast = _name_of(override), plain and cudnn_is_faster(device)
        options = {OVERRIDE: _over_cudnn(override)} if fast and wish is None else {}
        return AttentionChoice(name, "set by a node or another pack", options, bool(SPARSE.search(name)))
    if wish is not None:
        return AttentionChoice(_name_of(wish.function), "asked for by the checkpoint", {})
    if plain and cudnn_is_faster(device):
        return AttentionChoice("cuDNN", "fastest of PyTorch's on this GPU", {OVERRIDE: cudnn_attention})
    return AttentionChoice(_name_of(comfy_attention.optimized_attention), "ComfyUI's choice", {})


def _name_of(function: Callable) -> str:
    module = getattr(function, "__module__", None) or ""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name if not module or module.startswith("comfy.") else f"{module.rpartition('.')[2]}.{name}"


def _over_cudnn(override: Callable) -> Callable:
    """An override that acts on some calls only: those that it passes on run on cuDNN."""

    @functools.wraps(override)
    def call(func: Callable, *args, **kwargs) -> Tensor:
        @functools.wraps(func)
        def passed_on(*args, **kwargs) -> Tensor:
            return cudnn_attention(func, *args, **kwargs)

        return override(passed_on, *args, **kwargs)

    return call


def cudnn_attention(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
    """ComfyUI's attention_pytorch on (b, tokens, c) tensors, by cuDNN; passes any other call on."""
    plain = func is comfy_attention.attention_pytorch.__wrapped__ and q.ndim == 3 and not args
    if (
        not plain
        or kwargs.get("mask") is not None
        or not kwargs.keys() <= {"transformer_options", "_inside_attn_wrapper"}
        or not cudnn_takes(q, k, heads)
    ):
        return func(q, k, v, heads, *args, **kwargs)
    return join_heads(cudnn_sdpa(*(split_heads(x, heads) for x in (q, k, v))))


def cudnn_takes(q: Tensor, k: Tensor, heads: int) -> bool:
    """Whether cuDNN computes this attention, by the checks of PyTorch's own choice that depend on the call."""
    head_dim = q.shape[-1] // heads
    fits = head_dim <= 128 and head_dim % 8 == 0 and k.shape[1] > 1 and q.shape[0] < 2**16
    return fits and q.dtype in (torch.float16, torch.bfloat16) and not torch.is_grad_enabled()


def cudnn_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """cuDNN's attention, (b, heads, tokens, head_dim) -> the shape of q, without gradients.

    Called directly: PyTorch chooses between backends by settings of the whole process, and changing them for every call
    takes longer than the call and is seen by other threads.
    """
    return torch.ops.aten._scaled_dot_product_cudnn_attention.default(q, k, v, None, False)[0]


def _flash_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention.default(q, k, v)[0]


def cudnn_is_faster(device: torch.device) -> bool:
    """Whether cuDNN's attention is right and at least 10% faster here than FlashAttention.

    GPUs of one kind get one answer, measured once per process: where they compute one video together, the slowest
    attention would hold up all.
    """
    if os.environ.get("ULTRAGEN_ATTENTION") == "comfyui" or device.type != "cuda" or torch.version.hip is not None:
        return False
    if comfy.ops.NVIDIA_MEMORY_CONV_BUG_WORKAROUND:
        return False  # a cuDNN version whose bugs ComfyUI works around
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        return False  # torch before 2.6
    try:
        with torch.cuda.device(device):
            return measure_cudnn(torch.cuda.get_device_name())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False  # not remembered: the next run may have the memory


@built_once(maxsize=8)
def measure_cudnn(kind: str) -> bool:
    """`cudnn_is_faster` on GPUs with this name, of which the current device is one. Raises where memory runs out."""
    try:
        agrees, flash, cudnn = _compare_on_current_device()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        log.info("UltraGen: using ComfyUI's own attention, because cuDNN's failed (%s)", error)
        return False
    log.info("UltraGen: %s: 8192 tokens take FlashAttention %.2f ms, cuDNN's %.2f", kind, flash, cudnn)
    return agrees and cudnn < 0.9 * flash


def _compare_on_current_device() -> tuple[bool, float, float]:
    """Whether cuDNN's attention is FlashAttention's, and the times of FlashAttention and cuDNN, ms; takes 0.1 s."""
    generator = torch.Generator("cuda").manual_seed(0)  # not the global one, which samplers may draw from
    q = torch.randn(1, 12, 8192, 128, device="cuda", dtype=torch.bfloat16, generator=generator)
    (reference, flash), (result, cudnn) = (_timed(attention, q) for attention in (_flash_sdpa, cudnn_sdpa))
    return bool((result - reference).norm() < 1e-2 * reference.norm()), flash, cudnn


def _timed(attention: Callable, q: Tensor, repeats: int = 5) -> tuple[Tensor, float]:
    """Self-attention of q, and its least time in milliseconds: a mean counts the gaps that a busy host leaves."""
    for _ in range(repeats):
        attention(q, q, q)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        result = attention(q, q, q)
        event.record()
    events[-1].synchronize()
    return result.float(), min(start.elapsed_time(end) for start, end in itertools.pairwise(events))
