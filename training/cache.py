"""Latents and text tensors on disk, so that neither VAE nor text encoder is in memory while training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tools.console import Trouble, say
from ultragen_core.sizes import VideoSize
from ultragen_core.storage.files import finished_file

from .data import captions, clips

EMPTY = "empty"  # the file with the text tensor of the empty caption
Encode = Callable[[Tensor], Tensor]
"""encode(clip (frames, height, width, 3) in 0..1) -> latent (c, t, h, w), normalised as the transformer takes it."""
EncodeText = Callable[[str], Tensor]
"""encode_text(caption) -> (tokens, text channels)."""


@dataclass(frozen=True)
class Clip:
    """latent: (c, t, h, w). text: (tokens, text channels), up to the caption's end."""

    latent: Tensor
    text: Tensor
    caption: str


class Cache:
    """A folder with one safetensors file a clip: `latent` in float16, whose rounding is far below any noise that is
    added to it, and `text` up to the caption's end, in bfloat16.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.names = sorted(path.stem for path in folder.glob("*.safetensors") if path.stem != EMPTY)

    def write(self, name: str, latent: Tensor, text: Tensor, caption: str) -> None:
        """Add a clip."""
        tensors = {"latent": latent.cpu().to(torch.float16).contiguous(), "text": _trimmed(text)}
        self._write(name, tensors, {"caption": caption})

    def write_empty(self, text: Tensor) -> None:
        """The text tensor of the empty caption, which clips whose caption is dropped are seen with."""
        self._write(EMPTY, {"text": _trimmed(text)}, {})

    def _write(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with finished_file(self.folder / f"{name}.safetensors") as part:
            save_file(tensors, part, metadata)

    def holds(self, name: str, caption: str) -> bool:
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return False
        with safe_open(path, "pt") as file:
            return file.metadata()["caption"] == caption

    def clip(self, index: int) -> Clip:
        with safe_open(self.folder / f"{self.names[index]}.safetensors", "pt") as file:
            return Clip(file.get_tensor("latent").float(), file.get_tensor("text"), file.metadata()["caption"])

    def empty_text(self) -> Tensor:
        with safe_open(self.folder / f"{EMPTY}.safetensors", "pt") as file:
            return file.get_tensor("text")

    def latent_shape(self) -> tuple[int, ...]:
        """(c, t, h, w) of every latent. Raises Trouble where there are none, or of several sizes."""
        shapes = {}
        for name in self.names:
            with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
                shapes.setdefault(tuple(file.get_slice("latent").get_shape()), name)
        if len(shapes) != 1:
            found = ", ".join(f"{shape} ({name})" for shape, name in shapes.items()) or "none"
            raise Trouble(f"A cache holds latents of one size, {self.folder} has {found}. Fill another folder anew.")
        return next(iter(shapes))

    def fingerprint(self) -> str:
        """What a run that goes on must find again: the clips' names, in order."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()


def _trimmed(text: Tensor) -> Tensor:
    """Without the zeros after the end."""
    used = text.any(-1).nonzero()
    return text[: int(used.max()) + 1 if len(used) else 0].cpu().to(torch.bfloat16).contiguous()


def fill(dataset: Path, cache: Cache, size: VideoSize, stride: int, encode: Encode, encode_text: EncodeText) -> None:
    """Every clip of the dataset into the cache; videos that are there already, whole and with their caption, stay."""
    cache.write_empty(encode_text(""))
    files = captions(dataset)
    for number, (file, caption) in enumerate(files.items(), 1):
        # A video is done when its first clip is there, so that one is written last.
        if cache.holds(f"{file.stem}-000", caption):
            continue
        text, encoded = encode_text(caption), [encode(clip) for clip in clips(file, size, stride)]
        for index, latent in reversed(list(enumerate(encoded))):
            cache.write(f"{file.stem}-{index:03}", latent, text, caption)
        say(
            f"{number}/{len(files)} {file.name}: {len(encoded)} clips"
            + ("" if encoded else " (the video is too short)")
        )
