"""Make the miniature from scratch.

In turn: a VAE, a dense model at low resolution, UltraGen's layers at high resolution, and the VAE's decoder again, on
what that model paints. Each part continues where it stopped, and is skipped if its result exists. One folder holds all
results, with recipes and losses.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tools.console import say
from training.loop import Keeping, Training
from training.model import build, random_base
from training.recipe import Recipe
from ultragen_core.sizes import VideoSize
from ultragen_core.storage.files import finished_file
from ultragen_core.weights.files import StateDict, read_state_dict

from . import clip_vae, latents
from .decoder_training import DecoderRecipe, repainted, tuned
from .vae_training import VAERecipe, VAETraining


@dataclass(frozen=True)
class Miniature:
    """channels, blocks, ffn_channels: of the transformer. low, high: the two sizes; low_clips, high_clips: how many
    clips of each. dense, ultragen: recipes at low and at high resolution. measured: clips of each size from which the
    latents' means and deviations are taken. shift: flow shift when painting. vae, decoder: recipes of the VAE.
    """

    vae: VAERecipe = VAERecipe()
    measured: int = 16
    channels: int = 256
    blocks: int = 6
    ffn_channels: int = 384
    low: VideoSize = VideoSize(256, 144, 17)
    low_clips: int = 8192
    dense: Recipe = Recipe(
        rule="dense", steps=5000, batch=64, shift=3.0, learning_rate=1.2e-3, warmup=200, decay="cosine"
    )
    high: VideoSize = VideoSize(640, 352, 17)
    high_clips: int = 8192
    ultragen: Recipe = Recipe(
        rank=16, dense_blocks="0,5", gate=0.9, steps=18000, batch=16, shift=1.5, learning_rate=1e-3, warmup=200,
        decay="cosine",
    )  # fmt: skip
    shift: float = 3.0
    decoder: DecoderRecipe = DecoderRecipe()


class Making:
    """Makes the parts in order, for `minutes` at most."""

    def __init__(self, recipe: Miniature, folder: Path, device: torch.device, minutes: float):
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self.folder, self.device = recipe, folder, device
        self._ends = time.monotonic() + 60 * minutes

    @property
    def vae_file(self) -> Path:
        return self.folder / "vae.safetensors"

    @property
    def finished_vae_file(self) -> Path:
        return self.folder / "vae-finished.safetensors"

    def latents_file(self, size: VideoSize) -> Path:
        return self.folder / f"latents-{size.width}x{size.height}.safetensors"

    def model_file(self, recipe: Recipe) -> Path:
        return self.folder / recipe.rule / f"full-{recipe.steps:06}.safetensors"

    def run(self) -> bool:
        """Run all parts. Returns whether everything is done."""
        done = self._vae() and self._dense() and self._ultragen() and self._decoder()
        say(f"Everything is in {self.folder}." if done else "The time is up. Run the same command to continue.")
        return done

    def vae(self) -> nn.Module:
        """Load the VAE, with the retrained decoder if it exists. The encoder is the same."""
        vae = clip_vae.new_vae(self.recipe.vae.width)
        finished = self.finished_vae_file.is_file()
        vae.load_state_dict(load_file(self.finished_vae_file if finished else self.vae_file))
        return vae.to(self.device).eval().requires_grad_(False)

    def _vae(self) -> bool:
        if self.vae_file.is_file():
            return True
        training = VAETraining(self.recipe.vae, self.folder / "vae", self.device)
        if not training.run(self.minutes_left()):
            return False
        with training.averages.applied():
            sizes = self.recipe.low, self.recipe.high
            made = [latents.encoded(training.vae, range(self.recipe.measured), size, self.device) for size in sizes]
            _save(half(clip_vae.folded(training.vae, *_statistics(made))), self.vae_file)
        return True

    def _dense(self) -> bool:
        recipe = self.recipe
        base = random_base(recipe.channels, recipe.blocks, recipe.ffn_channels, recipe.dense.seed)
        return self._train(recipe.dense, recipe.low, recipe.low_clips, half(base))

    def _ultragen(self) -> bool:
        recipe = self.recipe
        base = read_state_dict(self.model_file(recipe.dense))
        return self._train(recipe.ultragen, recipe.high, recipe.high_clips, base)

    def _decoder(self) -> bool:
        """Train the decoder again. This takes a few minutes and ignores the time limit."""
        if self.finished_vae_file.is_file():
            return True
        recipe, vae = self.recipe, self.vae()
        state = read_state_dict(self.model_file(recipe.ultragen))
        model = build(state, recipe.ultragen.rule, recipe.ultragen).to(self.device).eval()
        clips = latents.Latents(self.latents_file(recipe.high))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            pairs = repainted(model, clips, recipe.decoder, recipe.shift, self.device)
        state = tuned(vae, pairs, range(recipe.decoder.clips), recipe.high, recipe.decoder)
        _save(half(state), self.finished_vae_file)
        return True

    def _train(self, recipe: Recipe, size: VideoSize, clips: int, base: StateDict) -> bool:
        if self.model_file(recipe).is_file():
            return True
        if not self.latents_file(size).is_file():
            latents.write(self.latents_file(size), self.vae(), range(clips), size, self.device)
        keeping = Keeping(self.folder / recipe.rule, minutes=self.minutes_left(), state_every=1000)
        model = build(base, recipe.rule, recipe)
        clips = latents.Latents(self.latents_file(size))
        return Training(recipe, keeping, model, clips, recipe.batch, cuda_graph=True).run()

    def minutes_left(self) -> float:
        """Return the minutes left, never 0, so that every part that begins makes a step."""
        return max((self._ends - time.monotonic()) / 60, 1e-9)


def _statistics(groups: Iterable[Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and deviation per channel of latents (b, c, t, h, w). Every group has the same weight."""
    flat = [torch.cat([x.transpose(0, 1).flatten(1) for x in group], dim=1) for group in groups]
    mean, square = (torch.stack([power.mean(1) for power in powers]).mean(0) for powers in (flat, [x**2 for x in flat]))
    return mean, (square - mean**2).sqrt()


def half(state: StateDict) -> StateDict:
    return {key: tensor.half() for key, tensor in state.items()}


def _save(state: StateDict, file: Path) -> None:
    with finished_file(file) as part:
        save_file({key: tensor.cpu().contiguous() for key, tensor in state.items()}, part)
