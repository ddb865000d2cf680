"""Wan models of real size with random weights, in the published format."""

from __future__ import annotations

from pathlib import Path

import torch

# Wan 2.1 1.3B and Wan 2.2 5B.
MODELS = {
    "1.3b": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "channels": 16},
    "5b": {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "channels": 48},
}
LAYERS = 30
TEXT = {"text_dim": 4096, "tokens": 512}


def write_checkpoint(path: Path, shape: dict, extras: bool, device: str = "cuda") -> None:
    """Write a whole Wan model, with UltraGen's extras in every block or without. shape: of MODELS, and num_layers."""
    from safetensors.torch import save_file

    state = _base(shape, device)
    if extras:
        state |= _extras(shape["dim"], shape["num_layers"])
    save_file(state, path)


def _base(shape: dict, device: str) -> dict[str, torch.Tensor]:
    import comfy.ldm.wan.model as wan

    sizes = {key: value for key, value in shape.items() if key != "channels"}
    with torch.device("meta"):
        model = wan.WanModel(
            in_dim=shape["channels"], out_dim=shape["channels"], text_dim=TEXT["text_dim"], cross_attn_norm=True,
            operations=torch.nn, **sizes,
        )  # fmt: skip
    state = {}
    for key, parameter in model.state_dict().items():
        scale = 0.02 if parameter.ndim > 1 else 0.1
        value = scale * torch.randn(parameter.shape, device=device)
        state[key] = (1 + value if "norm" in key and key.endswith("weight") else value).bfloat16().cpu()
    return state


def _extras(channels: int, blocks: int) -> dict[str, torch.Tensor]:
    from ultragen_core.attention.extras import ExtrasShape, initial_block
    from ultragen_core.attention.gate import BlockGates
    from ultragen_core.weights.published import Extras, published_items

    shape, gates = ExtrasShape(channels, 64, refined=True), BlockGates(channels).state_dict()
    made = Extras(
        shape,
        {i: {k: v + 0.01 * torch.randn_like(v) for k, v in initial_block(shape).items()} for i in range(blocks)},
        dict.fromkeys(range(blocks), gates),
    )
    return {key: value.detach().bfloat16().clone() for key, value in published_items(made)}
