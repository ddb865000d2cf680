"""Tiny models in the published formats, and the other files that the templates read.

    python -m tools.tiny_bundle COMFYUI BASE [--random | --trained]    writes BASE/models/..., BASE/input/...

The files have the names that the templates ask for, and the keys and shape rules of the real files. UltraGen's
checkpoint, Wan 2.1's VAE, T3-Video's 1.3B model and the image-to-video model are the trained miniature. All others, and
with --random these too, are random and paint clouds of colour. --trained writes the first two alone, which takes a
second instead of half a minute.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tools import tiny_seedvr2
from tools.tiny_weights import DIM, dit_weight, vae_weight
from tools.workflow import KEPT_LATENT
from training.miniature import WEIGHTS
from training.miniature.packed import unpacked
from training.miniature.painter import picture
from training.miniature.scenes import Scene
from ultragen_core.video.frames import quantise

CHECKPOINT = "models/diffusion_models/ultragen_1080p.ckpt"
VAE, VAE_WAN22 = "models/vae/wan_2.1_vae.safetensors", "models/vae/wan2.2_vae.safetensors"
IMAGE, VIDEO, LATENT = "input/example.png", "input/example.mp4", f"input/{KEPT_LATENT}"
# Too large to generate: loaders list these empty files, nothing loads them.
PLACEHOLDERS = (
    "models/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "models/clip_vision/clip_vision_h.safetensors",
)

HEADS, FFN, BLOCKS, RANK = 2, 512, 4, 8
DENSE_BLOCKS = (0, BLOCKS - 1)
TEXT_DIM, TIME_DIM, VAE_DIM = 4096, 256, 16
CHANNELS, CHANNELS_WAN22 = 16, 48
VAE_SHAPE = {
    "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True],
}  # fmt: skip
WIDTH, HEIGHT, FRAMES = 320, 176, 5  # of the video and the kept latent
IMAGE_WIDTH, IMAGE_HEIGHT = 640, 352
VIDEO_FRAMES, VIDEO_FPS, AUDIO_RATE = 7, Fraction(24000, 1001), 48000


def write_trained(base: Path) -> None:
    """Write UltraGen's checkpoint and Wan 2.1's VAE, trained, under `base`, a ComfyUI base directory."""
    _write(base, TRAINED)


def write(base: Path, random: bool = False) -> None:
    """Write every file under `base`, a ComfyUI base directory. Needs ComfyUI on sys.path."""
    kept = {file: (partial(trained, name), save_file) for file, name in KEPT.items()}
    seedvr2 = SEEDVR2 if tiny_seedvr2.exists() else {}
    _write(base, GENERATED | seedvr2 | (RANDOM if random else TRAINED | kept))


def _write(base: Path, made: Mapping[str, tuple[Callable, Callable]]) -> None:
    for name, (make, save) in made.items():
        file = base / name
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save(make(generator=torch.Generator().manual_seed(0)), part)
        part.replace(file)


def trained(name: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return unpacked(load_file(WEIGHTS / name))


def checkpoint(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make a Wan 2.1 text-to-video model in Wan's keys, with extras in the blocks that are not dense."""
    shapes = dict(wan_shapes())
    for block in range(BLOCKS):
        if block not in DENSE_BLOCKS:
            shapes |= {f"blocks.{block}.self_attn.{key}": shape for key, shape in extra_shapes()}
    return _weights(shapes, CHANNELS, generator)


def wan(generator: torch.Generator, channels: int = CHANNELS, kind: str = "t2v") -> dict[str, torch.Tensor]:
    """Make a Wan model in Wan's keys: text-to-video, or with kind "i2v" image-to-video."""
    return _weights(dict(wan_shapes(channels, kind)), channels, generator)


