"""The latent kept beside a video, in the file format of ComfyUI's own SaveLatent and LoadLatent nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save

from ..storage.files import new_file
from ..storage.safetensors_file import DamagedFile, read_tensors

SUFFIX = ".latent"
_TENSOR = "latent_tensor"
# ComfyUI's mark for latents as its nodes hand them on; files without it are scaled by Stable Diffusion 1's factor.
_UNSCALED = "latent_format_version_0"
_SD1_SCALE = 0.18215


def save_latent(names: Iterable[Path], samples: torch.Tensor, metadata: Mapping[str, str]) -> Path:
    """Write `samples`, of any shape, to the first free one of `names`, whole or not at all; return that name.

    `metadata` are texts such as the prompt and the workflow.
    """
    tensors = {_TENSOR: samples.detach().cpu().contiguous(), _UNSCALED: torch.tensor([])}
    with new_file(names) as file:
        # Not safetensors' save_file, which writes elsewhere and then takes the part's place.
        file.part.write_bytes(save(tensors, metadata=dict(metadata) or None))
    return file.path


def load_latent(path: Path) -> torch.Tensor:
    """Read the float32 latent of a file; ValueError, in a sentence, where the file holds none.

    The values may be NaN or infinite: see `count_not_finite`.
    """
    try:
        tensors, _ = read_tensors(path)
    except DamagedFile as error:
        raise ValueError(f"{path.name} is not a complete latent file: {error}. Choose another one.") from error
    if _TENSOR not in tensors:
        raise ValueError(f"A latent file holds a tensor named {_TENSOR}, {path.name} holds {sorted(tensors)}.")
    samples = tensors[_TENSOR].float()
    if samples.ndim < 4 or 0 in samples.shape:
        raise ValueError(f"A latent has 4 or 5 axes and none of them empty, {path.name} has {tuple(samples.shape)}.")
    return samples if _UNSCALED in tensors else samples / _SD1_SCALE


def count_not_finite(samples: torch.Tensor) -> int:
    """Count the values that are NaN or infinite."""
    return samples.numel() - int(torch.isfinite(samples).sum())


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Sort files by the time of their last change; what is no file any more is left out."""
    changed = {}
    for path in paths:
        with suppress(OSError):
            if path.is_file():
                changed[path] = path.stat().st_mtime
    return sorted(changed, key=changed.__getitem__, reverse=True)
