"""Lets several GPUs sample a model: ComfyUI's own clones, and our wrappers."""

from __future__ import annotations

import importlib
import logging

from ..attention.patch import require_wan
from ..compat import gpu_pool_class
from .devices import gpus
from .split import KEY, By, Split

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
