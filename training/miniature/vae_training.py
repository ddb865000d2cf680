"""Train the narrow VAE on painted clips."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.console import ProgressLine, say
from training.curve import Curve, Row
from training.ema import AveragedWeights, decay_at
from training.objective import generator
from ultragen_core.sizes import VideoSize
from ultragen_core.storage.files import finished_file
from ultragen_core.video.frames import quantise

from .clip_vae import decode, encode, new_vae
from .painter import paint

BETAS = 0.9, 0.98
ROUNDED = 1e-3  # differences below this count by their square alone


@dataclass(frozen=True)
class VAERecipe:
    """sizes: of the painted clips, in equal shares of a batch. side: of the square cropped from each, in pixels.
    linear_steps: initial steps without residual branches, which are four fifths of the work. first_frame: weight of the
    first frame, which has its own latents. kl: weight of the latents' divergence from a normal distribution, which
    keeps them dense enough for a model to paint.
    """

    width: int = 8
    sizes: tuple[VideoSize, ...] = (VideoSize(640, 352, 17), VideoSize(256, 144, 17))
    clips: int = 128
    side: int = 48
    batch: int = 4
    linear_steps: int = 3000
    steps: int = 3600
    learning_rate: float = 2e-3
    warmup: int = 50
    first_frame: float = 3.0
    kl: float = 1e-5
    ema: float = 0.99
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then linear decay to 0."""
        left = (self.steps - step) / max(self.steps - self.warmup, 1)
        return self.learning_rate * min((step + 1) / self.warmup, left)


class Clips:
    """Painted clips as uint8 in the device's memory; training crops squares from them."""

    def __init__(self, recipe: VAERecipe, device: torch.device):
        self.recipe, self.device = recipe, device
        say(f"Painting {recipe.clips} clips of each size ...")
        self.painted = [
            torch.stack([quantise(paint(number, *size, device=device), 8) for number in range(recipe.clips)])
            for size in recipe.sizes
        ]

    def batch(self, step: int) -> Tensor:
        """Return a step's batch, (batch, 3, frames, side, side) in -1..1."""
        random = generator(torch.device("cpu"), self.recipe.seed, "crops", step)
        crops = [self._crop(self.painted[place % len(self.painted)], random) for place in range(self.recipe.batch)]
        return torch.stack(crops).movedim(-1, 1).float() / 127.5 - 1

    def _crop(self, clips: Tensor, random: torch.Generator) -> Tensor:
        side = self.recipe.side

        def drawn(end: int) -> int:
            return int(torch.randint(end, (1,), generator=random))

        index, top, left = drawn(len(clips)), drawn(clips.shape[2] - side + 1), drawn(clips.shape[3] - side + 1)
        return clips[index, :, top : top + side, left : left + side]


def loss_of(vae: nn.Module, clips: Tensor, recipe: VAERecipe, random: torch.Generator, branches: bool) -> Tensor:
    """Return reconstruction error plus weighted KL divergence of clips (b, 3, frames, height, width) in -1..1."""
    mean, logvar = encode(vae, clips, branches)
    logvar = logvar.float().clamp(-20, 10)
    noise = torch.randn(mean.shape, generator=random, device=mean.device)
    made = decode(vae, mean + noise * (0.5 * logvar).exp(), branches)
    divergence = 0.5 * (mean.float().square() + logvar.exp() - 1 - logvar).mean()
    return distance(made, clips, recipe.first_frame) + recipe.kl * divergence


def distance(made: Tensor, clips: Tensor, first_frame: float) -> Tensor:
    """Return the mean (smooth) L1 distance of clips (b, 3, frames, height, width), the first frame weighted."""
    off = ((made.float() - clips).square() + ROUNDED**2).sqrt().mean((0, 1, 3, 4))
    weights = torch.ones_like(off)
    weights[0] = first_frame
    return (off * weights).sum() / weights.sum()


class VAETraining:
    """One run in a folder, continued from its newest state."""

    def __init__(self, recipe: VAERecipe, folder: Path, device: torch.device):
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self.device, self.state_file = recipe, device, folder / "vae-state.pt"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.vae = new_vae(recipe.width)
        layout = torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format
        for parameter in self.vae.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.to(memory_format=layout)
        self.vae.to(device)
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), betas=BETAS, weight_decay=1e-4)
        self.averages = AveragedWeights(list(self.vae.parameters()))
        self.curve, self.step = Curve(folder), 0
        if self.state_file.is_file():
            self._restore(torch.load(self.state_file, map_location="cpu", weights_only=True))

    def run(self, minutes: float) -> bool:
        """Train for `minutes` at most. Returns whether all steps are done."""
        if self.step == self.recipe.steps:
            return True
        ends, line = time.monotonic() + 60 * minutes, ProgressLine()
        self.curve.begin(self.step)
        clips, up = Clips(self.recipe, self.device), False
        while self.step < self.recipe.steps and not up:
            row = self._one_step(clips)
            self.step = row.step
            self.curve.add(row)
            if self.step % 50 == 0:
                line.show(f"VAE: step {row.step}/{self.recipe.steps}, loss {row.loss:.4f}, {row.seconds:.2f} s a step")
            up = time.monotonic() >= ends
        line.end()
        self._save()
        self.curve.draw()
        return self.step == self.recipe.steps

    def _one_step(self, clips: Clips) -> Row:
        started, rate = time.perf_counter(), self.recipe.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        random = generator(self.device, self.recipe.seed, "latents", self.step)
        branches = self.step >= self.recipe.linear_steps
        loss = loss_of(self.vae, clips.batch(self.step), self.recipe, random, branches)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averages.update(decay_at(self.step, self.recipe.ema))
        return Row(self.step + 1, loss.item(), rate, float(norm), time.perf_counter() - started)

    def _save(self) -> None:
        state = {"step": self.step, "model": self.vae.state_dict(), "optimizer": self.optimizer.state_dict()}
        with self.averages.applied():
            state["averages"] = {key: tensor.clone() for key, tensor in self.vae.state_dict().items()}
        with finished_file(self.state_file) as part:
            torch.save(state, part)

    def _restore(self, state: dict) -> None:
        self.step = state["step"]
        self.vae.load_state_dict(state["averages"])
        self.averages.take_over()
        self.vae.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def psnr(vae: nn.Module, clips: Tensor) -> Tensor:
    """Return the PSNR of each frame in dB. clips: (b, frames, height, width, 3) in 0..1."""
    source = clips.movedim(-1, 1)
    made = (decode(vae, encode(vae, source * 2 - 1)[0]).float() / 2 + 0.5).clamp(0, 1)
    return -10 * F.mse_loss(made, source, reduction="none").mean((0, 1, 3, 4)).log10()
