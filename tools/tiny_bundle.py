"""A tiny model in the published formats, made up on the spot: an UltraGen checkpoint and a Wan 2.1 VAE.

    python tools/tiny_bundle.py COMFYUI MODELS    writes MODELS/diffusion_models/... and MODELS/vae/...

The files carry the names that the shipped workflow asks for. The weights are random, seeded and small, so the videos
are textures and not scenes; every key and every rule of shapes is that of the real files.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

CHECKPOINT = "diffusion_models/ultragen_1080p.ckpt"
VAE = "vae/wan_2.1_vae.safetensors"
TEXT_ENCODER = "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"

DIM, HEADS, FFN, BLOCKS, RANK = 256, 2, 512, 4, 8
DENSE_BLOCKS = (0, BLOCKS - 1)
TEXT_DIM, TIME_DIM, LATENT_CHANNELS, VAE_DIM = 4096, 256, 16, 16


def write(models: Path, seed: int = 0) -> None:
    """Write both files under `models`, unless they are there. ComfyUI must be importable."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    makers = {CHECKPOINT: (checkpoint, torch.save), VAE: (vae, save_file)}
    for name, (make, save) in makers.items():
        file = models / name
        state_dict = make(generator)
        if file.is_file():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save(state_dict, part)
        part.rename(file)


def checkpoint(generator) -> dict:
    """A Wan 2.1 text-to-video model in Wan's own keys, with UltraGen's extra keys in the blocks that are not dense."""
    import torch

    shapes = dict(wan_shapes())
    for block in range(BLOCKS):
        if block not in DENSE_BLOCKS:
            shapes |= {f"blocks.{block}.self_attn.{key}": shape for key, shape in extra_shapes()}
    return {key: _dit_weight(key, shape, generator).to(torch.bfloat16) for key, shape in shapes.items()}


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


def _dit_weight(key: str, shape: tuple[int, ...], generator):
    import torch

    noise = torch.randn(shape, generator=generator)
    if key.endswith((".norm_q.weight", ".norm_k.weight", ".norm3.weight")):
        return torch.ones(shape)
    if "sample_conv" in key:  # near the average over the kernel, which is where training starts
        mean = 0 if key.endswith("bias") else 1 / math.prod(shape[1:])
        return mean + 0.1 * mean * noise
    if key.endswith("bias"):
        return 0.02 * noise
    if "modulation" in key:
        return noise / math.sqrt(DIM)
    return noise / math.sqrt(math.prod(shape[1:]))


def vae(generator) -> dict:
    """A Wan 2.1 VAE of a sixth of the width; ComfyUI reads the width off the file."""
    import torch
    from comfy.ldm.wan.vae import WanVAE

    model = WanVAE(
        dim=VAE_DIM, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    state_dict = {}
    for key, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if key.endswith("gamma"):
            state_dict[key] = torch.ones(tensor.shape)
        elif key.endswith("bias"):
            state_dict[key] = torch.zeros(tensor.shape)
        else:
            state_dict[key] = noise / math.sqrt(math.prod(tensor.shape[1:]))
    return state_dict


if __name__ == "__main__":
    sys.path[0], models_folder = sys.argv[1:]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # ComfyUI picks a device on import, and may find none
    write(Path(models_folder))
