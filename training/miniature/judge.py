"""Evaluate a model's videos: whether they show what their captions say, and the paper's metrics with stand-ins.

The metrics' networks (I3D, LPIPS) are not available where the miniature is made. Fixed random convolutions stand in for
them: the distances are comparable with each other and with nothing else.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence, Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.miniature.scenes import CHECKED, scene
from training.objective import loss_of, padded
from training.recipe import Recipe
from ultragen_core.grid import window_borders
from ultragen_core.metrics.scores import HD_FVD, Networks, VideoScores, score_video
from ultragen_core.sizes import SPATIAL_RATIO, VideoSize

from . import clip_vae
from .latents import raw, words
from .painter import paint
from .sampling import Paint

HELD_OUT = 1_000_000  # scenes from this number on are never trained on
AT_ONCE = 8  # videos that are sampled together
TOKEN = 2 * SPATIAL_RATIO[clip_vae.CHANNELS]  # pixels


def held_out(count: int, first: int = 0) -> range:
    return range(HELD_OUT + first, HELD_OUT + first + count)


@torch.no_grad()
def videos(paint: Paint, vae: nn.Module, numbers: Sequence[int]) -> Iterator[Tensor]:
    """Paint the captions of scenes: yields (frames, height, width, 3) in 0..1. numbers: of the scenes."""
    for start in range(0, len(numbers), AT_ONCE):
        yield from decoded(vae, paint(numbers[start : start + AT_ONCE]))


@torch.no_grad()
def decoded(vae: nn.Module, latents: Tensor) -> Tensor:
    """(b, 16, t, h, w) as the transformer gives them -> (b, frames, height, width, 3) in 0..1."""
    videos = [(clip_vae.decode(vae, one[None]).float() / 2 + 0.5).clamp(0, 1) for one in raw(latents)]
    return torch.cat(videos).movedim(1, -1)


@torch.no_grad()
def held_out_loss(
    model: Callable, clips: Sequence[Sequence[Tensor]], numbers: Sequence[int], levels: int, recipe: Recipe
) -> float:
    """Return the mean loss of a model on the clips of these scenes, each at `levels` noise levels.

    model: velocity(x, t, text), or velocity(x, t, text, condition). clips: for each scene its latent (1, c, t, h, w),
    and for an image-to-video model its condition. Noise and levels depend on the clips' order alone.
    """
    losses = []
    for index, (number, (latent, *condition)) in enumerate(zip(numbers, clips, strict=True)):
        text = padded(words(scene(number).caption)[None].to(latent.device))
        places = range(index * levels, (index + 1) * levels)
        losses += [loss_of(model, [place], latent, text, recipe, *condition).item() for place in places]
    return statistics.mean(losses)


def agreement(seen: Sequence[dict[str, str]], numbers: Iterable[int]) -> dict[str, float]:
    """For each checked attribute, the share of videos that show it as their caption says. seen: of `reading.read`."""
    pairs = [(shown, scene(number)) for shown, number in zip(seen, numbers, strict=True)]
    return {name: sum(shown[name] == getattr(said, name) for shown, said in pairs) / len(pairs) for name in CHECKED}


def borders(columns: int, cuts: Iterable[tuple[int, bool]]) -> set[int]:
    """Return the token columns where windows meet. cuts: each block's windows per axis, and whether shifted."""
    return set().union(*(window_borders(columns, *cut) for cut in cuts)) - {0, columns}


def seam_ratio(frames: Tensor, borders: Set[int]) -> float:
    """Return how much more pixels differ across `borders`, columns of tokens, than across other token borders.

    frames: (frames, height, width, 3). Compare a model's videos with the painted clips of the same captions: those of
    640x352 have 1.20, not 1 (the mean of 96), because the sun stands where windows meet. Rows are left out because
    horizons run along them. Without borders the ratio is 1.
    """
    if not borders:
        return 1.0
    differences = frames.diff(dim=2).abs().mean((0, 1, 3)).tolist()  # [i]: from column i to i + 1
    others = set(range(1, frames.shape[2] // TOKEN)) - borders
    seams, elsewhere = (
        statistics.mean(differences[TOKEN * border - 1] for border in some) for some in (borders, others)
    )
    return seams / elsewhere


@functools.lru_cache(maxsize=16)  # models with the same windows are compared with the same
def painted_seam_ratio(numbers: range, size: VideoSize, borders: frozenset[int], device: torch.device) -> float:
    """Return the mean seam ratio of the scenes' painted clips."""
    return statistics.mean(seam_ratio(paint(number, *size, device=device), borders) for number in numbers)


@functools.lru_cache(maxsize=1)  # all models of a seed are compared with the same
def originals(numbers: range, size: VideoSize, device: torch.device) -> list[VideoScores]:
    """Return the features of the scenes' painted clips, the reference of HD-FVD."""
    networks = stand_ins(device)
    return [score_video(paint(number, *size, device=device), {HD_FVD}, networks) for number in numbers]


class RandomFeatures(nn.Module):
    """Three strided convolutions of seeded random weights, then means over space (and time): (n, 3, ...) -> (n, 32)."""

    def __init__(self, dimensions: int):
        super().__init__()
        kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.ModuleList(kind(*channels, 3, stride=2) for channels in ((3, 32), (32, 32), (32, 32)))
            for layer in self.layers:
                nn.init.orthogonal_(layer.weight)
                nn.init.normal_(layer.bias, std=0.1)

    def maps(self, x: Tensor) -> list[Tensor]:
        made = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            made.append(x)
        return made

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1].flatten(2).mean(2)


def stand_ins(device: torch.device) -> Networks:
    """Create random networks for HD-LPIPS and HD-FVD. Temporal consistency would be 1 for every model."""
    flat, deep = RandomFeatures(2).to(device).eval(), RandomFeatures(3).to(device).eval()

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(flat.maps(a), flat.maps(b), strict=True)
        return sum((F.normalize(m, dim=1) - F.normalize(n, dim=1)).square().sum(1).mean() for m, n in pairs)

    return Networks(distance, deep)
