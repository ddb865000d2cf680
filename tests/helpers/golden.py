"""Numbers of the published codes in tests/data, and modules with the weights that they were computed with."""

from __future__ import annotations

from safetensors.torch import load_file
from torch import Tensor

from helpers.support import DATA, ToyAttention
from ultragen_core.attention.extras import BlockExtras
from ultragen_core.attention.gate import BlockGates
from ultragen_core.grid import TokenGrid
from ultragen_core.weights.published import split

T3 = load_file(DATA / "t3_layer_io.safetensors")
T3_OUTPUTS = [name for name in T3 if name.endswith(".out")]


def t3_attn() -> ToyAttention:
    """The projections of T3-Video's layer."""
    attn = ToyAttention(channels=256, heads=2)
    weights = {name.removeprefix("weight."): value for name, value in T3.items() if name.startswith("weight.")}
    attn.load_state_dict({name: value.float() for name, value in weights.items()})
    return attn


def t3_case(name: str) -> tuple[Tensor, TokenGrid, tuple[int, ...]]:
    """Input, grid and windows of one of T3_OUTPUTS."""
    case, counts, _ = name.split(".")
    windows = tuple(int(n) for n in counts[1:].split("_"))
    return T3[f"{case}.x"], TokenGrid(*T3[f"{case}.grid"].tolist()), windows


def tiny_blocks() -> dict[int, tuple[ToyAttention, BlockExtras, BlockGates]]:
    """Projections, extras and gates of the tiny checkpoint's blocks that have extras."""
    base, extras = split(load_file(DATA / "tiny_ultragen.safetensors"), "tiny")

    def block(index):
        modules = BlockExtras(extras.shape), BlockGates(extras.shape.channels)
        for module, state in zip(modules, (extras.blocks[index], extras.gates[index]), strict=True):
            module.load_state_dict({key: value.float() for key, value in state.items()})
        prefix = f"blocks.{index}.self_attn."
        attn = ToyAttention(channels=256, heads=2)
        attn.load_state_dict(
            {key.removeprefix(prefix): value.float() for key, value in base.items() if key.startswith(prefix)}
        )
        return attn, *modules

    return {index: block(index) for index in extras.blocks}
