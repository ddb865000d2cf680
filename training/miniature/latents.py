"""Latents of painted clips for the trainer, in files of some thousand clips of one size."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
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

AT_ONCE = 4  # clips that are encoded together
CONDITION_CHANNELS = 4 + clip_vae.CHANNELS  # a mask and a start image's latent


class Latents:
    """The clips of files from `write`, in this order, with the interface of training.cache.Cache."""

    def __init__(self, files: Sequence[Path]):
        self.folder = files[0].parent  # named in error messages
        tensors, self.names = [], []
        for file in files:
            with safe_open(file, "pt") as held:
                tensors.append({key: held.get_tensor(key) for key in held.keys()})  # noqa: SIM118, no mapping
                self.names += map(str, json.loads(held.metadata()["numbers"]))
        self._tensors = {key: torch.cat([some[key] for some in tensors]) for key in tensors[0]}

    def clip(self, index: int) -> Clip:
        caption = scene(int(self.names[index])).caption
        return Clip(caption=caption, text=words(caption), **{key: x[index].float() for key, x in self._tensors.items()})

    def empty_text(self) -> Tensor:
        return words("")

    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self._tensors["latent"].shape[1:])

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([int(name) for name in self.names]).encode()).hexdigest()


@functools.cache
def words(caption: str) -> Tensor:
    """Return the demo's text tensor up to the caption's end, in bfloat16 as in a cache."""
    return word_vectors(caption)[: len(caption.split())].bfloat16()


@torch.no_grad()
def encoded(
    vae: nn.Module, numbers: range, size: VideoSize, device: torch.device, batch: int = AT_ONCE
) -> Iterator[Tensor]:
    """Yield the VAE's latents (b, 16, t, h, w) of painted clips."""
    for clips in _painted(numbers, size, device, batch):
        yield clip_vae.encode(vae, clips.movedim(-1, 1) * 2 - 1)[0]


def _painted(numbers: range, size: VideoSize, device: torch.device, batch: int = AT_ONCE) -> Iterator[Tensor]:
    """Yield clips (b, frames, height, width, 3) in 0..1."""
    for start in range(0, len(numbers), batch):
        yield torch.stack([paint(number, *size, device=device) for number in numbers[start : start + batch]])


def normalised(latents: Tensor) -> Tensor:
    """Convert latents of the VAE to inputs of the transformer."""
    return latent_format(clip_vae.CHANNELS).process_in(latents)


def raw(latents: Tensor) -> Tensor:
    """The inverse of `normalised`."""
    return latent_format(clip_vae.CHANNELS).process_out(latents)


@torch.no_grad()
def start_condition(vae: nn.Module, images: Tensor, frames: int) -> Tensor:
    """Return what an image-to-video model is given besides noise, as ComfyUI's WanImageToVideo makes it.

    images: (b, height, width, 3) in 0..1. -> (b, 20, t, h, w): a mask that is 1 where the image stands, in 4 channels,
    and the latent of a video of the image and then grey.
    """
    video = torch.zeros(len(images), 3, frames, *images.shape[1:3], device=images.device)
    video[:, :, 0] = images.movedim(-1, 1) * 2 - 1
    latent = normalised(clip_vae.encode(vae, video)[0])
    mask = torch.zeros_like(latent[:, :4])
    mask[:, :, 0] = 1
    return torch.cat((mask, latent), dim=1)


@torch.no_grad()
def write(
    file: Path, vae: nn.Module, numbers: range, size: VideoSize, device: torch.device, start_images: bool = False
) -> None:
    """Encode painted clips into a file. start_images: also write the conditions of image-to-video models."""
    line, made = ProgressLine(), {"latent": [], "condition": []}
    for clips in _painted(numbers, size, device):
        latents = normalised(clip_vae.encode(vae, clips.movedim(-1, 1) * 2 - 1)[0])
        made["latent"].append(latents.to("cpu", torch.float16))
        if start_images:
            condition = start_condition(vae, clips[:, 0], size.frames)
            made["condition"].append(condition.to("cpu", torch.float16))
        line.show(f"{size}: {sum(map(len, made['latent']))}/{len(numbers)} clips encoded")
    line.end()
    tensors = {key: torch.cat(parts).contiguous() for key, parts in made.items() if parts}
    with finished_file(file) as part:
        save_file(tensors, part, {"numbers": json.dumps(list(numbers))})
