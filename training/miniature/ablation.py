"""Run the paper's ablation in miniature: one base, the same clips and seeds, at equal steps and at equal time."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

from tools.console import Trouble, say
from training.curve import Curve
from training.loop import Keeping, Training
from training.model import build
from training.recipe import Recipe
from ultragen_core.host.attention.load import load_model
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.host.wan_model import token_grid
from ultragen_core.rules.t3 import PUBLISHED_1_3B
from ultragen_core.rules.ultragen import block_spec
from ultragen_core.weights.files import read_state_dict

from . import judge
from .make import Making
from .picture import draw_rows
from .sampling import Paint, Patched
from .scoring import Scores, slug
from .search_variants import AT_QUARTER, NEAR
from .study import DENSE, FINISHED, FULL, T3_FINISHED, TIMED, TRAINED, UNTRAINED, Scored, Study


class Ablation:
    """Trains and judges every variant, and continues where it stopped. Each result is one json file.

    Raises Trouble if the miniature is not finished.
    """

    def __init__(self, study: Study, making: Making):
        if not making.is_finished("ultragen"):
            raise Trouble(
                f"The ablation starts from a finished miniature, {making.folder} holds none. Make it with"
                f" `python3 -m training miniature --out {making.folder}` first."
            )
        self.study, self.making, self.folder = study, making, making.folder / "ablation"
        self.device, self.size = making.device, making.recipe.high
        self.scores = Scores(making, study, self.folder, self.size, self._recipe(FULL, 0, 1))

    def run(self) -> bool:
        """Run all that is missing. Returns whether everything is done."""
        done = all(self._seed(seed) for seed in self.study.seeds)
        say(f"Everything is in {self.folder}." if done else "The time is up. Run the same command to continue.")
        return done

    def results(self) -> list[dict]:
        """Return the results of all judged models: the fields of Scored, and the measures."""
        return self.scores.results()

    def draw(self, file: Path) -> None:
        """Draw what every model of the first seed painted, at equal steps, into one picture."""
        seed, given = self.study.seeds[0], {name: steps for name, (steps, _) in self._given().items()}
        steps = {name: given.get(name, self.study.steps) for name in self.study.variants}
        draw_rows({name: self.scores.picture(self._name(name, seed, steps[name])) for name in steps}, file)

    def _seed(self, seed: int) -> bool:
        given = self._given()
        for variant in self.study.variants:
            if variant in given:
                steps, model = given[variant]
                self._score(Scored(variant, seed, steps, False, False), model)
            elif not self._trained(variant, seed):
                return False
        return True

    def _given(self) -> dict[str, tuple[int, Callable]]:
        """Return the variants that are not trained here: (steps at high resolution, function that loads the model)."""
        return {
            DENSE: (0, self._dense),
            FINISHED: (self.making.recipe.ultragen.steps, lambda: self._finished("ultragen")),
            T3_FINISHED: (self.making.recipe.t3.steps, lambda: self._finished("t3")),
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
            what = Scored(variant, seed, target, target == steps, target == in_time)
            self._score(what, lambda file=file: self._velocity(file, variant, seed))
        return True

    def _recipe(self, variant: str, seed: int, steps: int) -> Recipe:
        own = {name: getattr(self.study, name) for name in ("dense_blocks", "shift", "learning_rate")}
        constant = own | {"decay": "constant", "steps": steps, "seed": seed}
        return dataclasses.replace(self.making.recipe.ultragen, **constant, **TRAINED[variant])

    def _run_folder(self, variant: str, seed: int) -> Path:
        return self.folder / f"{slug(variant)}-{seed}"

    def _weights_file(self, variant: str, seed: int, steps: int) -> Path:
        return self._run_folder(variant, seed) / f"full-{steps:06}.safetensors"

    def _train(self, variant: str, seed: int, steps: int) -> bool:
        if self._weights_file(variant, seed, steps).is_file():
            return True
        recipe = self._recipe(variant, seed, steps)
        model = build(read_state_dict(self.making.finished("dense")), variant, recipe)
        clips = self.making.latents(self.size)
        keeping = Keeping(self._run_folder(variant, seed), minutes=self.making.minutes_left(), state_every=steps)
        return Training(recipe, keeping, model, clips, recipe.batch).run()

    def _seconds(self, variant: str, seed: int, steps: int) -> float:
        """Return the median duration of the first steps."""
        return statistics.median(row.seconds for row in Curve(self._run_folder(variant, seed)).rows()[:steps])

    def _velocity(self, file: Path, variant: str, seed: int) -> Callable:
        model = build(read_state_dict(file), variant, self._recipe(variant, seed, 1))
        return model.to(self.device).eval()

    def _dense(self) -> Callable:
        model = build(read_state_dict(self.making.finished("dense")), DENSE, self.making.recipe.dense)
        return model.to(self.device).eval()

    def _finished(self, model: str) -> Callable:
        state = read_state_dict(self.making.finished(model))
        return build(state, model, getattr(self.making.recipe, model)).to(self.device).eval()

    def _untrained(self) -> Callable:
        """Load the dense model and patch it with the windows that the search calls near."""
        dense = load_model(self.making.finished("dense"), "dense")
        return Patched(apply(dense, Settings(NEAR, AT_QUARTER, rule="ultragen")))

    def _name(self, variant: str, seed: int, steps: int) -> str:
        return f"{slug(variant)}-{seed}-{steps:06}"

    def _score(self, what: Scored, load: Callable[[], Callable]) -> None:
        def loaded() -> tuple[Callable, Paint]:
            velocity = load()
            return velocity, self.scores.sampler(velocity)

        name = self._name(what.variant, what.seed, what.steps)
        self.scores.add(name, what._asdict(), loaded, lambda: self._borders(what.variant))

    def _borders(self, variant: str) -> set[int]:
        """Return the token columns where a model's windows meet; for a dense model those of FULL."""
        grid = token_grid((1, *self.scores.sampler(None).shape))
        recipe = self._recipe(variant if variant in TRAINED else FULL, 0, 1)
        if variant == T3_FINISHED:
            recipe = self.making.recipe.t3
        blocks = recipe.hierarchical_blocks(self.making.recipe.blocks)
        if recipe.rule == "t3":
            return judge.borders(grid.w, [(PUBLISHED_1_3B.windows_of(index, grid)[2], False) for index in blocks])
        specs = [recipe.spec(index) for index in blocks]
        if variant == UNTRAINED:
            specs = [block_spec(index, NEAR, AT_QUARTER, trained=False) for index in range(2)]
        return judge.borders(grid.w, [(spec.local.num_windows, spec.local.shifted) for spec in specs])
