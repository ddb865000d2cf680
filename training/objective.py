"""Flow matching: what a step sees and what it should answer, as functions of the seed and the sample's number alone.

So a run ends with the same weights however often it was interrupted and on however many processes it ran.
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
    """Random numbers that belong to `what` alone."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))


class Sample(NamedTuple):
    """number: of the sample since the run began. latent: (c, t, h, w). text: as of a Clip."""

    number: int
    latent: Tensor
    text: Tensor


def padded(texts: Tensor) -> Tensor:
    """(b, tokens, text channels) -> (b, 512, text channels) in float32, as Wan takes texts: zeros after their ends.

    On the model's device, because most of what is made here is zeros.
    """
    return F.pad(texts.float(), (0, 0, 0, TEXT_TOKENS - texts.shape[1]))


class Samples(torch.utils.data.Dataset):
    """The samples of a whole run by number: every clip once before any comes again, each time in another order."""

    def __init__(self, cache: Cache, recipe: Recipe):
        self.cache, self.recipe, self.empty = cache, recipe, cache.empty_text()

    def __getitem__(self, number: int) -> Sample:
        epoch, position = divmod(number, len(self.cache.names))
        order = torch.randperm(len(self.cache.names), generator=self._random("order", epoch))
        clip = self.cache.clip(int(order[position]))
        dropped = torch.rand(1, generator=self._random("caption", number)).item() < self.recipe.caption_dropout
        return Sample(number, clip.latent, self.empty if dropped else clip.text)

    @staticmethod
    def together(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers (b,), latents (b, c, t, h, w) and texts (b, tokens of the longest, text channels) for `padded`."""
        numbers, latents, texts = zip(*samples, strict=True)
        return torch.tensor(numbers), torch.stack(latents), pad_sequence(texts, batch_first=True)

    def _random(self, *what: object) -> torch.Generator:
        return generator(torch.device("cpu"), self.recipe.seed, *what)


def shifted(s: Tensor, shift: float) -> Tensor:
    """Noise levels from evenly spread ones, as in sampling."""
    return shift * s / (1 + (shift - 1) * s)


def loss_of(model: nn.Module, numbers: Sequence[int], latents: Tensor, texts: Tensor, recipe: Recipe) -> Tensor:
    """The mean squared error of the velocity, which should be noise - latent.

    latents: (b, c, t, h, w). texts: (b, 512, text channels).
    """
    drawn = [generator(latents.device, recipe.seed, "noise", int(number)) for number in numbers]
    s = torch.cat([torch.rand(1, generator=g, device=latents.device) for g in drawn])
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g, device=latents.device) for g in drawn])
    sigma = shifted(s, recipe.shift)
    share = sigma[:, None, None, None, None]
    velocity = model((1 - share) * latents + share * noise, 1000 * sigma, texts)
    return F.mse_loss(velocity.float(), noise - latents)
