"""The latent that is kept before anything else can fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ...storage.files import is_full
from ...video.codecs import CROPS, cropped_rows
from ...video.latents import SUFFIX, save_latent
from ...video.prefix import NAMELESS
from ..vae.patch import decoded_shape
from .plan import KEEP, KEEP_NOT, Folders, Request, VideoSettings


@dataclass(frozen=True)
class KeptLatent:
    """path: None where none is wanted or it could not be written, which `failure` tells."""

    path: Path | None = None
    choice: str = KEEP
    failure: str = ""

    @classmethod
    def of(cls, vae, samples: torch.Tensor, request: Request) -> KeptLatent:
        """Save `samples` in output/latents, named like the video, or "ultragen" where its name cannot be used; in the
        output folder itself where that folder cannot be.

        Raises nothing: where no latent can be kept, saving the video is all the more urgent.
        """
        choice, failure = request.settings.keep_latent, ""
        if choice == KEEP_NOT:
            return cls(None, choice)
        size = _video_size(vae, samples, request.settings.crop)
        for prefix_of in (lambda: f"latents/{request.prefix}", lambda: f"latents/{NAMELESS}", lambda: NAMELESS):
            try:
                output = request.folders.output
                names = request.folders.names(output, prefix_of(), SUFFIX.removeprefix("."), *size)
                path = save_latent(names, samples, request.texts)
                logging.info("The latent is kept in %s.", path)
                return cls(path, choice)
            except Exception as error:
                failure = "its disk is full" if is_full(error) else str(error) or type(error).__name__
                if is_full(error):
                    break
        return cls(None, choice, f"The latent could not be kept: {failure}")

    def where(self) -> str:
        """Say where the latent is, after a failure."""
        if self.path is None:
            return self.failure
        return f"The latent is kept in {self.path}: UltraGen Load Latent brings it back."

    def settle(self) -> Path | None:
        """Remove the latent where it was wanted until the video is saved; return its file otherwise."""
        if self.path is None or self.choice == KEEP:
            return self.path
        with suppress(OSError):  # somebody has removed it, or holds it open
            self.path.unlink()
        return None


def keep_refused(inputs: Mapping, folders: Folders, metadata: Mapping) -> str:
    """Keep the latent among a node's refused inputs, which may hold anything; say where it is, if there is one."""
    latent = inputs.get("samples")
    samples = latent.get("samples") if isinstance(latent, Mapping) else None
    samples = video_of(samples)
    if not isinstance(samples, torch.Tensor) or not samples.numel():
        return ""
    choices = {name: inputs[name] for name in ("crop", "keep_latent") if name in inputs}
    settings = VideoSettings(str(inputs.get("filename_prefix", "")), 0, "", 0, **choices)
    return KeptLatent.of(inputs.get("vae"), samples, Request(settings, folders, metadata)).where()


def video_of(samples):
    """The latent of the video alone, where a model makes video and sound as one."""
    return samples.unbind()[0] if getattr(samples, "is_nested", False) else samples


def _video_size(vae, samples: torch.Tensor, crop: str) -> tuple[int, int]:
    """(width, height) for %width% and %height% in names; (0, 0) where it is not known, which is an error later."""
    with suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
        _, _, height, width = decoded_shape(vae, tuple(samples.shape))
        rows = cropped_rows(height, CROPS[crop])
        return width, rows.stop - rows.start
    return 0, 0
