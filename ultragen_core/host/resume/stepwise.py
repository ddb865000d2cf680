"""Samplers that go on where a crash, a kill, an interrupt or an out-of-memory cut them off, to the same bits.

Step k of a single-step sampler needs the latent before it and two noise levels, nothing else. So we call ComfyUI's own
sampler function once a step, with those, and write the latent down in between. Ancestral samplers draw noise too: from
one generator, so counting the draws is enough to find its place again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import comfy.samplers
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from ...storage.states import State, StateFolder
from ..compat import sampler_functions
from ..server import RunningNode, running_node
from .fingerprint import STATE, FindFiles, of_guider
from .keeping import DEFAULT_GB, GB, Kept, identify

MINUTES, STEPS = "minutes", "steps"

# tests/host/resume/test_resume.py holds every sampler of ComfyUI against these two lists.
WITHOUT_NOISE = ("euler", "euler_cfg_pp", "heun", "exp_heun_2_x0", "dpm_2")
WITH_NOISE = (
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "exp_heun_2_x0_sde",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "ddpm",
    "lcm",
    "seeds_2",
    "seeds_3",
)
# Nodes of ComfyUI that carry something from step to step beside the latent.
CARRYING_NODES = {"EasyCache", "LazyCache", "APG"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keeping:
    """Where states are kept, how often (every so many MINUTES or STEPS), what finds model files by their name, and the
    bytes that files nobody needs may take.
    """

    states: StateFolder
    every: int
    unit: str
    find_files: FindFiles
    limit: int = DEFAULT_GB * GB


def resumable(
    sampler, keeping: Keeping, running: Callable[[], RunningNode | None] = running_node
) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that samples as `sampler` does and keeps its state; `running` tells which node of which graph samples.

    Raises ValueError where a sampler's state is more than its latent.
    """
    function = getattr(sampler, "sampler_function", sampler)
    functions = sampler_functions(WITHOUT_NOISE + WITH_NOISE)
    if type(sampler) is not comfy.samplers.KSAMPLER or function not in functions:
        name = getattr(function, "__name__", type(function).__name__).removeprefix("sample_")
        raise ValueError(
            f"UltraGen Resume goes on with samplers that need nothing of earlier steps but the latent, got {name}. "
            f"Choose {', '.join(functions.values())}, or leave UltraGen Resume out."
        )
    _check_options(functions[function], sampler.extra_options)
    stepwise = Stepwise(function, functions[function] in WITH_NOISE, keeping, running)
    return comfy.samplers.KSAMPLER(stepwise, sampler.extra_options, sampler.inpaint_options)


def _check_options(name: str, options: Mapping) -> None:
    independent = {"s_churn": (0,), "noise_sampler": (None,), "s_noise_end": (None, options.get("s_noise", 1))}
    for option, values in independent.items():
        if option in options and options[option] not in values:
            raise ValueError(
                f"UltraGen Resume goes on with {name} when its {option} is {values[-1]}, got {options[option]}: each "
                "step would depend on the whole run. Change it, or leave UltraGen Resume out."
            )


@dataclass(frozen=True)
class Stepwise:
    """A sampler function as KSAMPLER calls it, made of one call of `function` for each step."""

    function: Callable[..., Tensor]
    with_noise: bool
    keeping: Keeping
    running: Callable[[], RunningNode | None]

    def __call__(
        self, model, x: Tensor, sigmas: Tensor, extra_args: dict, callback=None, disable=None, **options
    ) -> Tensor:
        """x: the noisy latent at sigmas[0]; a state takes its place, and callbacks count on from that state's step."""
        node, steps = self.running(), len(sigmas) - 1
        if node is None:
            log.warning("UltraGen: no state is kept, because this run was not queued in ComfyUI.")
            return self.function(model, x, sigmas, extra_args, callback, disable, **options)

        def values() -> dict[str, object]:
            return {
                "size": [x.shape, x.dtype],
                **of_guider(model.inner_model, extra_args.get("seed")),
                "noise": x,
                "noise levels": sigmas,
                "latent": [model.latent_image, extra_args.get("denoise_mask")],
                "sampler": [self.function, options],
            }

        run = identify(STATE, node, x.device, values, self.keeping.find_files)
        if run is None:
            return self.function(model, x, sigmas, extra_args, callback, disable, **options)
        with Keeper(self.keeping, run, State(x, 0), steps, node.prompt_id) as keeper:
            x, first = keeper.newest.x.to(x), keeper.newest.step
            warn_of_carrying(node, first)
            noise = ReplayedNoise(x, extra_args.get("seed"), keeper.newest.draws)
            if self.with_noise:
                options["noise_sampler"] = noise
            for step in k_diffusion.trange(first, steps, initial=first, total=steps, disable=disable):
                shown = []
                # A copy of extra_args: the cfg_pp samplers add to it in every call.
                x = self.function(model, x, sigmas[step : step + 2], {**extra_args}, shown.append, True, **options)
                # The last step is always taken anew: its callback makes the sampling node's second output.
                if step + 1 < steps:
                    keeper.reached(State(x, step + 1, noise.draws))
                if callback is not None:
                    callback({**shown[0], "i": step})
        return x


def warn_of_carrying(node: RunningNode, step: int) -> None:
    carrying = CARRYING_NODES & {each["class_type"] for each in node.upstream.values()}
    if step and carrying:
        log.warning(
            "UltraGen: %s starts empty at step %d: the video will differ a little from one made in one go.",
            ", ".join(sorted(carrying)),
            step + 1,
        )


class ReplayedNoise:
    """The noise that ComfyUI's ancestral samplers draw by default, from its n-th draw on."""

    def __init__(self, x: Tensor, seed: int | None, draws: int):
        self._sampler = k_diffusion.default_noise_sampler(x, seed=seed)
        self.draws = 0
        for _ in range(draws):
            self(None, None)

    def __call__(self, sigma, sigma_next) -> Tensor:
        self.draws += 1
        return self._sampler(sigma, sigma_next)


class Keeper:
    """Finds the state that a run goes on from, and writes its newest one when that is due and when the run ends."""

    def __init__(
        self, keeping: Keeping, run: Mapping[str, str], beginning: State, steps: int, prompt_id: str | None = None
    ):
        self._keeping = keeping
        self._kept = Kept(keeping.states, run, prompt_id, keeping.limit)
        found = self._kept.load(beginning.x, range(steps))
        self.newest = found or beginning
        self._kept_step, self._kept_at = self.newest.step, time.monotonic()
        if found:
            log.info("UltraGen: continuing after step %d of %d.", found.step, steps)
        elif changes := keeping.states.changes(run):
            step, names = changes
            log.info("UltraGen: starting over; a state after step %s has another %s.", step, ", ".join(names))

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_) -> None:
        if self.newest.step > self._kept_step:
            self._write()

    def reached(self, state: State) -> None:
        self.newest = state
        minutes = (time.monotonic() - self._kept_at) / 60
        if (minutes if self._keeping.unit == MINUTES else state.step - self._kept_step) >= self._keeping.every:
            self._write()

    def _write(self) -> None:
        self._kept_step, self._kept_at = self.newest.step, time.monotonic()
        self._kept.save(self.newest)
