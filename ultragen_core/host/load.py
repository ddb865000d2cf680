"""From a checkpoint file to a Wan model that is patched already."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import comfy.sd

from ..weights.extras_file import read_extras
from ..weights.files import SOURCE, StateDict, WeightsError, read_metadata, read_state_dict
from ..weights.published import has_extras, split
from .extras import LoadedExtras, build
from .patch import Settings, apply

log = logging.getLogger(__name__)

RULES = ("auto", "ultragen", "dense")


def load_model(path: str | Path, rule: str = "auto", model_options: dict | None = None):
    """A ModelPatcher for the checkpoint at `path`, patched by `rule`.

    rule: "auto" is the rule that the checkpoint was trained for; "ultragen" also takes a Wan model without extra
        weights (experimental); "dense" is core's attention, also for a checkpoint with extras.
    model_options: as comfy.sd.load_diffusion_model takes them (dtype, fp8_optimizations).
    Raises WeightsError.
    """
    path, model_options = Path(path), model_options or {}
    state_dict = read_state_dict(path)
    if not has_extras(state_dict) and rule != "auto":
        model = _load_base(state_dict, path, model_options)
        return apply(model, Settings(rule=rule)) if rule == "ultragen" else model
    base, extras = split(state_dict, path.name)
    if not base:
        raise WeightsError(
            f"{path.name} holds UltraGen's extra weights alone, expected a whole checkpoint, such as {SOURCE}. "
            "Or put this file into models/model_patches and give it to UltraGen Apply, with the model it belongs to."
        )
    model = _load_base(base, path, model_options)
    if rule == "dense":
        log.warning(
            "UltraGen: %s was trained for UltraGen's attention; dense attention will not show what it can do.",
            path.name,
        )
        return model
    return apply(model, Settings(), build(extras, partial(read_extras, path)))


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
