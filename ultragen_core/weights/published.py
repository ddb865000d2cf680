"""The published UltraGen checkpoint: a whole Wan state dict in Wan's own key names, plus extra keys in its hierarchical
blocks.

Format of sjtuplayer/UltraGen (arXiv 2510.18775), spelling included. The blocks that lack the extra keys keep full
attention.
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

# Our module name -> published name, under blocks.N.self_attn.
EXTRA_NAMES = {
    **{f"global_branch.{name}": f"{name}_lora_1" for name in "qkv"},
    "global_branch.compress": "downsample_conv",
    "global_branch.refine": "upsample_conv",
    **{f"hierarchical_branch.{name}": f"{name}_lora_2" for name in "qkv"},
    "hierarchical_branch.compress": "downsample_conv_hierachcal",
    "hierarchical_branch.refine": "upsample_conv_hierachcal",
}
GATE_NAMES = {
    f"{gate}.{ours}": f"alpha_time_{layer.format(suffix)}"
    for gate, suffix in (("global_gate", ""), ("hierarchical_gate", "2"))
    for ours, layer in (
        ("embedding_in", "embedding{}.0"),
        ("embedding_out", "embedding{}.2"),
        ("projection", "projection{}.1"),
    )
}
_OURS = {published: ours for ours, published in (EXTRA_NAMES | GATE_NAMES).items()}
_EXTRA_KEY = re.compile(
    r"blocks\.(\d{1,4})\.self_attn\.("
    + "|".join(re.escape(name) for name in sorted(_OURS, key=len, reverse=True))
    + r")\.(.+)"
)


@dataclass(frozen=True)
class Extras:
    """The weights that UltraGen adds, per block and in our names: `blocks` feed BlockExtras, `gates` feed BlockGates.

    `fingerprint` recognises the base model that they were trained with; empty where it is not known.
    """

    shape: ExtrasShape
    blocks: dict[int, StateDict]
    gates: dict[int, StateDict] = field(default_factory=dict)
    fingerprint: dict[int, list[float]] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        return bool(self.gates)

    def copied(self) -> Extras:
        """The same weights in memory of their own."""

        def copies(states: dict[int, StateDict]) -> dict[int, StateDict]:
            return {index: {key: value.clone() for key, value in state.items()} for index, state in states.items()}

        return replace(self, blocks=copies(self.blocks), gates=copies(self.gates))


def untrained(channels: int, blocks: list[int], global_ratio: int = 4) -> Extras:
    """What a Wan model without UltraGen's weights runs on: average pooling and nothing else added."""
    shape = ExtrasShape(channels, global_ratio=global_ratio)
    return Extras(shape, {index: initial_block(shape) for index in blocks})


def has_extras(state_dict: StateDict) -> bool:
    return any(map(_EXTRA_KEY.fullmatch, state_dict))


def split(state_dict: StateDict, name: str) -> tuple[StateDict, Extras]:
    """Tell a checkpoint's base from its extras. The base is empty for an extras-only file.

    Raises `WeightsError` where there are no extras, or where they are incomplete or contradict each other or the base.
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
            f"{name} {describe(state_dict)}, not an UltraGen checkpoint: its blocks have no extra keys such as "
            f"blocks.3.self_attn.downsample_conv.weight. Get UltraGen's weights from {SOURCE}."
        )
    per_block = dict(sorted(per_block.items()))
    shape = _validate(per_block, name)
    width = base.get("blocks.0.self_attn.q.weight")
    if width is not None and width.shape[0] != shape.channels:
        raise WeightsError(
            f"{name} mixes two models: its extra keys are for {shape.channels} channels, its Wan keys for"
            f" {width.shape[0]}. Get a whole checkpoint from {SOURCE}."
        )
    extras = Extras(
        shape,
        blocks={i: {k: v for k, v in keys.items() if "_gate." not in k} for i, keys in per_block.items()},
        gates={i: {k: v for k, v in keys.items() if "_gate." in k} for i, keys in per_block.items()},
        fingerprint=fingerprint(base, list(per_block)),
    )
    return base, extras


def published_items(extras: Extras) -> Iterator[tuple[str, Tensor]]:
    """The extras under their published keys."""
    for states in (extras.blocks, extras.gates):
        for index, state in states.items():
            for key, tensor in state.items():
                yield _published(index, key), tensor


def _published(index: int, key: str) -> str:
    """Our key of a block -> the published one."""
    names = EXTRA_NAMES | GATE_NAMES
    module = next(module for module in names if key.startswith(module + "."))
    return f"blocks.{index}.self_attn.{names[module]}.{key.removeprefix(module + '.')}"


def fingerprint(base: StateDict, blocks: list[int]) -> dict[int, list[float]]:
    """A few norm weights of each block: loaders keep these tensors unquantised, so they recognise a base model in any
    precision.
    """
    keys = {index: f"blocks.{index}.self_attn.norm_q.weight" for index in blocks}
    return {index: base[key][:4].float().tolist() for index, key in keys.items() if key in base}


def same_base(a: dict[int, list[float]], b: dict[int, list[float]]) -> bool:
    """Whether two fingerprints agree within the rounding of 16-bit formats, in the blocks that both know."""
    return all(
        torch.allclose(torch.tensor(a[i]), torch.tensor(b[i]), rtol=1e-2, atol=1e-4) for i in a.keys() & b.keys()
    )


def describe(state_dict: StateDict) -> str:
    """What a state dict without extras looks like: the end of a sentence that starts with its name."""
    keys = list(state_dict)
    if any("lora_" in key or ".alpha" in key or "_lora." in key for key in keys):
        return "looks like a LoRA (load it with a LoRA loader after the model)"
    if any(key.startswith("decoder.") for key in keys):
        return "looks like a VAE (load it with a VAE loader)"
    if any(key.startswith("blocks.0.self_attn") for key in keys):
        return "is a Wan model without UltraGen's extra weights (the rule ultragen runs it all the same, experimental)"
    return f"is an unknown file ({len(keys)} tensors, the first {printable(keys[0], 120)!r})"


def _validate(per_block: dict[int, StateDict], name: str) -> ExtrasShape:
    """The one shape that all blocks share; the modules themselves say which keys and sizes belong to it."""
    shape = _shape_of(next(iter(per_block.values())))
    with torch.device("meta"):
        expected = BlockExtras(shape).state_dict() | BlockGates(shape.channels).state_dict()
    for index, found in per_block.items():
        for key in sorted(expected.keys() | found.keys()):
            sizes = [tuple(state[key].shape) if key in state else "nothing" for state in (expected, found)]
            if sizes[0] != sizes[1]:
                raise WeightsError(
                    f"{name} is not a complete UltraGen checkpoint: {_published(index, key)} should be {sizes[0]},"
                    f" found {sizes[1]}. Get a whole one from {SOURCE}."
                )
    return shape


def _shape_of(keys: StateDict) -> ExtrasShape:
    """The sizes that a block's tensors have; 1 stands in where one that tells is missing or no such tensor."""

    def size(key: str, axis: int) -> int:
        return keys[key].shape[axis] if key in keys and keys[key].ndim > 1 and keys[key].numel() else 1

    return ExtrasShape(
        channels=size("global_branch.compress.weight", 0),
        rank=size("global_branch.q.lora_A.weight", 0),
        global_ratio=size("global_branch.compress.weight", -1),
        hierarchical_ratio=size("hierarchical_branch.compress.weight", -1),
        refined=True,
    )
