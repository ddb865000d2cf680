"""Writes the latent to disk before the decode can fail."""

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
from ...video.prefix import DEFAULT_NAME
from ..vae.shapes import decoded_shape
from .request import KEEP, KEEP_NEVER, Folders, Request, VideoSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptLatent:
    """A latent on disk. path: None if keep_latent is off or writing failed; failure: the reason, or ""."""

    path: Path | None = None
    choice: str = KEEP
    failure: str = ""

    @classmethod
    def write(cls, vae, samples: torch.Tensor, request: Request) -> KeptLatent:
        """Write `samples` to output/latents under the video's name.

        Falls back to the name "ultragen", then to the output folder itself, then to the input folder, which may be on
        another disk. Never raises: a latent that cannot be kept must not stop the video.
        """
        choice, folders, failure = request.settings.keep_latent, request.folders, ""
        if choice == KEEP_NEVER:
            return cls(None, choice)
        size = _video_size(vae, samples, request.settings.crop)
        places = [(folders.output, f"latents/{DEFAULT_NAME}"), (folders.output, DEFAULT_NAME)]
        places.append((folders.input, DEFAULT_NAME))
        with suppress(Exception):  # a prefix that cannot be filled in, which check_request reports later
            places.insert(0, (folders.output, f"latents/{request.prefix}"))
        for folder, prefix in places:
            try:
                names = folders.make_names(folder, prefix, SUFFIX.removeprefix("."), *size)
                path = save_latent(names, samples, request.texts)
                log.info("UltraGen: the latent is kept in %s.", path)
                return cls(path, choice)
            except Exception as error:
                failure = failure or ("its disk is full" if is_full(error) else str(error) or type(error).__name__)
        return cls(None, choice, f"The latent could not be kept: {failure}")

    def location(self) -> str:
        """Return a sentence for an error message: where the latent is, or why it could not be kept."""
        if self.path is None:
            return self.failure
        return f"The latent is kept in {self.path}. UltraGen Load Latent loads it again."

    def delete_if_temporary(self) -> Path | None:
        """Delete the latent if it was kept only until the video is saved; otherwise return its path."""
        if self.path is None or self.choice == KEEP:
            return self.path
        with suppress(OSError):  # already deleted, or held open by another program
            self.path.unlink()
        return None


def keep_latent_of_refused_call(inputs: Mapping, folders: Folders, metadata: Mapping) -> str:
    """Keep the latent among a node's refused inputs, which may hold anything.

    Returns a sentence that says where it is, or "" if there is no latent.
    """
    latent = inputs.get("samples")
    samples = video_of(latent.get("samples")) if isinstance(latent, Mapping) else None
    if not isinstance(samples, torch.Tensor) or not samples.numel():
        return ""
    choices = {name: inputs[name] for name in ("crop", "keep_latent") if name in inputs}
    settings = VideoSettings(str(inputs.get("filename_prefix", "")), 0, "", 0, **choices)
    return KeptLatent.write(inputs.get("vae"), samples, Request(settings, folders, metadata)).location()


def video_of(samples):
    """Return the video's part of a nested latent (video and audio of one model); other latents unchanged."""
    return samples.unbind()[0] if getattr(samples, "is_nested", False) else samples


def _video_size(vae, samples: torch.Tensor, crop: str) -> tuple[int, int]:
    """Return (width, height) for %width% and %height%, or (0, 0) if unknown; `check_request` gives the reason."""
    with suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
        _, _, height, width = decoded_shape(vae, tuple(samples.shape))
        rows = cropped_rows(height, CROPS[crop])
        return width, rows.stop - rows.start
    return 0, 0
