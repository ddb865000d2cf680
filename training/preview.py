"""A video of what the model paints by now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ultragen_core.host.vae.exact import decode
from ultragen_core.sampling import flow_sigmas
from ultragen_core.video.codecs import PREVIEW, frame_rate
from ultragen_core.video.encoder import VideoWriter
from ultragen_core.video.frames import quantise

from .encoders import latent_format

CRF = 17


@torch.no_grad()
def sample(
    model: nn.Module, noise: Tensor, text: Tensor, empty: Tensor, steps: int, shift: float, cfg: float
) -> Tensor:
    """Euler steps of flow matching from noise (b, c, t, h, w) to latents; text, empty: (b, 512, text channels)."""
    return denoised(model, noise, text, empty, flow_sigmas(steps, shift).to(noise.device), cfg)


@torch.no_grad()
def denoised(model: nn.Module, x: Tensor, text: Tensor, empty: Tensor, sigmas: Tensor, cfg: float) -> Tensor:
    """The same from x, which has as much noise as the first of the levels says, to the last level."""
    texts = torch.cat((text, empty))
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        positive, negative = model(x.repeat(2, 1, 1, 1, 1), (1000 * now).expand(len(texts)), texts).float().chunk(2)
        x = x + (then - now) * (negative + cfg * (positive - negative))
    return x


def write_video(vae, latents: Sequence[Tensor], path: Path, fps: float) -> None:
    """Latents (1, c, t, h, w), decoded exactly, side by side."""
    decoded = [decode(vae, latent_format(latent.shape[1]).process_out(latent))[0] for latent in latents]
    frames = torch.cat(decoded, dim=2).clamp(0, 1)
    size = frames.shape[2], frames.shape[1]
    with VideoWriter(path, PREVIEW, size, frame_rate(fps), CRF, len(frames)) as writer:
        for frame in quantise(frames, 8):
            writer.write(frame.numpy())
        writer.finish(lambda: None)
