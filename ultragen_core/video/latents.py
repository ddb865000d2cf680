"""Latent files in the format of ComfyUI's SaveLatent and LoadLatent."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save

from ..storage.files import new_file
from ..storage.safetensors_file import MAX_HEADER_BYTES, DamagedFile, read_tensors

SUFFIX = ".latent"
_TENSOR = "latent_tensor"
# Marks latents that are stored unscaled. Older files lack it and are scaled by Stable Diffusion 1's factor.
_UNSCALED = "latent_format_version_0"
_SD1_SCALE = 0.18215
_ENTRIES_BYTES = 1000  # of a header, more than both tensors need

log = logging.getLogger(__name__)


def save_latent(names: Iterable[Path], samples: torch.Tensor, metadata: Mapping[str, str]) -> Path:
    """Write `samples` atomically under the first free name of `names` and return that name.

    metadata: texts to store, such as the prompt and the workflow; left out where they are too long for the file to be
    read again. Raises OSError.
    """
    tensors = {_TENSOR: samples.detach().cpu().contiguous(), _UNSCALED: torch.tensor([])}
    texts = dict(metadata)
    if len(json.dumps(texts)) > MAX_HEADER_BYTES - _ENTRIES_BYTES:
        log.warning("UltraGen: the latent is saved without prompt and workflow, which are too long for its file.")
        texts = {}
    with new_file(names) as file:
        # Not safetensors' save_file: it writes another file and renames it over this one.
        file.part.write_bytes(save(tensors, metadata=texts or None))
    return file.path


def load_latent(path: Path) -> torch.Tensor:
    """Read the latent of a file as float32. Values may be NaN or infinite: see `count_not_finite`.

    Raises ValueError for a file that holds no complete latent.
    """
    try:
        tensors, _ = read_tensors(path)
    except DamagedFile as error:
        raise ValueError(f"{path.name} is not a complete latent file: {error}. Choose another file.") from error
    if _TENSOR not in tensors:
        raise ValueError(
            f"A latent file must hold a tensor named {_TENSOR}; {path.name} holds {sorted(tensors)}. Choose another"
            " file."
        )
    samples = tensors[_TENSOR].float()
    if samples.ndim < 4 or 0 in samples.shape:
        raise ValueError(
            f"A latent must have 4 or 5 non-empty axes, but {path.name} has shape {tuple(samples.shape)}. Choose"
            " another file."
        )
    return samples if _UNSCALED in tensors else samples / _SD1_SCALE


def count_not_finite(samples: torch.Tensor) -> int:
    """Return the number of NaN or infinite values."""
    return samples.numel() - int(torch.isfinite(samples).sum())


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Sort files by modification time, newest first. Paths that are not files (any more) are dropped."""
    changed = {}
    for path in paths:
        with suppress(OSError):
            if path.is_file():
                changed[path] = path.stat().st_mtime
    return sorted(changed, key=changed.__getitem__, reverse=True)
