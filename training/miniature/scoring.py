"""Score models on held-out scenes: loss, captions, seams and the paper's metrics."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tools.console import say
from training.recipe import Recipe
from ultragen_core.metrics.scores import HD_FVD, HD_LPIPS, HD_MSE, score, score_video
from ultragen_core.sizes import VideoSize, latent_shape
from ultragen_core.storage.files import finished_file
from ultragen_core.video.frames import quantise

from . import judge
from .latents import encoded, normalised, start_condition
from .make import Making
from .painter import paint
from .reading import read
from .sampling import Paint, Sampler

PICTURED = 4  # videos of each model in the picture, by their middle frames


@dataclass(frozen=True)
class Scoring:
    """seeds: each has scenes and noise of its own. videos: per model and seed, sampled in `sampling_steps`. held_out:
    clips for the loss, each at `levels` noise levels. metrics: names of metrics.scores, with stand-ins for their
    networks.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    videos: int = 32
    sampling_steps: int = 20
    held_out: int = 64
    levels: int = 4
    metrics: tuple[str, ...] = (HD_MSE, HD_LPIPS, HD_FVD)


class Scores:
    """Scores in a folder: a json file for each model and seed, and what it painted next to it. Existing ones are kept.

    size: of the videos. recipe: its flow shift and seed decide the noise of the loss. start_images: the models are
    image-to-video; they get the first frames of the painted clips.
    """

    def __init__(
        self,
        making: Making,
        scoring: Scoring,
        folder: Path,
        size: VideoSize,
        recipe: Recipe,
        start_images: bool = False,
    ):
        folder.mkdir(exist_ok=True)
        self.making, self.scoring, self.folder, self.recipe = making, scoring, folder, recipe
        self.size, self.start_images, self.device = size, start_images, making.device
        self.vae = making.vae()
        self._held_out: list[tuple[Tensor, ...]] | None = None  # the same for every model

    def sampler(self, velocity: Callable, size: VideoSize | None = None) -> Sampler:
        """Return a sampler of videos of `size`; None: the size that is scored."""
        size, steps, shift = size or self.size, self.scoring.sampling_steps, self.making.recipe.shift
        shape = latent_shape(size, 1)[1:]

        def condition(numbers):
            first = size._replace(frames=1)
            images = torch.cat([paint(number, *first, device=self.device) for number in numbers])
            return start_condition(self.vae, images, size.frames)

        return Sampler(velocity, shape, steps, shift, self.device, condition if self.start_images else None)

    def picture(self, name: str) -> Path:
        """Return the file with what a scored model painted for the first captions."""
        return self.folder / f"{name}.png"

    def results(self) -> list[dict]:
        """Return what is known of each scored model, with its measures."""
        return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob("*.json"))]

    def write_csv(self, file: Path) -> None:
        """Write all results into one table."""
        results = self.results()
        with finished_file(file) as part, part.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, list(dict.fromkeys(key for row in results for key in row)))
            writer.writeheader()
            writer.writerows(results)

    def add(
        self,
        name: str,
        known: Mapping[str, object],
        load: Callable[[], tuple[Callable, Paint]],
        borders: Callable[[], Set[int]],
    ) -> None:
        """Score a model on the scenes of known["seed"]. Skipped if the result exists.

        name: of the file. known: goes into the result. load: returns velocity(x, t, text[, condition]) and how it
        paints. borders: returns the token columns where seams may show.
        """
        file = self.folder / f"{name}.json"
        if file.is_file():
            return
        count = self.scoring.videos
        say(f"{', '.join(f'{key} {value}' for key, value in known.items())}: painting and scoring {count} videos")
        numbers = judge.held_out(count, known["seed"] * count)
        velocity, paints = load()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            found = {"loss": self._loss(velocity)}
            found |= self._seen(paints, numbers, borders(), self.picture(name))
        with finished_file(file) as part:
            part.write_text(json.dumps({**known, **found}, indent=1), encoding="utf-8")

    def _loss(self, velocity: Callable) -> float:
        """Return the loss on held-out clips, with the same noise and noise levels for every model."""
        numbers = judge.held_out(self.scoring.held_out)
        if self._held_out is None:
            latents = [normalised(x) for x in encoded(self.vae, numbers, self.size, self.device, batch=1)]
            condition = self.sampler(velocity).condition
            conditions = [[condition([number])] if condition else [] for number in numbers]
            self._held_out = [(latent, *each) for latent, each in zip(latents, conditions, strict=True)]
        return judge.held_out_loss(velocity, self._held_out, numbers, self.scoring.levels, self.recipe)

    def _seen(self, paints: Paint, numbers: range, borders: Set[int], strip: Path) -> dict[str, float]:
        networks, metrics = judge.stand_ins(self.device), self.scoring.metrics
        seen, seams, scored, pictures = [], [], [], []
        for video in judge.videos(paints, self.vae, numbers):
            seen.append(read(video))
            seams.append(judge.seam_ratio(video, borders))
            scored.append(score_video(video, metrics, networks))
            if len(pictures) < PICTURED:
                pictures.append(quantise(video[len(video) // 2], 8).cpu())
        Image.fromarray(torch.cat(pictures, dim=1).numpy()).save(strip)
        originals = judge.originals(numbers, self.size, self.device) if HD_FVD in metrics else []
        scores = score(scored, originals)
        measured = {metric: scores.mean(metric) for metric in metrics}
        seam_ratio = statistics.mean(seams)
        painted = judge.painted_seam_ratio(numbers, self.size, frozenset(borders), self.device)
        both = {"seam_ratio": seam_ratio, "seams_to_painted": seam_ratio / painted}
        return both | judge.agreement(seen, numbers) | measured


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
