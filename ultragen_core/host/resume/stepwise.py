"""Samplers that continue where a crash, an interrupt or an out-of-memory error stopped them, bit for bit.

Step k of a single-step sampler needs the latent after step k - 1 and two noise levels, nothing else. So ComfyUI's own
sampler function is called once for each step with two noise levels, and the latent is written to disk in between.
Ancestral samplers also draw noise, all from one generator: the number of draws restores its position.
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
from .fingerprint import STATE, FindFiles, guider_values
from .run_file import DEFAULT_GB, GB, RunFile, identify, saves_results

MINUTES, STEPS = "minutes", "steps"

# tests/host/resume/test_resume.py compares these two lists with every sampler of ComfyUI.
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
# Nodes of ComfyUI that keep more than the latent from step to step.
STATEFUL_NODES = {"EasyCache", "LazyCache", "APG"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumeOptions:
    """Where and how often states are written.

    every: number of MINUTES or STEPS, by `unit`. find_files: finds model files by their name. limit: bytes that files
    which no prompt needs may take in the folder.
    """

    states: StateFolder
    every: int
    unit: str
    find_files: FindFiles
    limit: int = DEFAULT_GB * GB


def resumable(
    sampler, options: ResumeOptions, running: Callable[[], RunningNode | None] = running_node
) -> comfy.samplers.KSAMPLER:
    """Return a SAMPLER that computes what `sampler` does and writes its state to disk.

    running: returns the node of the queued graph that samples. Raises ValueError for a sampler whose state is more than
    its latent.
    """
    function = getattr(sampler, "sampler_function", sampler)
    functions = sampler_functions(WITHOUT_NOISE + WITH_NOISE)
    if type(sampler) is not comfy.samplers.KSAMPLER or function not in functions:
        name = getattr(function, "__name__", type(function).__name__).removeprefix("sample_")
        raise ValueError(
            f"UltraGen Resume needs a single-step sampler, whose only state is the latent, got {name}. "
            f"Choose {', '.join(functions.values())}, or remove UltraGen Resume."
        )
    _check_options(functions[function], sampler.extra_options)
    stepwise = Stepwise(function, functions[function] in WITH_NOISE, options, running)
    return comfy.samplers.KSAMPLER(stepwise, sampler.extra_options, sampler.inpaint_options)


def _check_options(name: str, options: Mapping) -> None:
    independent = {"s_churn": (0,), "noise_sampler": (None,), "s_noise_end": (None, options.get("s_noise", 1))}
    for option, values in independent.items():
        if option in options and options[option] not in values:
            raise ValueError(
                f"UltraGen Resume needs {option} = {values[-1]} for {name}, got {options[option]}: with it each step "
                "would depend on the whole run. Change it, or remove UltraGen Resume."
            )


@dataclass(frozen=True)
class Stepwise:
    """A sampler function, as KSAMPLER calls it, that calls `function` once for each step."""

    function: Callable[..., Tensor]
    with_noise: bool
    options: ResumeOptions
    running: Callable[[], RunningNode | None]

    def __call__(
        self, model, x: Tensor, sigmas: Tensor, extra_args: dict, callback=None, disable=None, **options
    ) -> Tensor:
        """Sample from the noisy latent x at sigmas[0], or from a saved state; callbacks then count on from its step."""
        node, steps = self.running(), len(sigmas) - 1
        if node is None:
            log.warning("UltraGen: no state is kept, because this run was not queued in ComfyUI.")
        file = node and self._file(node, model, x, sigmas, extra_args, options)
        if file is None:
            return self.function(model, x, sigmas, extra_args, callback, disable, **options)
        writer = StateWriter(file, self.options, State(x, 0), steps, saves_results(model.inner_model.model_patcher))
        with writer:
            x, first = writer.newest.x.to(x), writer.newest.step
            warn_of_stateful_nodes(node, first)
            noise = ReplayedNoise(x, extra_args.get("seed"), writer.newest.draws)
            if self.with_noise:
                options["noise_sampler"] = noise
            for step in k_diffusion.trange(first, steps, initial=first, total=steps, disable=disable):
                shown = []
                # A copy of extra_args: the cfg_pp samplers add to it in every call.
                x = self.function(model, x, sigmas[step : step + 2], {**extra_args}, shown.append, True, **options)
                # A resumed run always computes the last step: its callback makes the sampling node's second output.
                if step + 1 < steps:
                    writer.reached(State(x, step + 1, noise.draws))
                if callback is not None:
                    callback({**shown[0], "i": step})
        return x

    def _file(
        self, node: RunningNode, model, x: Tensor, sigmas: Tensor, extra_args: Mapping, options: Mapping
    ) -> RunFile | None:
        def values() -> dict[str, object]:
            return {
                "size": [x.shape, x.dtype],
                **guider_values(model.inner_model, extra_args.get("seed")),
                "noise": x,
                "noise levels": sigmas,
                "latent": [model.latent_image, extra_args.get("denoise_mask")],
                "sampler": [self.function, options],
            }

        fingerprint = identify(STATE, node, x.device, values, self.options.find_files)
        return fingerprint and RunFile(self.options.states, fingerprint, node.prompt_id, self.options.limit)


def warn_of_stateful_nodes(node: RunningNode, step: int) -> None:
    stateful = STATEFUL_NODES & {each["class_type"] for each in node.upstream.values()}
    if step and stateful:
        log.warning(
            "UltraGen: %s starts empty at step %d: the video will differ a little from an uninterrupted one.",
            ", ".join(sorted(stateful)),
            step + 1,
        )


class ReplayedNoise:
    """The noise that ComfyUI's ancestral samplers draw by default, continued after `draws` draws."""

    def __init__(self, x: Tensor, seed: int | None, draws: int):
        self._sampler = k_diffusion.default_noise_sampler(x, seed=seed)
        self.draws = 0
        for _ in range(draws):
            self(None, None)

    def __call__(self, sigma, sigma_next) -> Tensor:
        self.draws += 1
        return self._sampler(sigma, sigma_next)


class StateWriter:
    """Loads the state that a run continues from as `newest`; writes the newest state when due and when the run stops.

    saves_result: whether the result of a run that ends is saved, so that its last state need not be.
    """

    def __init__(self, file: RunFile, options: ResumeOptions, start: State, steps: int, saves_result: bool = False):
        self._file, self._options, self._saves_result = file, options, saves_result
        found = file.load(start.x, range(steps))
        self.newest = found or start
        self._written_step, self._written_at = self.newest.step, time.monotonic()
        if found:
            log.info("UltraGen: continuing after step %d of %d.", found.step, steps)
        elif changes := file.folder.changes(file.fingerprint):
            step, names = changes[0], ", ".join(changes[1])
            log.info("UltraGen: starting over, because this changed since the state after step %s: %s.", step, names)

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, error, *_) -> None:
        ended = error is None
        if self.newest.step > self._written_step and not (ended and self._saves_result):
            self._write()

    def reached(self, state: State) -> None:
        """Take a new state; write it where it is due."""
        self.newest = state
        minutes = (time.monotonic() - self._written_at) / 60
        passed = minutes if self._options.unit == MINUTES else state.step - self._written_step
        if passed >= self._options.every:
            self._write()

    def _write(self) -> None:
        self._written_step, self._written_at = self.newest.step, time.monotonic()
        self._file.save(self.newest)
