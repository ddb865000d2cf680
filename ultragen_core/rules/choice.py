"""Which rule a model gets: the user's settings and the weights that there are, checked against each other.

A loaded model and a plan from the headers of files pass through here alike, so that both say and refuse the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..attention.config import GlobalConfig, LocalConfig
from ..host.attention.extras import LoadedExtras
from ..wan import WanShape
from ..weights.files import SOURCE
from .ultragen import Rule, T3Rule, t3_rule, ultragen_rule

UNTRAINED_RATIO = 4


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
        for name, kind in (("local", LocalConfig), ("global_", GlobalConfig)):
            if not isinstance(getattr(self, name), kind):
                node = f"UltraGen {name.rstrip('_').title()} Config"
                raise ValueError(f"Connect {node}, got a value of type {type(getattr(self, name)).__name__}.")
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise ValueError(
                f"start_percent must be below end_percent, both between 0 and 1, got {self.start_percent} and"
                f" {self.end_percent}."
            )


def choose_rule(
    shape: WanShape,
    settings: Settings,
    extras: LoadedExtras | None,
    before: Rule | None,
    without_weights: Callable[[int], LoadedExtras],
) -> Rule:
    """The rule for a model of this shape. Raises ValueError where model, settings and extras do not fit together.

    extras: the added weights; None keeps those that the model has. before: the rule that the model has already.
    without_weights: from a compress ratio to the averages that stand in for trained weights.
    """
    if settings.rule == "t3" or (settings.rule == "auto" and extras is None and isinstance(before, T3Rule)):
        if extras is not None:
            raise ValueError("The t3 rule has no extra weights. Set extras to none, or attention_rule to ultragen.")
        return t3_rule(shape, settings.global_, before.known if before else None)
    extras = extras or (before.known if before else None)
    if extras is not None and extras.trained:
        _check_fit(shape, settings.global_, extras)
    elif settings.rule == "auto" and extras is None:
        raise ValueError(
            "This model has no UltraGen weights whose rule could be followed. Load them with UltraGen Load Model or"
            " choose an extras file; set attention_rule to t3 for a model of T3-Video, or to ultragen to run"
            " without weights (experimental)."
        )
    else:
        extras = without_weights(settings.global_.compress_ratio or UNTRAINED_RATIO)
    return ultragen_rule(shape, settings.local, settings.global_, extras)


def _check_fit(shape: WanShape, global_: GlobalConfig, extras: LoadedExtras) -> None:
    theirs = extras.shape
    if theirs.channels != shape.channels or max(extras.blocks) >= shape.blocks:
        raise ValueError(
            f"Extra weights must fit the model: they are for {theirs.channels} channels and blocks up to"
            f" {max(extras.blocks)}, the model has {shape.channels} channels and {shape.blocks} blocks. UltraGen's"
            f" published weights ({SOURCE}) are for Wan 2.1 1.3B."
        )
    if global_.compress_ratio not in (None, theirs.global_ratio):
        raise ValueError(
            f"Trained weights fix the compress ratio: they have {theirs.global_ratio}, the global config asks for"
            f" {global_.compress_ratio}. Set it to 0 (as trained)."
        )
