"""A tiny model in the published formats, made up on the spot: an UltraGen checkpoint and a Wan 2.1 VAE.

    python -m tools.tiny_bundle COMFYUI MODELS    writes MODELS/diffusion_models/... and MODELS/vae/...

The files carry the names that the shipped workflow asks for; every key and every rule of shapes is that of the real
files. Nothing is trained: the videos are clouds of colour.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from tools.tiny_weights import DIM, LATENT_CHANNELS, dit_weight, vae_weight

CHECKPOINT = "diffusion_models/ultragen_1080p.ckpt"
VAE = "vae/wan_2.1_vae.safetensors"
TEXT_ENCODER = "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"

HEADS, FFN, BLOCKS, RANK = 2, 512, 4, 8
DENSE_BLOCKS = (0, BLOCKS - 1)
TEXT_DIM, TIME_DIM, VAE_DIM = 4096, 256, 16


def write(models: Path) -> None:
    """Write both files under `models`. ComfyUI must be importable."""
    for name, make, save in [(CHECKPOINT, checkpoint, torch.save), (VAE, vae, save_file)]:
        file = models / name
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save(make(torch.Generator().manual_seed(0)), part)
        part.rename(file)


def checkpoint(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A Wan 2.1 text-to-video model in Wan's own keys, with UltraGen's extra keys in the blocks that are not dense."""
    shapes = dict(wan_shapes())
    for block in range(BLOCKS):
        if block not in DENSE_BLOCKS:
            shapes |= {f"blocks.{block}.self_attn.{key}": shape for key, shape in extra_shapes()}
    return {key: dit_weight(key, shape, generator).to(torch.bfloat16) for key, shape in shapes.items()}


def wan_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes from ComfyUI's own class."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v", dim=DIM, num_heads=HEADS, ffn_dim=FFN, num_layers=BLOCKS,
        text_dim=TEXT_DIM, freq_dim=TIME_DIM, in_dim=LATENT_CHANNELS, out_dim=LATENT_CHANNELS,
        device="meta", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return ((key, tuple(tensor.shape)) for key, tensor in model.state_dict().items())


def extra_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the published checkpoint adds to one self-attention (its spelling included)."""
    for name in ("q_lora_1", "k_lora_1", "v_lora_1", "q_lora_2", "k_lora_2", "v_lora_2"):
        yield from _layer(f"{name}.lora_A", RANK, DIM)
        yield from _layer(f"{name}.lora_B", DIM, RANK)
    for gate in ("", "2"):
        yield from _layer(f"alpha_time_embedding{gate}.0", DIM, TIME_DIM)
        yield from _layer(f"alpha_time_embedding{gate}.2", DIM, DIM)
        yield from _layer(f"alpha_time_projection{gate}.1", DIM, DIM)
    yield from _layer("downsample_conv", DIM, 1, 4, 4)
    yield from _layer("upsample_conv", DIM, 1, 3, 3, 3)
    yield from _layer("downsample_conv_hierachcal", DIM, 1, 2, 2)
    yield from _layer("upsample_conv_hierachcal", DIM, 1, 3, 3, 3)


def _layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def vae(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A Wan 2.1 VAE of a sixth of the width; ComfyUI reads the width off the file."""
    from comfy.ldm.wan.vae import WanVAE

    model = WanVAE(
        dim=VAE_DIM, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    return {key: vae_weight(key, tuple(tensor.shape), generator) for key, tensor in model.state_dict().items()}


if __name__ == "__main__":
    comfyui_tree, models_folder = sys.argv[1:]
    sys.path.insert(0, comfyui_tree)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # ComfyUI picks a device on import, and may find none
    write(Path(models_folder))
