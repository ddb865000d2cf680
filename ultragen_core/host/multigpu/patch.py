"""Lets several GPUs sample a model: ComfyUI's own clones, and our wrappers."""

from __future__ import annotations

import importlib
import logging

import comfy.model_management
from comfy.patcher_extension import WrappersMP

from ...plan.split import By, GPUs
from ..attention.patch import require_wan
from ..compat import gpu_pool_class
from .devices import gpus
from .refusals import why_not_split, why_one_gpu
from .split import KEY, OTHERS, Split

log = logging.getLogger(__name__)


def use_gpus(model, count: int, by: By):
    """A clone of `model` (a ModelPatcher around Wan) that `count` GPUs sample together; 0 is all. `model` is unchanged.

    by: how the work is split, as for `Split`. Where only one GPU can work, the log says why, and the clone samples as
    the model does. Raises ValueError for other models, and where the loader cannot load the model once more.
    """
    require_wan(model)
    devices = gpus(count, model.load_device)
    if len(devices) == 1:
        old = gpu_pool_class() is None
        reason = "this ComfyUI is older than 0.30.0" if old else "there is no other" if count != 1 else "gpus is 1"
        log.warning("UltraGen: MultiGPU uses one GPU, because %s.", reason)
        return model.clone()
    clones = importlib.import_module("comfy.multigpu")
    try:
        model = clones.create_multigpu_deepclones(model, len(devices), reuse_loaded=True)
    except RuntimeError as error:
        if model.cached_patcher_init is not None:
            raise
        raise ValueError(
            "UltraGen MultiGPU needs a copy of the model on every GPU, and its loader cannot make one. Load the model"
            " with UltraGen Load Model or with ComfyUI's Load Diffusion Model."
        ) from error
    split = Split(by)
    for kind, wrapper in split.wrappers().items():
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


def gpus_of(model) -> GPUs:
    """The GPUs that sample a model; one where `use_gpus` has not changed it."""
    wrappers = model.wrappers.get(WrappersMP.CALC_COND_BATCH, {}).get(KEY, [])
    if not wrappers:
        return GPUs()
    count, by = 1 + len(model.get_additional_models_with_key(OTHERS)), wrappers[0].__self__.by
    if reason := why_one_gpu(model):
        return GPUs(1, by, (f"UltraGen MultiGPU uses one GPU, because {reason}.",))
    if by == "prompts" or not (reason := why_not_split(model.model, [], model.model_options, model.load_device)):
        return GPUs(count, by)
    return GPUs(count, "prompts", (f"Each prompt stays on one GPU, because {reason}.",))


def gpus_here(count: int, by: By) -> GPUs:
    """The GPUs of UltraGen MultiGPU's inputs; 0 is all of this computer's."""
    here = len(gpus(0, comfy.model_management.get_torch_device()))
    if here >= count > 0 or here > 1 and not count:
        return GPUs(count or here, by)
    if gpu_pool_class() is None:
        return GPUs(1, by, ("UltraGen MultiGPU uses one GPU, because this ComfyUI is older than 0.30.0.",))
    have = f"UltraGen MultiGPU finds {here} GPU{'s' * (here > 1)} on this computer"
    return GPUs(count, by, (f"{have}. The plan is for {count}.",)) if count else GPUs(1, by, (f"{have}.",))


def models_on_one_gpu(model) -> list:
    """A model and the models that are loaded with it on its own GPU."""
    elsewhere = [each for clone in model.get_additional_models_with_key(OTHERS) for each in _with_additional(clone)]
    return [each for each in _with_additional(model) if each not in elsewhere]


def _with_additional(model) -> list:
    return [model, *model.get_nested_additional_models()]
