"""Train the VAE's decoder again, on latents that the finished model painted.

Painted latents are slightly off everywhere. A decoder that has only seen encoded clips turns this into grain, most of
all in first frames. The encoder, and so the latents, stay unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tools.console import ProgressLine, say
from training.ema import AveragedWeights, decay_at
from training.objective import generator, padded
from training.preview import denoised
from ultragen_core.sampling import flow_sigmas
from ultragen_core.sizes import SPATIAL_RATIO, VideoSize
from ultragen_core.video.frames import quantise

from . import clip_vae
from .latents import Latents, raw
from .painter import paint
from .sampling import CFG
from .vae_training import BETAS, distance

RATIO = SPATIAL_RATIO[clip_vae.CHANNELS]  # pixels per latent pixel


@dataclass(frozen=True)
class DecoderRecipe:
    """clips: number to repaint, `at_once` together, with the last 2 to `last_steps` of `sampling_steps`.
    side: of the training squares, in latent pixels. margin: latent pixels at a square's edge that do not count, unless
    the frame ends there, because the decoder sees less context there than in whole frames. clean: share of squares from
    encoded clips. slopes: weight of differences between neighbouring pixels against the pixels themselves.
    """

    clips: int = 512
    at_once: int = 16
    sampling_steps: int = 20
    last_steps: int = 10
    side: int = 12
    margin: int = 2
    batch: int = 6
    clean: float = 0.4
    steps: int = 4000
    learning_rate: float = 1e-3
    warmup: int = 50
    first_frame: float = 3.0
    slopes: float = 2.0
    ema: float = 0.99
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then linear decay to 0."""
        return self.learning_rate * min((step + 1) / self.warmup, 1 - step / self.steps)


@torch.no_grad()
def repainted(
    model: Callable, latents: Latents, recipe: DecoderRecipe, shift: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return encoded clips and repainted ones, each (n, 16, t, h, w) float16.

    Repainting adds the noise of one of the last sampling steps and removes it with the remaining steps.
    model: velocity(x, t, text), as training.model.Velocity.
    """
    sigmas, line = flow_sigmas(recipe.sampling_steps, shift).to(device), ProgressLine()
    clean, made = [], []
    for start in range(0, recipe.clips, recipe.at_once):
        clips = [latents.clip(index) for index in range(start, min(start + recipe.at_once, recipe.clips))]
        random = generator(device, recipe.seed, "repainted", start)
        some = torch.stack([clip.latent for clip in clips]).to(device)
        steps = 2 + start // recipe.at_once % (recipe.last_steps - 1)
        noise = torch.randn(some.shape, generator=random, device=device)
        text = padded(nn.utils.rnn.pad_sequence([clip.text for clip in clips], batch_first=True).to(device))
        last = sigmas[-1 - steps :]
        painted = denoised(model, torch.lerp(some, noise, last[0]), text, torch.zeros_like(text), last, CFG)
        clean.append(some.half())
        made.append(painted.half())
        line.show(f"{start + len(clips)}/{recipe.clips} clips repainted")
    line.end()
    return torch.cat(clean), torch.cat(made)


def tuned(
    vae: nn.Module, pairs: Sequence[Tensor], numbers: Sequence[int], size: VideoSize, recipe: DecoderRecipe
) -> dict[str, Tensor]:
    """Train the decoder and return the VAE's state. pairs: from `repainted`. numbers, size: of their clips."""
    device = pairs[0].device
    say(f"Painting {len(numbers)} clips ...")
    clips = torch.stack([quantise(paint(number, *size, device=device), 8) for number in numbers])
    learning = [*vae.decoder.parameters(), *vae.conv2.parameters()]
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learning, betas=BETAS, weight_decay=1e-4)
    averages, line = AveragedWeights(learning), ProgressLine()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        squares, wanted, judged = _batch(pairs, clips, recipe, step)
        made = torch.where(judged, clip_vae.decode(vae, raw(squares)), wanted)
        loss = distance(made, wanted, recipe.first_frame)
        for axis in (-2, -1):
            loss = loss + recipe.slopes * distance(made.diff(dim=axis), wanted.diff(dim=axis), recipe.first_frame)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        averages.update(decay_at(step, recipe.ema))
        if step % 50 == 0:
            line.show(f"Decoder: step {step}/{recipe.steps}, loss {loss.item():.4f}")
    line.end()
    with averages.applied():
        return {key: tensor.clone() for key, tensor in vae.state_dict().items()}


def _batch(pairs: Sequence[Tensor], clips: Tensor, recipe: DecoderRecipe, step: int) -> tuple[Tensor, ...]:
    """Return a step's squares: latents (batch, 16, t, side, side), pixels (batch, 3, frames, ...) in -1..1, and which
    pixels count (batch, 1, 1, ...).
    """
    random = generator(torch.device("cpu"), recipe.seed, "squares", step)
    made = []
    for _ in range(recipe.batch):
        source = pairs[0] if torch.rand(1, generator=random).item() < recipe.clean else pairs[1]
        index = int(torch.randint(len(source), (1,), generator=random))
        rows, columns = (_span(length, recipe, random) for length in source.shape[-2:])
        judged = rows.judged[:, None] & columns.judged
        pixels = clips[index, :, rows.pixels, columns.pixels].movedim(-1, 0)
        made.append((source[index, ..., rows.latents, columns.latents], pixels, judged[None, None]))
    squares, wanted, judged = (torch.stack(parts) for parts in zip(*made, strict=True))
    return squares.float(), wanted.float() / 127.5 - 1, judged.to(squares.device)


class Span(NamedTuple):
    """One axis of a square."""

    latents: slice
    pixels: slice
    judged: Tensor  # (pixels,)


def _span(length: int, recipe: DecoderRecipe, random: torch.Generator) -> Span:
    """Draw a span of an axis of `length` latent pixels; the frame's edges get a fair share."""
    side, margin, last = recipe.side, recipe.margin, length - recipe.side
    drawn = int(torch.randint(-margin, last + margin + 1, (1,), generator=random))
    first = min(max(drawn, 0), last)
    judged = torch.zeros(side * RATIO, dtype=torch.bool)
    judged[0 if first == 0 else margin * RATIO : side * RATIO if first == last else (side - margin) * RATIO] = True
    return Span(slice(first, first + side), slice(first * RATIO, (first + side) * RATIO), judged)
