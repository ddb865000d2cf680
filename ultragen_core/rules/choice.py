"""Chooses the rule of a model: checks the user's settings and the weights against each other.

A loaded model and a plan made from file headers both use this, so both refuse the same settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..attention.config import DEFAULT_GLOBAL, DEFAULT_LOCAL, GlobalConfig, LocalConfig
from ..attention.extras import ExtrasShape, ExtrasSummary
from ..wan import WanShape
from .rule import Rule
from .t3 import T3Rule, t3_rule
from .ultragen import ultragen_rule

AUTO = "auto"  # the rule that the weights were trained for
COMFYUI = "comfyui"  # the choice of attention kernel is ComfyUI's
RULES = (AUTO, "ultragen", "t3")
UNTRAINED_RATIO = 4


@dataclass(frozen=True)
class Settings:
    """A user's choices for one patch.

    start_percent, end_percent: the part of the sampling run in which the rule acts; 0 is its start, 1 its end.
    rule: one of RULES; "ultragen" also runs without trained weights (experimental), "t3" is for the weights of
        T3-Video.
    bounded_memory: compute in chunks of tokens where the card asks for it.
    attention_kernel: what computes self-attention; COMFYUI leaves the choice to ComfyUI.
    """

    local: LocalConfig = DEFAULT_LOCAL
    global_: GlobalConfig = DEFAULT_GLOBAL
    start_percent: float = 0.0
    end_percent: float = 1.0
    rule: str = AUTO
    bounded_memory: bool = True
    attention_kernel: str = COMFYUI

    def __post_init__(self):
        for name, kind in (("local", LocalConfig), ("global_", GlobalConfig)):
            if not isinstance(getattr(self, name), kind):
                node = f"UltraGen {name.rstrip('_').title()} Config"
                raise ValueError(f"Connect {node}, got a value of type {type(getattr(self, name)).__name__}.")
        if self.rule not in RULES:
            raise ValueError(f"The attention rule must be one of {', '.join(RULES)}, got {self.rule!r}.")
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise ValueError(
                f"start_percent must be below end_percent, both between 0 and 1, got {self.start_percent} and"
                f" {self.end_percent}."
            )


def choose_rule(
    model: WanShape,
    settings: Settings,
    given: ExtrasSummary | None = None,
    present: ExtrasSummary | None = None,
    before: Rule | None = None,
) -> Rule:
    """The rule for a model. Raises ValueError where model, settings and extras do not fit together.

    given: extras chosen with these settings. present: extras that the model already has. before: the rule that it
    already has. Without trained extras the ultragen rule gets untrained ones, as a summary.
    """
    if settings.rule == "t3" or (settings.rule == AUTO and given is None and isinstance(before, T3Rule)):
        if given is not None:
            raise ValueError(
                "The t3 rule uses no extras, but an extras file is set. Set extras to none, or attention_rule to"
                " ultragen."
            )
        return t3_rule(model, settings.local, settings.global_)
    extras = given or present
    if extras is not None and extras.trained:
        _check_fit(model, settings.global_, extras)
    elif settings.rule == AUTO and extras is None:
        raise ValueError(
            "The model has no extras, so its attention rule is unknown. Load a checkpoint with UltraGen Load Model or"
            " choose an extras file. Or set attention_rule: t3 for T3-Video's weights, ultragen to run without trained"
            " weights (experimental)."
        )
    else:
        extras = untrained_summary(model, settings.global_.compress_ratio or UNTRAINED_RATIO)
    return ultragen_rule(model, settings.local, settings.global_, extras)


def untrained_summary(model: WanShape, compress_ratio: int) -> ExtrasSummary:
    """Extras without training: average pooling in every block."""
    shape = ExtrasShape(model.channels, global_ratio=compress_ratio)
    return ExtrasSummary(shape, frozenset(range(model.blocks)), {})


def _check_fit(model: WanShape, global_: GlobalConfig, extras: ExtrasSummary) -> None:
    shape = extras.shape
    if shape.channels != model.channels or max(extras.blocks) >= model.blocks:
        raise ValueError(
            f"The extras do not fit the model: they are for {shape.channels} channels and blocks up to"
            f" {max(extras.blocks)}, but the model has {model.channels} channels and {model.blocks} blocks. UltraGen's"
            " published extras are for Wan 2.1 1.3B."
        )
    if shape.ffn_channels not in (0, model.ffn_channels):
        raise ValueError(
            f"The extras do not fit the model: their deltas are for {shape.ffn_channels} channels of the feed-forward"
            f" part, but the model has {model.ffn_channels}. Use the model that they were trained with."
        )
    if global_.compress_ratio not in (None, shape.global_ratio):
        raise ValueError(
            f"The extras were trained with a compress ratio of {shape.global_ratio}, but the global config asks for"
            f" {global_.compress_ratio}. Set compress_ratio to 0 (as trained)."
        )
