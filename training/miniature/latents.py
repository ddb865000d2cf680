"""Latents of painted clips for the trainer, one file per size."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.console import ProgressLine
from training.cache import Clip
from training.encoders import latent_format
from training.miniature.scenes import scene
from training.miniature.text import word_vectors
from ultragen_core.sizes import VideoSize
from ultragen_core.storage.files import finished_file

from . import clip_vae
from .painter import paint


class Latents:
    """The clips of a file from `write`, with the interface of training.cache.Cache."""

    def __init__(self, file: Path):
        self.folder = file  # named in error messages
        with safe_open(file, "pt") as held:
            self._latents, self._metadata = held.get_tensor("latents"), held.metadata()
        self.names = [str(number) for number in json.loads(self._metadata["numbers"])]

    def clip(self, index: int) -> Clip:
        caption = scene(int(self.names[index])).caption
        return Clip(self._latents[index].float(), words(caption), caption)

    def empty_text(self) -> Tensor:
        return words("")

    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self._latents.shape[1:])

    def fingerprint(self) -> str:
        return hashlib.sha256(self._metadata["numbers"].encode()).hexdigest()


@functools.cache
def words(caption: str) -> Tensor:
    """Return the demo's text tensor up to the caption's end, in bfloat16 as in a cache."""
    return word_vectors(caption)[: len(caption.split())].bfloat16()


@torch.no_grad()
def encoded(vae: nn.Module, numbers: range, size: VideoSize, device: torch.device, batch: int = 4) -> Iterator[Tensor]:
    """Yield the VAE's latents (b, 16, t, h, w) of painted clips."""
    for start in range(0, len(numbers), batch):
        clips = torch.stack([paint(number, *size, device=device) for number in numbers[start : start + batch]])
        yield clip_vae.encode(vae, clips.movedim(-1, 1) * 2 - 1)[0]


def normalised(latents: Tensor) -> Tensor:
    """Convert latents of the VAE to inputs of the transformer."""
    return latent_format(clip_vae.CHANNELS).process_in(latents)


def raw(latents: Tensor) -> Tensor:
    """The inverse of `normalised`."""
    return latent_format(clip_vae.CHANNELS).process_out(latents)


def write(file: Path, vae: nn.Module, numbers: range, size: VideoSize, device: torch.device) -> None:
    line, made = ProgressLine(), []
    for latents in encoded(vae, numbers, size, device):
        made.append(normalised(latents).to("cpu", torch.float16))
        line.show(f"{size}: {sum(map(len, made))}/{len(numbers)} clips encoded")
    line.end()
    with finished_file(file) as part:
        save_file({"latents": torch.cat(made).contiguous()}, part, {"numbers": json.dumps(list(numbers))})
