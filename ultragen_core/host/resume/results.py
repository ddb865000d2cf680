"""Saves finished sampling runs until their prompt has succeeded.

A list of prompts that is killed in its fifth item, or a graph in its second stage, samples nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...storage.states import State, StateFolder
from ..attention.extras import KEY as PATCH
from ..server import RunningNode, running_node
from .fingerprint import RESULT, FindFiles, guider_values, model_files
from .run_file import FOLDER, GB, RESULTS_KEY, RunFile, default_folder, identify
from .stepwise import Stepwise

Callback = Callable[[int, Tensor, Tensor, int], None]

log = logging.getLogger(__name__)


def save_results_(model, gigabytes: int):
    """Save the finished runs of `model` from now on; changes that ModelPatcher in place and returns it.

    gigabytes: what files that no prompt needs may take on disk; 0 saves nothing.
    """
    patch = model.get_wrappers(WrappersMP.OUTER_SAMPLE, PATCH)
    for key in (RESULTS_KEY, PATCH):
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, key)
    # Outside the patch, which logs what will run.
    for key, wrapper in (RESULTS_KEY, SavedResults(gigabytes * GB).outer_sample), *((PATCH, each) for each in patch):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, wrapper)
    return model


@dataclass(frozen=True)
class SavedResults:
    """A wrapper of whole sampling runs. limit: bytes that files which no prompt needs may take; 0 saves nothing."""

    limit: int
    folder: Callable[[], StateFolder] = default_folder
    find_files: FindFiles = model_files
    running: Callable[[], RunningNode | None] = running_node

    def outer_sample(
        self,
        executor,
        noise: Tensor,
        latent_image: Tensor,
        sampler,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callback | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
        **kwargs,
    ) -> Tensor:
        """Return the saved result of an equal run, calling back for its last step alone, or sample and save the result.

        Takes and returns what CFGGuider.outer_sample does.
        """
        last_step = LastStep(callback, len(sigmas) - 1)
        file = self._file(executor.class_obj, noise, latent_image, sampler, sigmas, denoise_mask, seed)
        found = file and file.load(noise.float(), range(last_step.steps, last_step.steps + 1))
        if found:
            log.info("UltraGen: already sampled; using the result in output/%s.", FOLDER)
            return last_step.replay(found, noise.device)
        result = executor(noise, latent_image, sampler, sigmas, denoise_mask, last_step, disable_pbar, seed, **kwargs)
        if file and last_step.is_known and file.save(State(result, last_step.steps, denoised=last_step.denoised)):
            file.remove_states()
            log.info("UltraGen: this sampling is kept until its prompt has succeeded.")
        return result

    def _file(self, guider, noise, latent_image, sampler, sigmas, denoise_mask, seed) -> RunFile | None:
        node = self.running() if self.limit else None
        if node is None:
            return None

        def values() -> dict[str, object]:
            latent = {"noise": noise, "noise levels": sigmas, "latent": [latent_image, denoise_mask]}
            return guider_values(guider, seed) | latent | {"sampler": _sampler_values(sampler)}

        fingerprint = identify(RESULT, node, guider.model_patcher.load_device, values, self.find_files)
        return fingerprint and RunFile(self.folder(), fingerprint, node.prompt_id, self.limit)


def _sampler_values(sampler) -> list:
    """Return a sampler's type, function and options; Stepwise computes what its function does."""
    function = getattr(sampler, "sampler_function", None)
    if isinstance(function, Stepwise):
        function = function.function
    return [
        type(sampler).__name__,
        function,
        *(getattr(sampler, n, None) for n in ("extra_options", "inpaint_options")),
    ]


class LastStep:
    """A sampling callback that calls `callback` and keeps the last step's denoised latent, a sampling node's output."""

    def __init__(self, callback: Callback | None, steps: int):
        self._callback, self.steps = callback, steps
        self.denoised: Tensor | None = None

    def __call__(self, step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
        if step + 1 >= self.steps:
            self.denoised = denoised
        if self._callback is not None:
            self._callback(step, denoised, x, total_steps)

    @property
    def is_known(self) -> bool:
        """Whether the last step has called back; an adaptive sampler may stop before it."""
        return self.denoised is not None or self._callback is None

    def replay(self, found: State, device: torch.device) -> Tensor:
        """Call back for the last step of a saved run and return its result."""
        x = found.x.to(device)
        if self._callback is not None and found.denoised is not None:
            self._callback(self.steps - 1, found.denoised.to(device), x, self.steps)
        return x
