"""From a checkpoint file to a Wan model that is patched already."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path

import comfy.sd

from ..weights.extras_file import read_extras
from ..weights.files import SOURCE, StateDict, WeightsError, read_metadata, read_state_dict
from ..weights.published import describe, has_extras, split
from .extras import LoadedExtras, build
from .patch import Settings, apply

log = logging.getLogger(__name__)

RULES = ("auto", "ultragen", "t3", "dense")
# T3-Video's weights have no keys of their own; these are the published names, and what conversions keep of them.
T3_NAME = re.compile(r"(?<![a-z0-9])t3[-_ ]?video", re.IGNORECASE)


def load_model(path: str | Path, rule: str = "auto", model_options: dict | None = None):
    """A ModelPatcher for the checkpoint at `path`, patched by `rule`.

    rule: "auto" is the rule that the checkpoint was trained for, known from its keys (ultragen) or its name (t3);
        "ultragen" also takes a Wan model without extra weights (experimental); "t3" any Wan model, for T3-Video's
        weights under another name; "dense" is core's attention, also for a checkpoint that was trained for another.
    model_options: as comfy.sd.load_diffusion_model takes them (dtype, fp8_optimizations).
    Raises WeightsError.
    """
    path, model_options = Path(path), model_options or {}
    state_dict = read_state_dict(path)
    trained_for = trained_rule(path.name, state_dict)
    if rule == "auto" and trained_for == "dense":
        raise WeightsError(
            f"{path.name} {describe(state_dict)}, not an UltraGen checkpoint, such as {SOURCE}, nor named T3-Video. Set"
            " attention_rule to t3 if it is a renamed one of those, or to ultragen to run any Wan model without extra"
            " weights (experimental)."
        )
    rule = trained_for if rule == "auto" else rule
    if trained_for not in (rule, "dense"):
        log.warning(
            "UltraGen: %s was trained for the %s rule; %s will not show what it can do.", path.name, trained_for, rule
        )
    if trained_for != "ultragen":
        return _patched(_load_base(state_dict, path, model_options), rule)
    base, extras = split(state_dict, path.name)
    if not base:
        raise WeightsError(
            f"{path.name} holds UltraGen's extra weights alone, expected a whole checkpoint, such as {SOURCE}. "
            "Or put this file into models/model_patches and give it to UltraGen Apply, with the model it belongs to."
        )
    loaded = build(extras, partial(read_extras, path)) if rule == "ultragen" else None
    return _patched(_load_base(base, path, model_options), rule, loaded)


def trained_rule(name: str, state_dict: StateDict) -> str:
    """The rule that a checkpoint was trained for."""
    return "ultragen" if has_extras(state_dict) else "t3" if T3_NAME.search(name) else "dense"


def _patched(model, rule: str, extras: LoadedExtras | None = None):
    return model if rule == "dense" else apply(model, Settings(rule=rule), extras)


def load_extras_file(path: str | Path) -> LoadedExtras:
    """The extras of an extras-only file (or of a whole checkpoint), ready for `patch.apply`. Raises WeightsError."""
    return build(read_extras(path), partial(read_extras, path))


def _load_base(base: StateDict, path: Path, model_options: dict, **kwargs):
    # The metadata of a quantised file holds what its scales belong to.
    metadata = read_metadata(path)
    model = comfy.sd.load_diffusion_model_state_dict(
        dict(base), model_options=model_options, metadata=metadata, **kwargs
    )
    if model is None:
        raise WeightsError(f"{path.name} is no diffusion model that ComfyUI knows, expected Wan, such as {SOURCE}.")
    model.cached_patcher_init = (_reload_base, (path, model_options))
    return model


def _reload_base(path: Path, model_options: dict, **kwargs):
    """ComfyUI calls this for copies of the model on other GPUs, and with `disable_dynamic` for torch.compile."""
    state_dict = read_state_dict(path)
    base = split(state_dict, path.name)[0] if has_extras(state_dict) else state_dict
    return _load_base(base, path, model_options, **kwargs)
