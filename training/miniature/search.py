"""Search what a user can set for UltraGen's attention without trained weights: many settings on one dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from tools.console import say
from ultragen_core.host.attention.load import load_model
from ultragen_core.host.attention.patch import Settings, apply, runtime_of
from ultragen_core.host.sampling import with_shift
from ultragen_core.host.wan_model import token_grid

from . import judge
from .make import Making
from .picture import draw_rows
from .sampling import Paint, Patched, TwoPass
from .scoring import Scores, Scoring, slug
from .search_variants import NEAR, Variant


class Staged:
    """velocity of one model while there is more noise than `sigma`, then of another."""

    def __init__(self, first: Callable, then: Callable, sigma: float):
        self._first, self._then, self._sigma = first, then, sigma

    def __call__(self, x: Tensor, t: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        model = self._first if t.max().item() > 1000 * self._sigma else self._then
        return model(x, t, *inputs, **named)


class Search:
    """Scores every variant on the miniature's dense model, at its high resolution. Each result is one json file.

    start_images: on the image-to-video model, whose videos begin with the painted clips' first frames.
    Raises Trouble if that model is missing.
    """

    def __init__(self, making: Making, scoring: Scoring, variants: Mapping[str, Variant], start_images: bool = False):
        self.making, self.scoring, self.variants = making, scoring, variants
        name = "i2v" if start_images else "dense"
        self.file, recipe = making.finished(name), making.recipe
        self.folder = making.folder / ("search-i2v" if start_images else "search")
        self.scores = Scores(making, scoring, self.folder, recipe.high, getattr(recipe, name), start_images)
        self.grid = token_grid((1, *self.scores.sampler(Patched).shape))

    def run(self) -> bool:
        """Score all that is missing, and write all results to results.csv. Returns whether everything is done."""
        for seed in self.scoring.seeds:
            for name, variant in self.variants.items():
                if self.making.is_up():
                    say("The time is up. Run the same command to continue.")
                    return False
                load, borders = partial(self.load, variant), partial(self.borders, variant)
                self.scores.add(self._name(name, seed), {"variant": name, "seed": seed}, load, borders)
        self.scores.write_csv(self.folder / "results.csv")
        say(f"Everything is in {self.folder}.")
        return True

    def results(self) -> list[dict]:
        """Return the variant, the seed and the measures of each result."""
        return self.scores.results()

    def draw(self, file: Path) -> None:
        """Draw what every variant painted for the first seed into one picture.

        Variants whose result came from elsewhere without its picture are left out; if all are, there is no file.
        """
        seed = self.scoring.seeds[0]
        pictures = {name: self.scores.picture(self._name(name, seed)) for name in self.variants}
        if drawn := {name: picture for name, picture in pictures.items() if picture.is_file()}:
            draw_rows(drawn, file)

    def load(self, variant: Variant) -> tuple[Callable, Paint]:
        """Return a variant's velocity, and how it paints."""
        velocity = self.velocity(variant)
        sampler = self.scores.sampler(velocity)
        if variant.denoise is None:
            return velocity, sampler
        first = self.scores.sampler(self.velocity(Variant()), self.making.recipe.low)
        return velocity, TwoPass(first, sampler, variant.denoise)

    def velocity(self, variant: Variant) -> Callable:
        model = self.model(variant)
        velocity = Patched(model)
        if variant.scaled_first is None:
            return velocity
        share, rope = variant.scaled_first
        sigma = model.get_model_object("model_sampling").percent_to_sigma(share)
        return Staged(Patched(self.model(Variant(rope=rope))), velocity, sigma)

    def model(self, variant: Variant):
        """Load the dense model and patch it as the nodes do."""
        model = with_shift(load_model(self.file, "dense"), self.making.recipe.shift)
        if variant.local is not None:
            settings = Settings(variant.local, variant.global_, variant.start_percent, rule="ultragen")
            model = apply(model, settings)
        model = model.clone()
        model.set_model_rope_options(variant.rope, 0.0, variant.rope, 0.0, 1.0, 0.0)
        return model

    def borders(self, variant: Variant) -> set[int]:
        """Return the token columns where a variant's windows meet; for full attention, where those of NEAR would."""
        runtime = runtime_of(self.model(variant if variant.local else Variant(NEAR)))
        specs = [runtime.rule.spec(index, self.grid).local for index in runtime.rule.blocks]
        return judge.borders(self.grid.w, [(spec.num_windows, spec.shifted) for spec in specs])

    def _name(self, variant: str, seed: int) -> str:
        return f"{slug(variant)}-{seed}"
