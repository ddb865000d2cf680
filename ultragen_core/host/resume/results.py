"""Finished samplings, kept until their prompt has succeeded: a list of prompts that is killed in its fifth item, or a
graph in its second stage, samples nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...rules.ultragen import KEY as PATCH
from ...storage.states import State, StateFolder
from ..server import RunningNode, running_node
from .fingerprint import RESULT, FindFiles, model_files, of_guider
from .keeping import FOLDER, GB, Kept, default_folder, identify
from .stepwise import Stepwise

KEY = "ultragen_results"

Callback = Callable[[int, Tensor, Tensor, int], None]

log = logging.getLogger(__name__)


def keep_results(model, gigabytes: int):
    """Keep the finished samplings of `model`, a ModelPatcher of the caller's own, and return it.

    gigabytes: what those that no queued prompt needs may take on disk; 0 keeps none.
    """
    patch = model.get_wrappers(WrappersMP.OUTER_SAMPLE, PATCH)
    for key in (KEY, PATCH):
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, key)
    # Outside the patch, which announces what will run.
    for key, wrapper in (KEY, Results(gigabytes * GB).outer_sample), *((PATCH, each) for each in patch):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, wrapper)
    return model


@dataclass(frozen=True)
class Results:
    """A wrapper of whole sampling runs. limit: bytes that files nobody needs may take."""

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
        """Return the result of an equal run that is kept, reporting its last step alone, or sample and keep the result.

        Arguments and result are those of CFGGuider.outer_sample.
        """
        last_step = LastStep(callback, len(sigmas) - 1)
        kept = self._kept(executor.class_obj, noise, latent_image, sampler, sigmas, denoise_mask, seed)
        found = kept and kept.load(noise.float(), range(last_step.steps, last_step.steps + 1))
        if found:
            log.info("UltraGen: this was sampled before; its result is taken from %s.", FOLDER)
            return last_step.again(found, noise.device)
        made = executor(noise, latent_image, sampler, sigmas, denoise_mask, last_step, disable_pbar, seed, **kwargs)
        if kept and last_step.is_known and kept.save(State(made, last_step.steps, denoised=last_step.denoised)):
            kept.drop_states()
            log.info("UltraGen: this sampling is kept until its prompt has succeeded.")
        return made

    def _kept(self, guider, noise, latent_image, sampler, sigmas, denoise_mask, seed) -> Kept | None:
        node = self.running() if self.limit else None
        if node is None:
            return None

        def values() -> dict[str, object]:
            latent = {"noise": noise, "noise levels": sigmas, "latent": [latent_image, denoise_mask]}
            return of_guider(guider, seed) | latent | {"sampler": _of_sampler(sampler)}

        run = identify(RESULT, node, guider.model_patcher.load_device, values, self.find_files)
        return run and Kept(self.folder(), run, node.prompt_id, self.limit)


def _of_sampler(sampler) -> list:
    """A sampler by its function and options; stepwise it computes the same."""
    function = getattr(sampler, "sampler_function", None)
    if isinstance(function, Stepwise):
        function = function.function
    return [
        type(sampler).__name__,
        function,
        *(getattr(sampler, n, None) for n in ("extra_options", "inpaint_options")),
    ]


class LastStep:
    """A sampling callback that passes everything on and remembers the last step's denoised latent, which samplers'
    nodes hand out.
    """

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
        """False where an adaptive sampler has stopped early."""
        return self.denoised is not None or self._callback is None

    def again(self, found: State, device: torch.device) -> Tensor:
        """Report a run that was sampled earlier, and return its result."""
        x = found.x.to(device)
        if self._callback is not None and found.denoised is not None:
            self._callback(self.steps - 1, found.denoised.to(device), x, self.steps)
        return x
