"""Make the miniature from scratch.

In turn: a VAE, a dense model at low resolution, UltraGen's layers at high resolution, and the VAE's decoder again, on
what that model paints. On demand also two models that start from the dense one: with T3-Video's windows at high
resolution, and image-to-video at low. Each part continues where it stopped, and is skipped if its result exists. One
folder holds all results, with recipes and losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tools.console import Trouble, say
from training.loop import Keeping, Training
from training.model import build, random_base
from training.recipe import Recipe
from ultragen_core.sizes import VideoSize
from ultragen_core.weights.files import StateDict, read_state_dict

from . import clip_vae, latents
from .decoder_training import DecoderRecipe, repainted, tuned
from .packed import is_packed, packed, unpacked
from .states import half, image_to_video, save
from .vae_training import VAERecipe, VAETraining

PARTS = ("vae", "dense", "ultragen", "decoder", "latents", "t3", "i2v")
MAIN = PARTS[:4]
MODELS = ("dense", "ultragen", "t3", "i2v")


@dataclass(frozen=True)
class Miniature:
    """channels, blocks, ffn_channels: of the transformer. low, high: the two sizes; low_clips, high_clips: how many
    clips of each. clips_per_file: of latents. dense, ultragen: recipes at low and at high resolution. measured: clips
    of each size from which the latents' means and deviations are taken. shift: flow shift when painting. vae, decoder:
    recipes of the VAE.
    t3, i2v: recipes of the models with T3-Video's windows, at high resolution, and of image-to-video, at low.
    i2v_clips: how many of the low clips have start images.
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
    clips_per_file: int = 1024
    ultragen: Recipe = Recipe(
        rank=16, dense_blocks="0,5", gate=0.9, steps=18000, batch=16, shift=1.5, learning_rate=1e-3, warmup=200,
        decay="cosine",
    )  # fmt: skip
    shift: float = 3.0
    decoder: DecoderRecipe = DecoderRecipe()
    t3: Recipe = Recipe(
        rule="t3", steps=6000, batch=16, shift=1.5, learning_rate=1e-3, warmup=200, decay="cosine"
    )  # fmt: skip
    i2v: Recipe = Recipe(
        rule="dense", steps=2000, batch=64, shift=3.0, learning_rate=6e-4, warmup=100, decay="cosine"
    )  # fmt: skip
    i2v_clips: int = 4096


