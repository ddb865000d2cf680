"""Patches a loaded Wan model: settings and extras in, a patched clone out."""

from __future__ import annotations

import logging
from functools import partial

import comfy.ldm.wan.model as wan
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...rules.choice import COMFYUI, Settings, choose_rule
from ...rules.ultragen import UltraGenRule
from ...weights.published import fingerprint, same_base, untrained
from .. import moving_preview
from ..compat import for_device, is_dynamic
from ..wan_model import diffusion_model, shape_of
from .extras import KEY, LoadedExtras, build
from .kernels import Kernel, load_kernel
from .runtime import Runtime

log = logging.getLogger(__name__)


def apply(model, settings: Settings, extras: LoadedExtras | None = None):
    """A clone of `model` (a ModelPatcher around Wan) that samples with another attention; `model` is never changed.

    extras: None keeps those that a patched model already has.
    Raises ValueError where model, settings and extras do not fit together.
    """
    dm, before = require_wan(model), runtime_of(model)
    shape, given, present = shape_of(dm), extras, before.extras if before else None
    rule = choose_rule(
        shape,
        settings,
        given.summary if given else None,
        present.summary if present else None,
        before.rule if before else None,
    )
    extras = given or present
    if isinstance(rule, UltraGenRule):
        if rule.extras.trained:
            _warn_of_another_base(dm, extras)
        else:
            extras = _untrained_extras(rule)
    kernel = load_kernel(settings.attention_kernel, shape)
    if before and before.kernel and not kernel:
        _warn_of_a_replaced_kernel(before.kernel)
    percent = settings.start_percent, settings.end_percent
    runtime = Runtime(rule, extras, percent, settings.bounded_memory, kernel)
    patched = model.clone()
    wrappers = {
        WrappersMP.OUTER_SAMPLE: (runtime.outer_sample, moving_preview.outer_sample),
        WrappersMP.APPLY_MODEL: (runtime.apply_model,),
    }
    for kind, added in wrappers.items():
        patched.remove_wrappers_with_key(kind, KEY)
        for wrapper in added:
            patched.add_wrapper_with_key(kind, KEY, wrapper)
    patched.set_additional_models(KEY, [for_device(extras.patcher, model.load_device)] if rule.extras else [])
    patched.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    patched.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _match_dynamic_vram)
    _match_dynamic_vram(model, patched)
    return patched


def runtime_of(model) -> Runtime | None:
    """What a patched model runs; None for any other."""
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return wrappers[0].__self__ if wrappers else None


def _match_dynamic_vram(_, clone) -> None:
    """Take dynamic VRAM off the extras too, where ComfyUI's torch.compile node has taken it off the model."""
    if not is_dynamic(clone):
        extras = clone.get_additional_models_with_key(KEY)
        clone.set_additional_models(KEY, [e.clone(disable_dynamic=True) if is_dynamic(e) else e for e in extras])


def require_wan(model) -> wan.WanModel:
    """The Wan model of a ModelPatcher. Raises ValueError."""
    base = getattr(model, "model", None)
    dm = diffusion_model(base) if hasattr(base, "diffusion_model") else model
    if not isinstance(dm, wan.WanModel):
        raise ValueError(f"UltraGen patches Wan models, got {type(dm).__name__}. Connect a Wan 2.1 or 2.2 model.")
    return dm


def _untrained_extras(rule: UltraGenRule) -> LoadedExtras:
    shape = rule.extras.shape
    read = partial(untrained, shape.channels, sorted(rule.extras.blocks), shape.global_ratio)
    return build(read(), read)


def _warn_of_a_replaced_kernel(kernel: Kernel) -> None:
    log.warning(
        "UltraGen: attention_kernel %s of this UltraGen Apply replaces %s, which an earlier node has set.",
        COMFYUI,
        kernel.name,
    )


def _warn_of_another_base(dm: wan.WanModel, extras: LoadedExtras) -> None:
    parameters = dict(dm.named_parameters())
    dtypes = [one.dtype for name, one in parameters.items() if name.endswith("self_attn.norm_q.weight")]
    ours = fingerprint(parameters, list(extras.fingerprint))
    if not same_base(ours, extras.fingerprint, *dtypes[:1]):
        log.warning(
            "UltraGen: the extras were trained with a different base model from the connected one; expect artefacts."
            " Load the checkpoint that they were extracted from with UltraGen Load Model."
        )
