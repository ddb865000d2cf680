"""Checks that a file holds a complete Wan model: ComfyUI leaves missing tensors uninitialised without an error."""

from __future__ import annotations

import re
from collections import defaultdict

from ..printable import printable
from ..wan import HEAD_DIM
from .errors import SOURCE, WeightsError
from .files import StateDict

_BLOCK_KEY = re.compile(r"((?:vace_)?blocks)\.(\d{1,4})\.(.+)")
_LAYERS = r"(?:self_attn|cross_attn)\.(?:[qkvo]|norm_[qk]|[kv]_img|norm_k_img)|ffn\.[02]|norm3"
# Keys that all blocks share. Others, such as scales of quantised layers, may be in some blocks only.
_BASE_KEY = re.compile(rf"(?:{_LAYERS})\.(?:weight|bias)|modulation")
_IS_WAN = re.compile(r"(?:vace_)?blocks\.\d{1,4}\.(?:self_attn\.[qkvo]|ffn\.[02])\.weight|head\.modulation")
_IS_DIFFUSERS = re.compile(r"(?:transformer\.)?(?:blocks\.\d+\.attn1\.|condition_embedder\.)")
OUTSIDE = (
    *(f"{layer}.{kind}" for layer in ("patch_embedding", "head.head") for kind in ("weight", "bias")),
    "head.modulation",
    *(f"{layer}.{kind}" for layer in ("text_embedding.0", "text_embedding.2") for kind in ("weight", "bias")),
    *(f"{layer}.{kind}" for layer in ("time_embedding.0", "time_embedding.2") for kind in ("weight", "bias")),
    *(f"time_projection.1.{kind}" for kind in ("weight", "bias")),
)
# Channels -> blocks of every published Wan model.
DEPTHS = {1536: 30, 3072: 30, 5120: 40}
ELSEWHERE = (
    "If that is intended, load the file with ComfyUI's Load Diffusion Model and connect UltraGen Apply after it."
)


def check_complete(state: StateDict, name: str) -> None:
    """Raise WeightsError where `state`, with or without data, is an incomplete Wan model or has impossible sizes.

    Models other than Wan, and files of extras alone, pass.
    """
    if any(map(_IS_DIFFUSERS.match, state)):
        raise WeightsError(
            f"{name} uses the tensor names of the diffusers library, not Wan's own. Get the model as one"
            " file for ComfyUI, for Wan from huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged or"
            f" Wan_2.2_ComfyUI_Repackaged, UltraGen's from {SOURCE}."
        )
    if not any(map(_IS_WAN.fullmatch, state)):
        return
    families: dict[str, dict[int, StateDict]] = {"blocks": defaultdict(dict), "vace_blocks": defaultdict(dict)}
    for key, tensor in state.items():
        if match := _BLOCK_KEY.fullmatch(key):
            families[match[1]][int(match[2])][match[3]] = tensor
    _check_numbers(families, name)
    for family, blocks in families.items():
        _check_alike(family, blocks, name)
    if lacking := [key for key in OUTSIDE if _lacks(state, key)]:
        raise _incomplete(name, f"{_some(lacking)} {_are(lacking)} missing")
    _check_sizes(state, name)
    _check_depth(state, len(families["blocks"]), len(families["vace_blocks"]), name)


def _check_numbers(families: dict[str, dict[int, StateDict]], name: str) -> None:
    if not families["blocks"]:
        raise _incomplete(name, "it has no blocks")
    for family, blocks in families.items():
        gaps = sorted(set(range(max(blocks, default=-1) + 1)) - blocks.keys())
        if gaps:
            found = f"found {family} {_ranges(sorted(blocks))}, but {_ranges(gaps)} {_are(gaps)} missing"
            raise _incomplete(name, found)


def _check_alike(family: str, blocks: dict[int, StateDict], name: str) -> None:
    """Compare every block with the first one that has a key."""
    shapes: dict[str, tuple[int, tuple[int, ...]]] = {}
    for index, block in blocks.items():
        for key, tensor in block.items():
            if _BASE_KEY.fullmatch(key) and tensor.is_floating_point():  # packed formats have sizes of their own
                first, shape = shapes.setdefault(key, (index, tuple(tensor.shape)))
                if shape != tuple(tensor.shape):
                    raise _incomplete(
                        name,
                        f"{family}.{index}.{key} has shape {tuple(tensor.shape)}, but block {first} has {shape}",
                    )
    lacking = [f"{family}.{index}.{key}" for key in shapes for index, block in blocks.items() if _lacks(block, key)]
    if lacking:
        them = "it" if len(lacking) == 1 else "them"
        raise _incomplete(name, f"{_some(lacking)} {_are(lacking)} missing, although other blocks have {them}")


def _lacks(state: StateDict, key: str) -> bool:
    """Whether a tensor is missing; quantised layers may store it under another name."""
    layer, _, kind = key.rpartition(".")
    if key in state or kind != "weight":
        return key not in state
    return not any(other.startswith(layer + ".") and tensor.ndim > 1 for other, tensor in state.items())


def _check_sizes(state: StateDict, name: str) -> None:
    axes = {"head.modulation": 3, "head.head.weight": 2, "patch_embedding.weight": 5}
    shapes = {key: tuple(state[key].shape) for key in axes if key in state}
    channels = shapes["head.modulation"][-1:]
    possible = all(len(shape) == axes[key] and 0 not in shape for key, shape in shapes.items())
    if not possible or channels[0] % HEAD_DIM or shapes.get("patch_embedding.weight", channels)[0] != channels[0]:
        found = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise WeightsError(f"{name} is a Wan model with impossible sizes: {found}. Download it again from its source.")


def _check_depth(state: StateDict, blocks: int, vace_blocks: int, name: str) -> None:
    channels = state["head.modulation"].shape[-1]
    depth = DEPTHS.get(channels, blocks)
    if blocks < depth:
        raise _incomplete(name, f"it has {blocks} blocks; Wan models of {channels} channels have {depth}")
    if vace_blocks and len(range(0, blocks, max(1, blocks // vace_blocks))) != vace_blocks:
        raise _incomplete(name, f"it has {vace_blocks} vace_blocks, which do not divide its {blocks} blocks evenly")


def _incomplete(name: str, found: str) -> WeightsError:
    return WeightsError(
        f"{name} holds only part of a Wan model: {found}. Download it again completely; of a sharded model, download"
        f" all shards under their own names. {ELSEWHERE}"
    )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return printable(keys[0], 120) + more


def _are(found: list) -> str:
    return "is" if len(found) == 1 else "are"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    parts = [f"{a}-{b}" if a != b else f"{a}" for a, b in zip(starts, ends, strict=True)]
    return ", ".join(parts[:6]) + (", ..." if len(parts) > 6 else "")
