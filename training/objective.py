"""Flow matching: a step's inputs and loss, as functions of the seed and the samples' numbers alone.

So a run ends with the same weights however often it was interrupted, on any number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .cache import Cache
from .recipe import Recipe

TEXT_TOKENS = 512


def generator(device: torch.device, *what: object) -> torch.Generator:
    """Create a generator whose numbers depend on `what` alone."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))


class Sample(NamedTuple):
    """number: counts the run's samples from 0. latent: (c, t, h, w). text: (tokens, text channels).

    condition: (20, t, h, w) for image-to-video models.
    """

    number: int
    latent: Tensor
    text: Tensor
    condition: Tensor | None = None


def padded(texts: Tensor) -> Tensor:
    """Pad (b, tokens, text channels) with zeros to (b, 512, text channels) float32, Wan's text input.

    Call it on the model's device: most of the result is zeros.
    """
    return F.pad(texts.float(), (0, 0, 0, TEXT_TOKENS - texts.shape[1]))


class Samples(torch.utils.data.Dataset):
    """All samples of a run by number: each epoch has every clip once, in another order."""

    def __init__(self, cache: Cache, recipe: Recipe):
        self.cache, self.recipe, self.empty = cache, recipe, cache.empty_text()

    def __getitem__(self, number: int) -> Sample:
        epoch, position = divmod(number, len(self.cache.names))
        order = torch.randperm(len(self.cache.names), generator=self._random("order", epoch))
        clip = self.cache.clip(int(order[position]))
        dropped = torch.rand(1, generator=self._random("caption", number)).item() < self.recipe.caption_dropout
        return Sample(number, clip.latent, self.empty if dropped else clip.text, clip.condition)

    @staticmethod
    def together(samples: Sequence[Sample]) -> tuple[Tensor, ...]:
        """Collate: numbers (b,), latents (b, c, t, h, w), texts (b, tokens of the longest, text channels), and if the
        samples have conditions, these (b, 20, t, h, w).
        """
        numbers, latents, texts, conditions = zip(*samples, strict=True)
        batch = torch.tensor(numbers), torch.stack(latents), pad_sequence(texts, batch_first=True)
        return batch if conditions[0] is None else (*batch, torch.stack(conditions))

    def _random(self, *what: object) -> torch.Generator:
        return generator(torch.device("cpu"), self.recipe.seed, *what)


def shifted(s: Tensor, shift: float) -> Tensor:
    """Shift uniform noise levels s in 0..1 as in sampling (flow shift)."""
    return shift * s / (1 + (shift - 1) * s)


def loss_of(
    model: nn.Module, numbers: Sequence[int], latents: Tensor, texts: Tensor, recipe: Recipe, *condition: Tensor
) -> Tensor:
    """Return the mean squared error of the predicted velocity against noise - latent.

    model: velocity(x, t, text, *condition). numbers: the samples' (b,). latents: (b, c, t, h, w). texts: (b, 512, text
    channels). condition: nothing, or for image-to-video models one tensor (b, 20, t, h, w).
    """
    return velocity_loss(model, *noisy_inputs(numbers, latents, recipe), texts, *condition)


def noisy_inputs(numbers: Sequence[int], latents: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy latents, t = 1000 * sigma (b,) and the target velocity, noise - latent."""
    random = [generator(latents.device, recipe.seed, "noise", int(number)) for number in numbers]
    s = torch.cat([torch.rand(1, generator=g, device=latents.device) for g in random])
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g, device=latents.device) for g in random])
    sigma = shifted(s, recipe.shift)
    share = sigma[:, None, None, None, None]
    return (1 - share) * latents + share * noise, 1000 * sigma, noise - latents


def velocity_loss(
    model: nn.Module, noisy: Tensor, t: Tensor, target: Tensor, texts: Tensor, *condition: Tensor
) -> Tensor:
    return F.mse_loss(model(noisy, t, texts, *condition).float(), target)