def _weights(shapes: dict[str, tuple[int, ...]], channels: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {key: dit_weight(key, shape, channels, generator).to(torch.bfloat16) for key, shape in shapes.items()}


def wan_shapes(channels: int = CHANNELS, kind: str = "t2v") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield keys and shapes of ComfyUI's class."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    image = channels + 4 if kind == "i2v" else 0  # the image's latent and a mask
    model = WanModel(
        model_type=kind, dim=DIM, num_heads=HEADS, ffn_dim=FFN, num_layers=BLOCKS,
        text_dim=TEXT_DIM, freq_dim=TIME_DIM, in_dim=channels + image, out_dim=channels,
        device="meta", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return ((key, tuple(tensor.shape)) for key, tensor in model.state_dict().items())


def lora(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make a LoRA on every query projection."""
    shapes = {"lora_down": (RANK, DIM), "lora_up": (DIM, RANK)}
    return {
        f"diffusion_model.blocks.{block}.self_attn.q.{name}.weight": torch.randn(shape, generator=generator) / DIM
        for block in range(BLOCKS)
        for name, shape in shapes.items()
    }


def extra_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield keys and shapes of one block's extras in the published checkpoint, in its spelling."""
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
    """Make a Wan 2.1 VAE of a sixth of the width. ComfyUI detects the width from the file."""
    import comfy.ldm.wan.vae

    return _vae(comfy.ldm.wan.vae.WanVAE(dim=VAE_DIM, z_dim=CHANNELS, **VAE_SHAPE), generator)


def vae_wan22(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make a Wan 2.2 VAE of the same width. ComfyUI loads only the full width; the demo's node loads this file."""
    import comfy.ldm.wan.vae2_2

    sizes = {"dim": VAE_DIM, "dec_dim": VAE_DIM, "z_dim": CHANNELS_WAN22}
    return _vae(comfy.ldm.wan.vae2_2.WanVAE(**sizes, **VAE_SHAPE), generator)


def _vae(model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {key: vae_weight(key, tuple(tensor.shape), generator) for key, tensor in model.state_dict().items()}


def latent(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make a latent of drifting clouds, in the format of UltraGen Save Video."""
    frames = (FRAMES - 1) // 4 + 1
    coarse = torch.randn(1, CHANNELS, frames, 3, 5, generator=generator)
    size = (frames, HEIGHT // 8, WIDTH // 8)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="trilinear", align_corners=True)
    return {"latent_tensor": smooth, "latent_format_version_0": torch.tensor([])}


def image(generator: torch.Generator):
    """Make a start image: a painted landscape."""
    from PIL import Image

    (frame,) = picture(Scene("clear", "dusk", "meadow", "peaks", "right", "eastward"), 9, IMAGE_WIDTH, IMAGE_HEIGHT, 1)
    return Image.fromarray(quantise(frame, 8).numpy())


def video(generator: torch.Generator) -> torch.Tensor:
    """Make the frames (t, h, w, 3) of a painted video. Their number is not 4n + 1."""
    return picture(Scene("clear", "dusk", "lake", "peaks", "left", "eastward"), 5, WIDTH, HEIGHT, VIDEO_FRAMES)


def save_video(frames: torch.Tensor, file: Path) -> None:
    """Write frames at a rate of VIDEO_FPS, with a tone as long as the video, as .mp4."""
    import av

    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=VIDEO_FPS)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=AUDIO_RATE, layout="mono")
        for frame in (255 * frames).round().byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
        samples = math.ceil(len(frames) / VIDEO_FPS * AUDIO_RATE)
        tone = torch.sin(torch.arange(samples) * 0.05)[None].numpy()
        piece = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        piece.sample_rate = AUDIO_RATE
        container.mux(sound.encode(piece))
        container.mux(sound.encode(None))


# {file: (make(generator) -> content, save(content, file))}
TRAINED = {
    CHECKPOINT: (partial(trained, "ultragen.safetensors"), torch.save),
    VAE: (partial(trained, "vae.safetensors"), save_file),
}
# Further models of the miniature, packed.
KEPT = {
    "models/diffusion_models/T3-Video-Wan2.1-T2V-1.3B.safetensors": "t3.safetensors",
    "models/diffusion_models/wan2.1_i2v_720p_14B_fp16.safetensors": "i2v.safetensors",
}
RANDOM = {CHECKPOINT: (checkpoint, torch.save), VAE: (vae, save_file)}
GENERATED = {
    "models/diffusion_models/T3-Video-Wan2.1-T2V-1.3B.safetensors": (wan, save_file),
    "models/diffusion_models/T3-Video-Wan2.2-T2V-5B.safetensors": (partial(wan, channels=CHANNELS_WAN22), save_file),
    "models/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors": (wan, save_file),
    "models/diffusion_models/wan2.1_i2v_720p_14B_fp16.safetensors": (partial(wan, kind="i2v"), save_file),
    "models/loras/Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors": (lora, save_file),
    VAE_WAN22: (vae_wan22, save_file),
    LATENT: (latent, save_file),
    IMAGE: (image, lambda picture, file: picture.save(file, format="png")),
    VIDEO: (video, save_video),
}
SEEDVR2 = {
    "models/diffusion_models/seedvr2_3b_int8_convrot.safetensors": (tiny_seedvr2.model, save_file),
    "models/vae/seedvr2_ema_vae_fp16.safetensors": (tiny_seedvr2.vae, save_file),
}


if __name__ == "__main__":
    comfyui_tree, base_folder, *options = sys.argv[1:]
    sys.path.insert(0, comfyui_tree)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # ComfyUI chooses a device on import and fails without a GPU otherwise
    if "--trained" in options:
        write_trained(Path(base_folder))
    else:
        write(Path(base_folder), random="--random" in options)
