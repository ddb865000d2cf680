"""A narrow Wan VAE on ComfyUI's own class, and folders to save videos in."""

from __future__ import annotations

from pathlib import Path

import av
import comfy.ldm.wan.vae
import comfy.sd
import folder_paths
import numpy as np
import torch

from ultragen_core.host.save.request import Folders, VideoSettings


def narrow_vae(seed: int = 0) -> comfy.sd.VAE:
    """Make Wan 2.1's VAE with 8 channels instead of 96 and random weights, in float32."""
    torch.manual_seed(seed)
    layout = {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
    inner = comfy.ldm.wan.vae.WanVAE(**layout, temperal_downsample=[False, True, True], dropout=0.0)
    # The last layer is small, so that most pixels are within 0..1 and none of their digits is clamped.
    weights = {
        key: torch.ones_like(value) if key.endswith("gamma") else torch.randn_like(value) * 0.1
        for key, value in inner.state_dict().items()
    }
    weights["decoder.head.2.weight"] *= 0.15
    return comfy.sd.VAE(sd=weights, dtype=torch.float32)


def folders_in(base: Path) -> Folders:
    folders = [base / name for name in ("output", "temp", "input")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    return Folders(*map(str, folders), folder_paths.get_save_image_path)


def settings(codec: str = "FFV1 lossless RGB", prefix: str = "video/clip", **more) -> VideoSettings:
    return VideoSettings(**({"prefix": prefix, "fps": 15.0, "codec": codec, "crf": 12} | more))


def rgb(path: Path) -> np.ndarray:
    """Decode a lossless file to (frames, height, width, 3) uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def files(base: Path) -> list[str]:
    return sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())


def core_levels(vae, samples: torch.Tensor) -> np.ndarray:
    """Decode one video with ComfyUI, in 8-bit levels, not rounded, float64."""
    return vae.decode(samples)[0].clamp(0, 1).double().numpy() * 255


def rounding_ties(ours: np.ndarray, core: np.ndarray) -> int:
    """Count 8-bit values that differ from ComfyUI's: by 1, and only where its value is half-way between two levels."""
    assert ours.shape == core.shape
    difference = np.abs(ours - core.round())
    assert difference.max() <= 1
    undecided = core[difference > 0] % 1
    assert np.abs(undecided - 0.5).max(initial=0) < 1e-3
    return undecided.size
