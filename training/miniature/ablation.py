"""The paper's ablation in miniature: the same base, clips and seeds, at equal steps and at equal time."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from tools.console import Trouble, say
from training.curve import Curve
from training.loop import Keeping, Training
from training.miniature.scenes import scene
from training.model import build
from training.objective import loss_of, padded
from training.recipe import Recipe
from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.grid import window_borders
from ultragen_core.host.attention.load import load_model
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.metrics.scores import HD_FVD, HD_LPIPS, HD_MSE, score, score_video
from ultragen_core.rules.ultragen import block_spec
from ultragen_core.storage.files import finished_file
from ultragen_core.video.frames import quantise
from ultragen_core.weights.files import read_state_dict

from . import judge
from .latents import Latents, encoded, normalised, words
from .make import Making
from .picture import draw_rows
from .reading import read

FULL = "full"
# What is trained, as changes of the recipe that the miniature's own layers were trained with.
TRAINED: dict[str, dict] = {
    FULL: {},
    "dense, tuned": {"rule": "dense"},
    "without global": {"without": ("global",)},
    "without hierarchical": {"without": ("hierarchical",)},
    "without cross-window": {"cross_window": "off"},
    "without deltas": {"without": ("delta",)},
    "Swin": {"cross_window": "swin"},
}
DENSE, FINISHED, UNTRAINED = "dense, as trained low", "full, to the end", "UltraGen without weights"
VARIANTS = (DENSE, FINISHED, UNTRAINED, *TRAINED)
# Windows about as large as the frames that the base was trained on, as UltraGen Apply chooses them for Wan's own.
NEAR_BASE = LocalConfig(windows=(2, 3), hierarchical_windows=(1, 2))
PICTURED = 4  # videos of each model, by their middle frames
TIMED = 0.1  # share of the steps after which the time of a step is known


@dataclass(frozen=True)
class Study:
    """variants: of `VARIANTS`, in their order.
    dense_blocks, shift: of training, instead of the miniature's own: one dense block leaves more to see.
    steps: of the comparison at equal steps; the time that the full layer takes for them is that of the other.
    videos: painted by each model of each seed, in `sampling_steps`. held_out: clips of the loss, each at `levels` noise
    levels. metrics: names of metrics.scores, through stand-ins.
    """

    variants: tuple[str, ...] = VARIANTS
    dense_blocks: str = "0"
    shift: float = 3.0
    steps: int = 600
    learning_rate: float = 5e-4
    seeds: tuple[int, ...] = (0, 1, 2)
    videos: int = 32
    sampling_steps: int = 20
    held_out: int = 64
    levels: int = 4
    metrics: tuple[str, ...] = (HD_MSE, HD_LPIPS, HD_FVD)


class Judged(NamedTuple):
    """A model after so many steps of training; and in which comparisons of trained ones it stands."""

    variant: str
    seed: int
    steps: int
    equal_steps: bool
    equal_time: bool


class Ablation:
    """Trains and judges every variant, in parts like the miniature's own; results lie in one json file each.

    Raises Trouble where the miniature is not finished.
    """

    def __init__(self, study: Study, making: Making):
        if not making.model_file(making.recipe.ultragen).is_file():
            raise Trouble(
                f"The ablation starts from a finished miniature, {making.folder} holds none. Make it with"
                f" python3 -m training miniature --out {making.folder} first."
            )
        self.study, self.making, self.folder = study, making, making.folder / "ablation"
        self.device, self.size = making.device, making.recipe.high
        self.folder.mkdir(exist_ok=True)
        self.base_file = making.model_file(making.recipe.dense)
        self._held_out: list[Tensor] | None = None  # latents, the same for every model

    def run(self) -> bool:
        """Returns whether all is done."""
        done = all(self._seed(seed) for seed in self.study.seeds)
        say(f"Everything is in {self.folder}." if done else "The time is up; the same command goes on.")
        return done

    def results(self) -> list[dict]:
        """Of every model that is judged: what it is, and what was measured."""
        return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob("*.json"))]

    def draw(self, file: Path) -> None:
        """What every model of the first seed painted, at equal steps, as one picture."""
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
        """What is not trained here: steps of training at high resolution, and what loads it."""
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
        # Of the same steps whenever it is asked, so that a run that goes on has the same end.
        in_time = round(steps * self._seconds(FULL, seed, timed) / self._seconds(variant, seed, timed))
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
        """A step of training, as most of the first ones took."""
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
        """The pack's own patch on ComfyUI's model."""
        dense = load_model(self.base_file, "dense")
        return judge.Patched(apply(dense, Settings(rule="ultragen", local=NEAR_BASE)))

    def _judged_file(self, variant: str, seed: int, steps: int) -> Path:
        return self.folder / f"{_slug(variant)}-{seed}-{steps:06}.json"

    def _judge(self, what: Judged, model: Callable[[], Callable]) -> None:
        """Where it is not done yet: paint held-out scenes, other ones for each seed, and look at them."""
        file = self._judged_file(what.variant, what.seed, what.steps)
        if file.is_file():
            return
        count = self.study.videos
        say(f"{what.variant}, seed {what.seed}, {what.steps} steps: painting and looking at {count} videos")
        numbers = judge.held_out(count, what.seed * count)
        velocity, vae = model(), self.making.vae()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            found = {"loss": self._loss(velocity, vae)}
            found |= self._seen(velocity, vae, numbers, self._borders(what.variant), file.with_suffix(".png"))
        with finished_file(file) as part:
            part.write_text(json.dumps(what._asdict() | found, indent=1), encoding="utf-8")

    @torch.no_grad()
    def _loss(self, velocity: Callable, vae: nn.Module) -> float:
        """Of clips that were never trained on, at noise levels and with noise that are the same for every model."""
        recipe, losses = self._recipe(FULL, 0, 1), []
        numbers = judge.held_out(self.study.held_out)
        if self._held_out is None:
            self._held_out = [normalised(x) for x in encoded(vae, numbers, self.size, self.device, batch=1)]
        for index, (number, latent) in enumerate(zip(numbers, self._held_out, strict=True)):
            text = padded(words(scene(number).caption)[None].to(self.device))
            places = range(index * self.study.levels, (index + 1) * self.study.levels)
            losses += [loss_of(velocity, [place], latent, text, recipe).item() for place in places]
        return statistics.mean(losses)

    def _borders(self, variant: str) -> set[int]:
        """Where windows of a model's blocks meet, in columns of tokens; of a dense one, where those of FULL do."""
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
