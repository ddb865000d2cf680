"""The published UltraGen checkpoint: a Wan state dict with Wan's key names, plus extras in its hierarchical blocks.

Format of sjtuplayer/UltraGen (arXiv 2510.18775), spelling included. Blocks without extras keep dense attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..attention.extras import BlockExtras, ExtrasShape, initial_block
from ..attention.gate import BlockGates
from ..printable import printable
from .errors import SOURCE, WeightsError
from .files import StateDict

# Our module name -> published name, under blocks.N. Published files have no deltas on the feed-forward part: the names
# of those are ours, in the same manner.
EXTRA_NAMES = {
    **{f"global_branch.{name}": f"self_attn.{name}_lora_1" for name in "qkv"},
    "global_branch.compress": "self_attn.downsample_conv",
    "global_branch.refine": "self_attn.upsample_conv",
    **{f"hierarchical_branch.{name}": f"self_attn.{name}_lora_2" for name in "qkv"},
    "hierarchical_branch.compress": "self_attn.downsample_conv_hierachcal",
    "hierarchical_branch.refine": "self_attn.upsample_conv_hierachcal",
    **{f"ffn.{name}": f"ffn.{name}_lora" for name in "02"},
}
GATE_NAMES = {
    f"{gate}.{ours}": f"self_attn.alpha_time_{layer.format(suffix)}"
    for gate, suffix in (("global_gate", ""), ("hierarchical_gate", "2"))
    for ours, layer in (
        ("embedding_in", "embedding{}.0"),
        ("embedding_out", "embedding{}.2"),
        ("projection", "projection{}.1"),
    )
}
_OURS = {published: ours for ours, published in (EXTRA_NAMES | GATE_NAMES).items()}
_EXTRA_KEY = re.compile(
    r"blocks\.(\d{1,4})\.(" + "|".join(re.escape(name) for name in sorted(_OURS, key=len, reverse=True)) + r")\.(.+)"
)


@dataclass(frozen=True)
class Extras:
    """UltraGen's added weights by block index, under our names.

    blocks: state dicts of BlockExtras. gates: state dicts of BlockGates; empty for untrained extras. fingerprint:
    identifies the base model that they were trained with; empty where that is unknown.
    """

    shape: ExtrasShape
    blocks: dict[int, StateDict]
    gates: dict[int, StateDict] = field(default_factory=dict)
    fingerprint: dict[int, list[float]] = field(default_factory=dict)

    def cloned(self) -> Extras:
        """Return the same weights in new memory."""

        def copies(states: dict[int, StateDict]) -> dict[int, StateDict]:
            return {index: {key: value.clone() for key, value in state.items()} for index, state in states.items()}

        return replace(self, blocks=copies(self.blocks), gates=copies(self.gates))


def untrained(channels: int, blocks: list[int], global_ratio: int = 4) -> Extras:
    """Return extras for Wan models without trained ones: average pooling, without deltas, refinement and gates."""
    shape = ExtrasShape(channels, global_ratio=global_ratio)
    return Extras(shape, {index: initial_block(shape) for index in blocks})


def has_extras(state_dict: StateDict) -> bool:
    return any(map(_EXTRA_KEY.fullmatch, state_dict))


def split(state_dict: StateDict, name: str) -> tuple[StateDict, Extras]:
    """Split a checkpoint into base and extras. The base is empty for an extras-only file.

    Raises WeightsError where extras are missing, incomplete, or do not fit each other or the base.
    """
    base: StateDict = {}
    per_block: dict[int, StateDict] = {}
    for key, tensor in state_dict.items():
        if match := _EXTRA_KEY.fullmatch(key):
            index, published, parameter = match.groups()
            per_block.setdefault(int(index), {})[f"{_OURS[published]}.{parameter}"] = tensor
        else:
            base[key] = tensor
    if not per_block:
        raise WeightsError(
            f"{name} {describe(state_dict)}. Expected an UltraGen checkpoint, whose blocks have extras such as"
            f" blocks.3.self_attn.downsample_conv.weight. Get one from {SOURCE}."
        )
    per_block = dict(sorted(per_block.items()))
    shape = _validate(per_block, name)
    _check_widths(base, shape, name)
    extras = Extras(
        shape,
        blocks={i: {k: v for k, v in keys.items() if "_gate." not in k} for i, keys in per_block.items()},
        gates={i: {k: v for k, v in keys.items() if "_gate." in k} for i, keys in per_block.items()},
        fingerprint=fingerprint(base, list(per_block)),
    )
    return base, extras


def published_items(extras: Extras) -> Iterator[tuple[str, Tensor]]:
    """Yield the extras under their published keys."""
    for states in (extras.blocks, extras.gates):
        for index, state in states.items():
            for key, tensor in state.items():
                yield _published(index, key), tensor


def _published(index: int, key: str) -> str:
    """Return the published key for our key of a block."""
    names = EXTRA_NAMES | GATE_NAMES
    module = next(module for module in names if key.startswith(module + "."))
    return f"blocks.{index}.{names[module]}.{key.removeprefix(module + '.')}"


def fingerprint(base: StateDict, blocks: list[int]) -> dict[int, list[float]]:
    """Return four norm weights of each block. No loader packs or scales them, so they identify a base in any precision;
    ComfyUI's weight_dtype fp8 rounds them.
    """
    keys = {index: f"blocks.{index}.self_attn.norm_q.weight" for index in blocks}
    return {index: base[key][:4].float().tolist() for index, key in keys.items() if key in base}


def same_base(a: dict[int, list[float]], b: dict[int, list[float]], dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether two fingerprints agree within the rounding of `dtype` and of 16-bit formats, in the blocks of both."""
    rtol = max(1e-2, 0.6 * torch.finfo(dtype).eps)  # rounding is half of eps at most
    return all(
        torch.allclose(torch.tensor(a[i]), torch.tensor(b[i]), rtol=rtol, atol=1e-4) for i in a.keys() & b.keys()
    )


