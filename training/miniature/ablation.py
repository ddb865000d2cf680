"""Run the paper's ablation in miniature: one base, the same clips and seeds, at equal steps and at equal time."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from tools.console import Trouble, say
from training.curve import Curve
from training.loop import Keeping, Training
from training.model import build
from training.recipe import Recipe
from ultragen_core.attention.config import GlobalConfig
from ultragen_core.grid import window_borders
from ultragen_core.host.attention.load import load_model
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.metrics.scores import HD_FVD, score, score_video
from ultragen_core.rules.ultragen import block_spec
from ultragen_core.storage.files import finished_file
from ultragen_core.video.frames import quantise
from ultragen_core.weights.files import read_state_dict

from . import judge
from .latents import Latents, encoded, normalised
from .make import Making
from .picture import draw_rows
from .reading import read
from .study import (
    DENSE,
    FINISHED,
    FULL,
    NEAR_BASE,
    PICTURED,
    TIMED,
    TRAINED,
    UNTRAINED,
    Judged,
    Study,
)  # fmt: skip


class Ablation:
    """Trains and judges every variant, and continues where it stopped. Each result is one json file.

    Raises Trouble if the miniature is not finished.
    """

    def __init__(self, study: Study, making: Making):
        if not making.model_file(making.recipe.ultragen).is_file():
            raise Trouble(
                f"The ablation starts from a finished miniature, {making.folder} holds none. Make it with"
                f" `python3 -m training miniature --out {making.folder}` first."
            )
        self.study, self.making, self.folder = study, making, making.folder / "ablation"
        self.device, self.size = making.device, making.recipe.high
        self.folder.mkdir(exist_ok=True)
        self.base_file = making.model_file(making.recipe.dense)
        self._held_out: list[Tensor] | None = None  # latents, the same for every model

    def run(self) -> bool:
        """Run all that is missing. Returns whether everything is done."""
        done = all(self._seed(seed) for seed in self.study.seeds)
        say(f"Everything is in {self.folder}." if done else "The time is up. Run the same command to continue.")
        return done

    def results(self) -> list[dict]:
        """Return the results of all judged models: the fields of Judged, and the measures."""
        return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob("*.json"))]

    def draw(self, file: Path) -> None:
        """Draw what every model of the first seed painted, at equal steps, into one picture."""
        seed, given = self.study.seeds[0], {name: steps for name, (steps, _) in self._given().items()}
        steps = {name: given.get(name, self.study.steps) for name in self.study.variants}
        draw_rows({name: self._judged_file(name, seed, steps[name]).with_suffix(".png") for name in steps}, file)

    def _seed(self, seed: int) -> bool:
        given = self._given()
        for variant in self.study.variants:
            if variant in given:
                steps, model = given[variant]
                self._judge(Judged(variant, seed, steps, False, False), model)
            elif not self._trained(variant, seed):
                return False
        return True

    def _given(self) -> dict[str, tuple[int, Callable]]:
        """Return the variants that are not trained here: (steps at high resolution, function that loads the model)."""
        return {
            DENSE: (0, self._dense),
            FINISHED: (self.making.recipe.ultragen.steps, self._finished),
            UNTRAINED: (0, self._untrained),
        }

    def _trained(self, variant: str, seed: int) -> bool:
        steps = self.study.steps
        timed = max(round(TIMED * steps), 1)
        if FULL not in self.study.variants and not self._weights_file(FULL, seed, timed).is_file():
            raise Trouble(
                f"Models are compared at the time that {FULL!r} takes: train its first {timed} steps of seed {seed}"
                " before, or name it in --variants."
            )
        if not (self._train(FULL, seed, timed) and self._train(variant, seed, timed)):
            return False
        # Timed on the first steps only, so that a continued run gets the same number.
        in_time = max(round(steps * self._seconds(FULL, seed, timed) / self._seconds(variant, seed, timed)), 1)
        for target in sorted({steps, in_time}):
            if not self._train(variant, seed, target):
                return False
            file = self._weights_file(variant, seed, target)
            what = Judged(variant, seed, target, target == steps, target == in_time)
            self._judge(what, lambda file=file: self._velocity(file, variant, seed))
        return True

    def _recipe(self, variant: str, seed: int, steps: int) -> Recipe:
        own = {name: getattr(self.study, name) for name in ("dense_blocks", "shift", "learning_rate")}
        constant = own | {"decay": "constant", "steps": steps, "seed": seed}
        return dataclasses.replace(self.making.recipe.ultragen, **constant, **TRAINED[variant])

    def _run_folder(self, variant: str, seed: int) -> Path:
        return self.folder / f"{_slug(variant)}-{seed}"

    def _weights_file(self, variant: str, seed: int, steps: int) -> Path:
        return self._run_folder(variant, seed) / f"full-{steps:06}.safetensors"

    def _train(self, variant: str, seed: int, steps: int) -> bool:
        if self._weights_file(variant, seed, steps).is_file():
            return True
        recipe = self._recipe(variant, seed, steps)
        model = build(read_state_dict(self.base_file), variant, recipe)
        clips = Latents(self.making.latents_file(self.size))
        keeping = Keeping(self._run_folder(variant, seed), minutes=self.making.minutes_left(), state_every=steps)
        return Training(recipe, keeping, model, clips, recipe.batch).run()

    def _seconds(self, variant: str, seed: int, steps: int) -> float:
        """Return the median duration of the first steps."""
        return statistics.median(row.seconds for row in Curve(self._run_folder(variant, seed)).rows()[:steps])

    def _velocity(self, file: Path, variant: str, seed: int) -> Callable:
        model = build(read_state_dict(file), variant, self._recipe(variant, seed, 1))
        return model.to(self.device).eval()

    def _dense(self) -> Callable:
        model = build(read_state_dict(self.base_file), DENSE, self.making.recipe.dense)
        return model.to(self.device).eval()

    def _finished(self) -> Callable:
        recipe = self.making.recipe.ultragen
        return build(read_state_dict(self.making.model_file(recipe)), FINISHED, recipe).to(self.device).eval()

    def _untrained(self) -> Callable:
        """Load the dense model and patch it as UltraGen Apply does."""
        dense = load_model(self.base_file, "dense")
        return judge.Patched(apply(dense, Settings(rule="ultragen", local=NEAR_BASE)))

    def _judged_file(self, variant: str, seed: int, steps: int) -> Path:
        return self.folder / f"{_slug(variant)}-{seed}-{steps:06}.json"

    def _judge(self, what: Judged, model: Callable[[], Callable]) -> None:
        """Paint held-out scenes, other ones for each seed, and measure them. Skipped if the result exists."""
        file = self._judged_file(what.variant, what.seed, what.steps)
        if file.is_file():
            return
        count = self.study.videos
        say(f"{what.variant}, seed {what.seed}, {what.steps} steps: painting and judging {count} videos")
        numbers = judge.held_out(count, what.seed * count)
        velocity, vae = model(), self.making.vae()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            found = {"loss": self._loss(velocity, vae)}
            found |= self._seen(velocity, vae, numbers, self._borders(what.variant), file.with_suffix(".png"))
        with finished_file(file) as part:
            part.write_text(json.dumps(what._asdict() | found, indent=1), encoding="utf-8")

    def _loss(self, velocity: Callable, vae: nn.Module) -> float:
        """Return the loss on held-out clips, with the same noise and noise levels for every model."""
        numbers = judge.held_out(self.study.held_out)
        if self._held_out is None:
            self._held_out = [normalised(x) for x in encoded(vae, numbers, self.size, self.device, batch=1)]
        return judge.held_out_loss(velocity, self._held_out, numbers, self.study.levels, self._recipe(FULL, 0, 1))

    def _borders(self, variant: str) -> set[int]:
        """Return the token columns where a model's windows meet; for a dense model those of FULL."""
        if variant == UNTRAINED:
            specs = [block_spec(index, NEAR_BASE, GlobalConfig(), trained=False).local for index in range(2)]
        else:
            recipe = self._recipe(variant if variant in TRAINED else FULL, 0, 1)
            specs = [recipe.spec(index).local for index in recipe.hierarchical_blocks(self.making.recipe.blocks)]
        columns = self.size.width // judge.TOKEN
        borders = [window_borders(columns, spec.num_windows, spec.shifted) for spec in specs]
        return set().union(*borders) - {0, columns}

    def _seen(
        self, velocity: Callable, vae: nn.Module, numbers: range, borders: set[int], strip: Path
    ) -> dict[str, float]:
        shape = Latents(self.making.latents_file(self.size)).latent_shape()
        schedule = self.study.sampling_steps, self.making.recipe.shift
        networks = judge.stand_ins(self.device)
        seen, seams, scored, pictures = [], [], [], []
        for video in judge.videos(velocity, vae, numbers, shape, schedule, self.device):
            seen.append(read(video))
            seams.append(judge.seam_ratio(video, borders))
            scored.append(score_video(video, self.study.metrics, networks))
            if len(pictures) < PICTURED:
                pictures.append(quantise(video[len(video) // 2], 8).cpu())
        Image.fromarray(torch.cat(pictures, dim=1).numpy()).save(strip)
        fvd = HD_FVD in self.study.metrics
        scores = score(scored, judge.originals(numbers, self.size, self.device) if fvd else [])
        measured = {metric: scores.mean(metric) for metric in self.study.metrics}
        return {"seam_ratio": statistics.mean(seams)} | judge.agreement(seen, numbers) | measured


def _slug(variant: str) -> str:
    return variant.lower().replace(",", "").replace(" ", "-")
