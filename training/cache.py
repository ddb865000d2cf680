"""Latents and text tensors on disk, so that training needs neither VAE nor text encoder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tools.console import Trouble, say
from ultragen_core.sizes import VideoSize
from ultragen_core.storage.files import finished_file

from .data import VIDEOS, captions, clips
from .recipe import at_least
from .settings_file import agree

EMPTY = "empty"  # the file with the text tensor of the empty caption
SETTINGS = "cache.json"
Encode = Callable[[Tensor], Tensor]
"""encode(clip (frames, height, width, 3) in 0..1) -> latent (c, t, h, w), normalised as the transformer takes it."""
EncodeText = Callable[[str], Tensor]
"""encode_text(caption) -> (tokens, text channels)."""


@dataclass(frozen=True)
class CacheSettings:
    """What all clips of a cache share.

    size: of every clip. stride: take every n-th frame of the videos. vae, text_encoder: file names.
    """

    size: VideoSize
    stride: int = 1
    vae: str = ""
    text_encoder: str = ""

    def __post_init__(self):
        at_least(self, stride=1)


@dataclass(frozen=True)
class Clip:
    """latent: (c, t, h, w) float32. text: (tokens, text channels) bfloat16, up to the caption's end.

    condition: (20, t, h, w) float32, the input of an image-to-video model besides noise: a mask and the start
    image's latent.
    """

    latent: Tensor
    text: Tensor
    caption: str
    condition: Tensor | None = None


class Cache:
    """A folder with one safetensors file per clip.

    Each holds `latent` in float16, whose rounding is far below the noise that training adds, and `text` up to the
    caption's end, in bfloat16.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.names = sorted(path.stem for path in folder.glob("*.safetensors") if path.stem != EMPTY)

    def write(self, name: str, latent: Tensor, text: Tensor, caption: str) -> None:
        """Add a clip."""
        tensors = {"latent": latent.cpu().to(torch.float16).contiguous(), "text": _trimmed(text)}
        self._write(name, tensors, {"caption": caption})

    def write_empty(self, text: Tensor) -> None:
        """Add the text tensor of the empty caption, which stands in for dropped captions."""
        self._write(EMPTY, {"text": _trimmed(text)}, {})

    def _write(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with finished_file(self.folder / f"{name}.safetensors") as part:
            save_file(tensors, part, metadata)

    @contextmanager
    def _opened(self, name: str) -> Iterator:
        path = self.folder / f"{name}.safetensors"
        try:
            opened = safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise Trouble(
                f"{path} cannot be read: {error}. Delete it with all other clips of its video, and run the cache"
                " command again."
            ) from None
        with opened as file:
            yield file

    def holds(self, name: str, caption: str) -> bool:
        """Whether the clip is there, with this caption."""
        if not (self.folder / f"{name}.safetensors").is_file():
            return False
        with self._opened(name) as file:
            return file.metadata()["caption"] == caption

    def clip(self, index: int) -> Clip:
        """Read a clip by its index in `names`."""
        with self._opened(self.names[index]) as file:
            return Clip(file.get_tensor("latent").float(), file.get_tensor("text"), file.metadata()["caption"])

    def empty_text(self) -> Tensor:
        """Read the text tensor of the empty caption."""
        with self._opened(EMPTY) as file:
            return file.get_tensor("text")

    def latent_shape(self) -> tuple[int, ...]:
        """Return the (c, t, h, w) that all latents share. Raises Trouble if they differ or there are none."""
        shapes = {}
        for name in self.names:
            with self._opened(name) as file:
                shapes.setdefault(tuple(file.get_slice("latent").get_shape()), name)
        if len(shapes) != 1:
            found = ", ".join(f"{shape} ({name})" for shape, name in shapes.items()) or "none"
            raise Trouble(
                f"All latents of a cache must have one shape; {self.folder} has {found}. Fill another folder."
            )
        return next(iter(shapes))

    def fingerprint(self) -> str:
        """Return a hash of the clips' names in order, which a continued run must find unchanged."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()


def _trimmed(text: Tensor) -> Tensor:
    """Cut off the zeros after the caption's end."""
    used = text.any(-1).nonzero()
    return text[: int(used.max()) + 1 if len(used) else 0].cpu().to(torch.bfloat16).contiguous()


def fill(dataset: Path, cache: Cache, settings: CacheSettings, encode: Encode, encode_text: EncodeText) -> None:
    """Encode every clip of a dataset into a cache. A video that is there already, with its caption, is skipped.

    Raises Trouble if the cache was filled with other settings.
    """
    shared = dataclasses.asdict(settings) | {"size": str(settings.size)}
    agree(cache.folder / SETTINGS, shared)
    cache.write_empty(encode_text(""))
    files = captions(dataset)
    for number, (file, caption) in enumerate(files.items(), 1):
        name = entry_name(file.relative_to(dataset / VIDEOS))
        # The first clip is written last: it marks a complete video.
        if cache.holds(f"{name}-000", caption):
            continue
        text, encoded = encode_text(caption), [encode(clip) for clip in clips(file, settings.size, settings.stride)]
        for index, latent in reversed(list(enumerate(encoded))):
            cache.write(f"{name}-{index:03}", latent, text, caption)
        say(
            f"{number}/{len(files)} {file.name}: {len(encoded)} clips"
            + ("" if encoded else " (the video is too short)")
        )


def entry_name(video: Path) -> str:
    """Name a video's files in the cache: its path in the dataset with its ending, as one file name."""
    return video.as_posix().replace("%", "%25").replace("/", "%2F")