def describe(state_dict: StateDict) -> str:
    """Say what a state dict without extras is: the end of a sentence that starts with its file's name."""
    keys = list(state_dict)
    if any("lora_" in key or ".alpha" in key or "_lora." in key for key in keys):
        return "looks like a LoRA (load it with a LoRA loader after the model)"
    if any(key.startswith("decoder.") for key in keys):
        return "looks like a VAE (load it with a VAE loader)"
    if any(key.startswith("blocks.0.self_attn") for key in keys):
        return "is a Wan model without UltraGen's extras"
    return f"is an unknown file ({len(keys)} tensors, the first {printable(keys[0], 120)!r})"


def _validate(per_block: dict[int, StateDict], name: str) -> ExtrasShape:
    """Return the shape that all blocks share; the modules define its keys and sizes. Raises WeightsError."""
    # What a block lacks is then missed there, whichever block has it.
    shape = _shape_of({key: tensor for keys in reversed(per_block.values()) for key, tensor in keys.items()})
    with torch.device("meta"):
        expected = BlockExtras(shape).state_dict() | BlockGates(shape.channels).state_dict()
    for index, found in per_block.items():
        for key in sorted(expected.keys() | found.keys()):
            sizes = [tuple(state[key].shape) if key in state else "nothing" for state in (expected, found)]
            if sizes[0] != sizes[1]:
                raise WeightsError(
                    f"{name} is not a complete UltraGen checkpoint: {_published(index, key)} should be {sizes[0]},"
                    f" found {sizes[1]}. Get the complete file from its source; the published one is {SOURCE}."
                )
    return shape


def _check_widths(base: StateDict, shape: ExtrasShape, name: str) -> None:
    """Raise WeightsError where the extras do not fit the base that comes with them."""
    widths = {"self_attn.q": ("channels", shape.channels), "ffn.0": ("feed-forward channels", shape.ffn_channels)}
    for layer, (unit, expected) in widths.items():
        weight = base.get(f"blocks.0.{layer}.weight")
        if expected and weight is not None and weight.shape[0] != expected:
            raise WeightsError(
                f"{name} mixes two models: its extras are for {expected} {unit}, its base for {weight.shape[0]}. Get a"
                f" complete checkpoint, such as {SOURCE}."
            )


def _shape_of(keys: StateDict) -> ExtrasShape:
    """Return the sizes of a block's tensors; 1 where the tensor is missing or has another number of axes."""

    def size(key: str, axis: int) -> int:
        return keys[key].shape[axis] if key in keys and keys[key].ndim > 1 and keys[key].numel() else 1

    return ExtrasShape(
        channels=size("global_branch.compress.weight", 0),
        rank=size("global_branch.q.lora_A.weight", 0),
        global_ratio=size("global_branch.compress.weight", -1),
        hierarchical_ratio=size("hierarchical_branch.compress.weight", -1),
        refined=True,
        ffn_channels=size("ffn.0.lora_B.weight", 0) if any(key.startswith("ffn.") for key in keys) else 0,
    )
