"""Giving a loaded Wan model UltraGen's attention: settings and extras in, a patched clone out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import comfy.ldm.wan.model as wan
from comfy.patcher_extension import WrappersMP

from ..attention.config import BlockSpec, GlobalConfig, LocalConfig, block_spec
from ..attention.gate import UNTRAINED_GATE, GateTable
from ..weights.files import SOURCE
from ..weights.published import fingerprint, same_base, untrained
from .extras import LoadedExtras, build
from .runtime import KEY, Runtime, diffusion_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a user chooses about a patch.

    start_percent, end_percent: parts of the sampling run, 0 its start.
    rule: "auto" is the rule that the extra weights were trained for; "ultragen" runs also without any (experimental).
    """

    local: LocalConfig = LocalConfig()
    global_: GlobalConfig = GlobalConfig()
    start_percent: float = 0.0
    end_percent: float = 1.0
    rule: str = "auto"

    def __post_init__(self):
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise ValueError(
                f"start_percent must be below end_percent, both between 0 and 1, got {self.start_percent} and"
                f" {self.end_percent}."
            )


def apply(model, settings: Settings, extras: LoadedExtras | None = None):
    """A clone of `model`, a ModelPatcher around Wan, that samples with UltraGen's attention; `model` is never changed.

    extras: the added weights; None keeps those that a patched model already has.
    Raises ValueError where model, settings and extras do not fit together.
    """
    dm = _wan_model(model)
    for wrapper in model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        extras = extras or wrapper.__self__.extras
    if extras is None or not extras.trained:
        if settings.rule == "auto":
            raise ValueError(
                "This model has no UltraGen weights whose rule could be followed. Load them with UltraGen Load Model or"
                " choose an extras file; or set attention_rule to ultragen to run without weights (experimental)."
            )
        extras = _without_weights(dm, settings.global_)
    else:
        _check_fit(dm, settings.global_, extras)
    specs, dense = _choose_blocks(dm, settings, extras)
    runtime = Runtime(
        extras=extras,
        specs=specs,
        dense=dense,
        gates=_gate_table(settings, extras, specs),
        percent=(settings.start_percent, settings.end_percent),
    )
    patched = model.clone()
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, runtime.outer_sample),
        (WrappersMP.APPLY_MODEL, runtime.apply_model),
    ):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    patched.set_additional_models(KEY, [extras.patcher])
    return patched


def _wan_model(model) -> wan.WanModel:
    dm = diffusion_model(model.model)
    if not isinstance(dm, wan.WanModel):
        raise ValueError(f"UltraGen patches Wan models, got {type(dm).__name__}. Connect a Wan 2.1 or 2.2 model.")
    return dm


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


def _choose_blocks(
    dm: wan.WanModel, settings: Settings, extras: LoadedExtras
) -> tuple[dict[int, BlockSpec], dict[int, str]]:
    """The spec of every block that UltraGen takes, and the reason for every other one."""
    count = len(dm.blocks)
    chosen = settings.global_.dense_blocks
    if chosen is None and not extras.trained:
        # The published weights keep 3 of 30 blocks dense at either end.
        chosen = frozenset(i for i in range(count) if not count // 10 <= i < count - count // 10)
    specs, dense = {}, {}
    for index, block in enumerate(dm.blocks):
        if index not in extras.blocks:
            dense[index] = "no extra weights"
        elif index in (chosen or ()):
            dense[index] = "by choice" if settings.global_.dense_blocks is not None else "outer tenth"
        elif type(block.self_attn) is not wan.WanSelfAttention:
            dense[index] = f"its attention is {type(block.self_attn).__name__}"
        else:
            specs[index] = block_spec(index, settings.local, settings.global_, extras.trained)
    return specs, dense


def _gate_table(settings: Settings, extras: LoadedExtras, specs: dict[int, BlockSpec]) -> GateTable:
    def source(index: int):
        trained = extras.gates.get(index)
        hierarchical = trained.hierarchical_gate if trained else UNTRAINED_GATE
        global_ = trained.global_gate if trained else UNTRAINED_GATE
        return settings.local.gate or hierarchical, settings.global_.gate or global_

    return GateTable(extras.shape.channels, {index: source(index) for index in specs})
