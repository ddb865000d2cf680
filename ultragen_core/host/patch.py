"""Giving a loaded Wan model another attention: settings and extras in, a patched clone out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import comfy.ldm.wan.model as wan
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..attention.config import GlobalConfig, LocalConfig
from ..weights.files import SOURCE
from ..weights.published import fingerprint, same_base, untrained
from .extras import LoadedExtras, build
from .model import diffusion_model, shape_of
from .rules import KEY, Rule, T3Rule, t3_rule, ultragen_rule
from .runtime import Runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a user chooses about a patch.

    start_percent, end_percent: parts of the sampling run, 0 its start.
    rule: "auto" is the rule that the weights were trained for; "ultragen" runs also without extra weights
        (experimental); "t3" is for the weights of T3-Video.
    bounded_memory: whether activations are kept small where the card asks for it.
    """

    local: LocalConfig = LocalConfig()
    global_: GlobalConfig = GlobalConfig()
    start_percent: float = 0.0
    end_percent: float = 1.0
    rule: str = "auto"
    bounded_memory: bool = True

    def __post_init__(self):
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise ValueError(
                f"start_percent must be below end_percent, both between 0 and 1, got {self.start_percent} and"
                f" {self.end_percent}."
            )


def apply(model, settings: Settings, extras: LoadedExtras | None = None):
    """A clone of `model`, a ModelPatcher around Wan, that samples with another attention; `model` is never changed.

    extras: the added weights; None keeps those that a patched model already has.
    Raises ValueError where model, settings and extras do not fit together.
    """
    dm, before = wan_model(model), patched_by(model)
    rule = _rule(dm, settings, extras, before.rule if before else None)
    runtime = Runtime(rule, (settings.start_percent, settings.end_percent), settings.bounded_memory)
    patched = model.clone()
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, runtime.outer_sample),
        (WrappersMP.APPLY_MODEL, runtime.apply_model),
    ):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    patched.set_additional_models(KEY, [rule.extras.patcher] if rule.extras else [])
    patched.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    patched.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _extras_follow)
    _extras_follow(model, patched)
    return patched


def patched_by(model) -> Runtime | None:
    """What a patched model runs; None for any other."""
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return wrappers[0].__self__ if wrappers else None


def _extras_follow(_, clone) -> None:
    """ComfyUI's torch.compile node takes dynamic VRAM off the model that it clones, and knows nothing of the extras."""
    if not _is_dynamic(clone):
        extras = clone.get_additional_models_with_key(KEY)
        clone.set_additional_models(KEY, [e.clone(disable_dynamic=True) if _is_dynamic(e) else e for e in extras])


def _is_dynamic(patcher) -> bool:
    return getattr(patcher, "is_dynamic", bool)()  # 0.3.75 has no dynamic VRAM


def wan_model(model) -> wan.WanModel:
    """The Wan model of a ModelPatcher. Raises ValueError."""
    dm = diffusion_model(model.model)
    if not isinstance(dm, wan.WanModel):
        raise ValueError(f"UltraGen patches Wan models, got {type(dm).__name__}. Connect a Wan 2.1 or 2.2 model.")
    return dm


def _rule(dm: wan.WanModel, settings: Settings, extras: LoadedExtras | None, before: Rule | None) -> Rule:
    if settings.rule == "t3" or (settings.rule == "auto" and extras is None and isinstance(before, T3Rule)):
        if extras is not None:
            raise ValueError("The t3 rule has no extra weights. Set extras to none, or attention_rule to ultragen.")
        return t3_rule(shape_of(dm), settings.global_)
    extras = extras or (before.extras if before else None)
    if extras is not None and extras.trained:
        _check_fit(dm, settings.global_, extras)
    elif settings.rule == "auto" and extras is None:
        raise ValueError(
            "This model has no UltraGen weights whose rule could be followed. Load them with UltraGen Load Model or"
            " choose an extras file; set attention_rule to t3 for a model of T3-Video, or to ultragen to run"
            " without weights (experimental)."
        )
    else:
        extras = _without_weights(dm, settings.global_)
    return ultragen_rule(shape_of(dm), settings.local, settings.global_, extras)


def _without_weights(dm: wan.WanModel, global_: GlobalConfig) -> LoadedExtras:
    ratio = global_.compress_ratio or 4
    read = partial(untrained, dm.dim, list(range(len(dm.blocks))), ratio)
    return build(read(), read)


def _check_fit(dm: wan.WanModel, global_: GlobalConfig, extras: LoadedExtras) -> None:
    shape = extras.shape
    if shape.channels != dm.dim or max(extras.blocks) >= len(dm.blocks):
        raise ValueError(
            f"Extra weights must fit the model: they are for {shape.channels} channels and blocks up to"
            f" {max(extras.blocks)}, the model has {dm.dim} channels and {len(dm.blocks)} blocks. UltraGen's published"
            f" weights ({SOURCE}) are for Wan 2.1 1.3B."
        )
    if global_.compress_ratio not in (None, shape.global_ratio):
        raise ValueError(
            f"Trained weights fix the compress ratio: they have {shape.global_ratio}, the global config asks for"
            f" {global_.compress_ratio}. Set it to 0 (as trained)."
        )
    model_fingerprint = fingerprint(dict(dm.named_parameters()), list(extras.fingerprint))
    if not same_base(model_fingerprint, extras.fingerprint):
        log.warning(
            "UltraGen: these extra weights were trained with another base model than the one connected; expect"
            " artefacts. Use the checkpoint that they were extracted from (UltraGenLoadModel)."
        )
