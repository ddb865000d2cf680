"""How far another precision carries the miniature's videos from those of its bf16 run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ultragen_core.sizes import VideoSize, latent_shape

from . import judge
from .kernel_scores import mean_and_deviation
from .make import Miniature
from .sampling import Patched, Sampler


@dataclass(frozen=True)
class Trajectories:
    """seeds: each has scenes and noise of its own. videos: of each seed, of this size, sampled in `steps`."""

    seeds: tuple[int, ...] = (0, 1, 2)
    videos: int = judge.AT_ONCE
    steps: int = 30
    size: VideoSize = Miniature.high


def final_latents(model, chosen: Trajectories, device: torch.device, other_noise: bool = False) -> list[Tensor]:
    """Return the latents (videos, c, t, h, w) after the last step, for each seed.

    model: the miniature, loaded and patched. other_noise: the same scenes from other noise.
    """
    shape = latent_shape(chosen.size, 1)[1:]
    sampler = Sampler(Patched(model), shape, chosen.steps, Miniature.shift, device)
    if other_noise:
        sampler = replace(sampler, noise="other noise")
    return [sampler(judge.held_out(chosen.videos, seed * chosen.videos)).cpu() for seed in chosen.seeds]


def distance(latents: Sequence[Tensor], reference: Sequence[Tensor]) -> str:
    """Return the relative L2 distance from the reference: its mean over the seeds, and their standard deviation."""
    return mean_and_deviation([((x - y).norm() / y.norm()).item() for x, y in zip(latents, reference, strict=True)])
