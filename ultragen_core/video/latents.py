"""The latent kept beside a video, in the file format of ComfyUI's own SaveLatent and LoadLatent nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..files import finished_file

SUFFIX = ".latent"
_TENSOR = "latent_tensor"
# ComfyUI's mark for latents as its nodes hand them on; files without it are scaled by Stable Diffusion 1's factor.
_UNSCALED = "latent_format_version_0"
_SD1_SCALE = 0.18215


def save_latent(path: Path, samples: torch.Tensor, metadata: Mapping[str, str]) -> None:
    """Write `samples`, of any shape, whole or not at all; `metadata` are texts such as the prompt and the workflow."""
    tensors = {_TENSOR: samples.detach().cpu().contiguous(), _UNSCALED: torch.tensor([])}
    with finished_file(path) as part:
        save_file(tensors, part, metadata=dict(metadata) or None)


def load_latent(path: Path) -> torch.Tensor:
    """The float32 latent in a file; ValueError, in a sentence, where the file holds none."""
    try:
        tensors = load_file(path, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a complete latent file ({error}). Choose another one.") from error
    if _TENSOR not in tensors:
        raise ValueError(f"A latent file holds a tensor named {_TENSOR}, {path.name} holds {sorted(tensors)}.")
    samples = tensors[_TENSOR].float()
    if samples.ndim < 4 or 0 in samples.shape:
        raise ValueError(f"A latent has 4 or 5 axes and none of them empty, {path.name} has {tuple(samples.shape)}.")
    if not torch.isfinite(samples).all():
        raise ValueError(f"{path.name} holds NaN or infinite values: the sampling that made it had failed.")
    return samples if _UNSCALED in tensors else samples / _SD1_SCALE


def newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime, reverse=True)