class Making:
    """Makes parts in order, for `minutes` at most.

    files: which of the files of latents the part "latents" encodes, by their place; None: all. Several processes may
    share them.
    """

    def __init__(
        self,
        recipe: Miniature,
        folder: Path,
        device: torch.device,
        minutes: float,
        files: Sequence[int] | None = None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self.folder, self.device, self.files = recipe, folder, device, files
        self._ends = time.monotonic() + 60 * minutes

    @property
    def vae_file(self) -> Path:
        return self.folder / "vae.safetensors"

    @property
    def finished_vae_file(self) -> Path:
        return self.folder / "vae-finished.safetensors"

    def model_file(self, model: str) -> Path:
        """Return the file of the finished model, one of MODELS."""
        return self.folder / model / f"full-{getattr(self.recipe, model).steps:06}.safetensors"

    def kept_file(self, model: str) -> Path:
        """Return where a finished model of MODELS is, or may be put, as the repository keeps it."""
        return self.folder / f"{model}.safetensors"

    def run(self, parts: Sequence[str] = MAIN) -> bool:
        """Run these of PARTS. Returns whether everything is done."""
        done = all(getattr(self, f"_{part}")() for part in parts)
        say(f"Everything is in {self.folder}." if done else "The time is up. Run the same command to continue.")
        return done

    def latents(self, size: VideoSize) -> latents.Latents:
        """Load the clips of a size; encode those that are missing."""
        clips = self.recipe.low_clips if size == self.recipe.low else self.recipe.high_clips
        return self._encoded(size, clips)

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
            save(half(clip_vae.folded(training.vae, *_statistics(made))), self.vae_file)
        return True

    def _dense(self) -> bool:
        recipe = self.recipe
        size = recipe.channels, recipe.blocks, recipe.ffn_channels
        return self._train(
            "dense", lambda: half(random_base(*size, recipe.dense.seed)), lambda: self.latents(recipe.low)
        )

    def _ultragen(self) -> bool:
        return self._train("ultragen", self._base, lambda: self.latents(self.recipe.high))

    def _t3(self) -> bool:
        return self._train("t3", self._base, lambda: self.latents(self.recipe.high)) and self._pack("t3")

    def _i2v(self) -> bool:
        clips = partial(self._encoded, self.recipe.low, self.recipe.i2v_clips, start_images=True)
        return self._train("i2v", lambda: image_to_video(self._base()), clips) and self._pack("i2v")

    def _base(self) -> StateDict:
        return read_state_dict(self.finished("dense"))

    def _pack(self, model: str) -> bool:
        """Write a finished model as the repository keeps it."""
        if not self.kept_file(model).is_file():
            save(packed(read_state_dict(self.finished(model))), self.kept_file(model))
        return True

    def _latents(self) -> bool:
        """Encode the files of latents of the high resolution that this process was given."""
        missing = self._missing(self.recipe.high, self.recipe.high_clips)
        for place, (file, numbers) in missing.items():
            if self.files is None or place in self.files:
                latents.write(file, self.vae(), numbers, self.recipe.high, self.device)
                if self.is_up():
                    return False
        return True

    def is_finished(self, model: str) -> bool:
        """Whether a model of MODELS is finished. Weights as the repository keeps them are unpacked to its file."""
        file, kept = self.model_file(model), self.kept_file(model)
        if file.is_file() and not is_packed(file):
            return True
        found = next((source for source in (file, kept) if source.is_file()), None)
        if found:
            file.parent.mkdir(exist_ok=True)
            save(unpacked(read_state_dict(found)), file)
        return found is not None

    def finished(self, model: str) -> Path:
        """Return the file of a finished model, one of MODELS, not packed. Raises Trouble if there is none."""
        file = self.model_file(model)
        if not self.is_finished(model):
            raise Trouble(
                f"The miniature's part {model} is needed, {file} is missing. Make it with `python3 -m training"
                f" miniature --out {self.folder} --parts {model}` first."
            )
        return file

    def _decoder(self) -> bool:
        """Train the decoder again. This takes a few minutes and ignores the time limit."""
        if self.finished_vae_file.is_file():
            return True
        recipe, vae = self.recipe, self.vae()
        state = read_state_dict(self.finished("ultragen"))
        model = build(state, "ultragen", recipe.ultragen).to(self.device).eval()
        clips = self.latents(recipe.high)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            pairs = repainted(model, clips, recipe.decoder, recipe.shift, self.device)
        state = tuned(vae, pairs, range(recipe.decoder.clips), recipe.high, recipe.decoder)
        save(half(state), self.finished_vae_file)
        return True

    def _train(self, model: str, base: Callable[[], StateDict], load: Callable[[], latents.Latents]) -> bool:
        """Train a model of MODELS, or continue. base: returns the weights it starts from. load: returns its clips."""
        if self.is_finished(model):
            return True
        recipe, start, clips = getattr(self.recipe, model), base(), load()
        keeping = Keeping(self.folder / model, minutes=self.minutes_left(), state_every=1000)
        return Training(recipe, keeping, build(start, model, recipe), clips, recipe.batch, cuda_graph=True).run()

    def _encoded(self, size: VideoSize, clips: int, start_images: bool = False) -> latents.Latents:
        for file, numbers in self._missing(size, clips, start_images).values():
            latents.write(file, self.vae(), numbers, size, self.device, start_images)
        return latents.Latents(list(self._files(size, clips, start_images)))

    def _missing(self, size: VideoSize, clips: int, start_images: bool = False) -> dict[int, tuple[Path, range]]:
        """Return the files of latents to write, by their place: the file and the numbers of its clips."""
        files = enumerate(self._files(size, clips, start_images).items())
        return {place: (file, numbers) for place, (file, numbers) in files if not file.is_file()}

    def _files(self, size: VideoSize, clips: int, start_images: bool) -> dict[Path, range]:
        name = f"{'starts' if start_images else 'latents'}-{size.width}x{size.height}"
        count = self.recipe.clips_per_file
        parts = [range(clips)[first : first + count] for first in range(0, clips, count)]
        return {self.folder / f"{name}-{part.start:05}.safetensors": part for part in parts}

    def is_up(self) -> bool:
        """Whether the minutes are over."""
        return time.monotonic() >= self._ends

    def minutes_left(self) -> float:
        """Return the minutes left, never 0, so that every part that begins makes a step."""
        return max((self._ends - time.monotonic()) / 60, 1e-9)


def _statistics(groups: Iterable[Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and deviation per channel of latents (b, c, t, h, w). Every group has the same weight."""
    flat = [torch.cat([x.transpose(0, 1).flatten(1) for x in group], dim=1) for group in groups]
    mean, square = (torch.stack([power.mean(1) for power in powers]).mean(0) for powers in (flat, [x**2 for x in flat]))
    return mean, (square - mean**2).sqrt()
