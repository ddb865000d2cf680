"""Loads a checkpoint file as a patched Wan model."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path

import comfy.ldm.wan.model
import comfy.model_management
import comfy.sd
import torch

from ...out_of_ram import is_host_out_of_memory
from ...printable import printable
from ...rules.choice import AUTO, COMFYUI, RULES, Settings
from ...weights.complete import check_complete
from ...weights.errors import too_large_for_ram
from ...weights.extras_file import read_extras
from ...weights.files import (
    SOURCE,
    StateDict,
    WeightsError,
    content_digest,
    file_bytes,
    read_metadata,
    read_state_dict,
)
from ...weights.published import Extras, describe, has_extras, published_items, split
from ..memory import is_out_of_memory
from ..ram import free_ram
from .extras import LoadedExtras, build
from .kernels import load_kernel
from .patch import apply

log = logging.getLogger(__name__)

CHECKPOINT_RULES = (*RULES, "dense")
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""What weight_dtype offers, with the model_options of each. fp8_e4m3fn_fast also multiplies matrices in fp8."""
IMAGES_ONLY = "Start ComfyUI without --force-channels-last, with which no video model can be built."
AGAIN = "Download the file again, whole, or load it with ComfyUI's Load Diffusion Model and UltraGen Apply."
# T3-Video's checkpoints have no keys of their own; this matches the published file names and names of conversions.
T3_NAME = re.compile(r"(?<![a-z0-9])t3[-_ ]?video", re.IGNORECASE)


def load_model(path: str | Path, rule: str = AUTO, model_options: dict | None = None, attention_kernel: str = COMFYUI):
    """A ModelPatcher for the checkpoint at `path`, patched by `rule`.

    rule: "auto" is the rule that the checkpoint was trained for, known from its keys (ultragen) or its name (t3);
        "ultragen" also takes a Wan model without extras (experimental); "t3" takes any Wan model, for T3-Video's
        weights under another name; "dense" is ComfyUI's attention for any checkpoint.
    model_options: as in comfy.sd.load_diffusion_model (dtype, fp8_optimizations).
    attention_kernel: a name of kernels.KERNELS.
    Raises WeightsError for the file, and ValueError for a kernel that is missing or does not suit the rule.
    """
    path, model_options = Path(path), model_options or {}
    check_kernel(rule, attention_kernel)  # before the file, whose loading takes long
    name = printable(path.name)
    state_dict, mapped = _read(path)
    trained_for = trained_rule(path.name, state_dict)
    rule = rule_for(name, state_dict, rule)
    if trained_for not in (rule, "dense"):
        log.warning(
            "UltraGen: %s was trained for the %s rule; the %s rule will give worse results.", name, trained_for, rule
        )
    if trained_for != "ultragen":
        return _patched(_load_base(state_dict, path, model_options), rule, attention_kernel)
    base, extras = split_whole(state_dict, name)
    # Copied, so that the extras do not depend on the file any more.
    loaded = _built(extras.cloned() if mapped else extras, path) if rule == "ultragen" else None
    return _patched(_load_base(base, path, model_options), rule, attention_kernel, loaded)


def check_kernel(rule: str, attention_kernel: str) -> None:
    """Raise ValueError where the kernel's package is missing, or where `rule` leaves the model unpatched."""
    if load_kernel(attention_kernel) and rule == "dense":
        raise ValueError(
            f"attention_rule dense is ComfyUI's own attention, got attention_kernel {attention_kernel}. Set"
            f" attention_kernel to {COMFYUI}, or choose the kernel with ComfyUI's node Model Attention Backend."
        )


def _read(path: Path) -> tuple[StateDict, bool]:
    """A checkpoint, and whether its tensors are mapped from the file.

    Tensors are read into RAM, so that the file may be replaced while its model is in use. They are mapped, as in
    ComfyUI's own loader, only where RAM does not hold them twice, which ComfyUI needs while it copies them into the
    model.
    """
    mapped = 2 * file_bytes(path) > free_ram()
    if mapped:
        log.warning(
            "UltraGen: %s stays on the disk and is read as needed, because it is large for this computer's RAM. Do not"
            " replace the file while ComfyUI runs.",
            printable(path.name),
        )
    state_dict = read_state_dict(path, mapped)
    check_complete(state_dict, printable(path.name))
    return state_dict, mapped


def trained_rule(name: str, state_dict: StateDict) -> str:
    """The rule that a checkpoint was trained for."""
    return "ultragen" if has_extras(state_dict) else "t3" if T3_NAME.search(name) else "dense"


def rule_for(name: str, state_dict: StateDict, rule: str) -> str:
    """The rule that a checkpoint runs with; "auto" is the one that it was trained for. Raises WeightsError."""
    trained_for = trained_rule(name, state_dict)
    if rule == AUTO and trained_for == "dense":
        raise WeightsError(
            f"{name} {describe(state_dict)}. Expected an UltraGen checkpoint, such as {SOURCE}, or a file named"
            " T3-Video. Set attention_rule to t3 for a renamed T3-Video checkpoint, or to ultragen to run any Wan model"
            " without extras (experimental)."
        )
    return trained_for if rule == AUTO else rule


def split_whole(state_dict: StateDict, name: str) -> tuple[StateDict, Extras]:
    """Base and extras of a checkpoint that must have both. Raises WeightsError."""
    base, extras = split(state_dict, name)
    if not base:
        raise WeightsError(
            f"{name} holds only UltraGen's extras. Expected a whole checkpoint, such as {SOURCE}. To use this file,"
            " put it into models/model_patches and choose it in UltraGen Apply, with the model that it belongs to."
        )
    return base, extras


def _patched(model, rule: str, attention_kernel: str, extras: LoadedExtras | None = None):
    return model if rule == "dense" else apply(model, Settings(rule=rule, attention_kernel=attention_kernel), extras)


def load_extras_file(path: str | Path) -> LoadedExtras:
    """The extras of an extras-only file or of a whole checkpoint, for `patch.apply`. Raises WeightsError."""
    return _built(read_extras(path), Path(path))


def _built(extras: Extras, path: Path) -> LoadedExtras:
    return build(extras, partial(_reread_extras, path, content_digest(dict(published_items(extras)))))


def _reread_extras(path: Path, mark: str) -> Extras:
    extras = read_extras(path)
    if content_digest(dict(published_items(extras))) != mark:
        raise _replaced(path)
    return extras


def _load_base(base: StateDict, path: Path, model_options: dict, **kwargs):
    name, given, mark = printable(path.name), frozenset(base), content_digest(base)
    try:
        # The metadata of a quantised file describes its scales.
        model = comfy.sd.load_diffusion_model_state_dict(
            dict(base), model_options=model_options, metadata=read_metadata(path), **kwargs
        )
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        if is_out_of_memory(error):
            raise
        if is_host_out_of_memory(error):
            raise too_large_for_ram(path) from error
        reason = printable(f"{type(error).__name__}: {error}", 500)
        way_out = IMAGES_ONLY if comfy.model_management.force_channels_last() else AGAIN
        raise WeightsError(f"ComfyUI cannot build a model from {name} ({reason}). {way_out}") from error
    if model is None:
        raise WeightsError(f"ComfyUI does not recognise {name} as a diffusion model. Expected Wan, such as {SOURCE}.")
    _check_filled(model.model.diffusion_model, given, name)
    model.cached_patcher_init = (_reload_base, (path, model_options, mark))
    return model


def _check_filled(module: torch.nn.Module, given: frozenset[str], name: str) -> None:
    """Raise WeightsError where a Wan model has parameters that its file lacks, whose values would be uninitialised."""
    if not isinstance(module, comfy.ldm.wan.model.WanModel):
        return
    # Layers of quantised models have scales, which are 1 where the file has none.
    lacking = [key for key, _ in module.named_parameters() if key not in given and "scale" not in key]
    quantised = {key.rpartition(".")[0] for key in given if not key.endswith((".weight", ".bias"))}
    lacking = [key for key in lacking if key.endswith(".bias") or key.rpartition(".")[0] not in quantised]
    if lacking:
        raise WeightsError(
            f"{name} lacks {len(lacking)} of the tensors of this type of model ({type(module).__name__}); the"
            f" first is {lacking[0]}. {AGAIN}"
        )


def _reload_base(path: Path, model_options: dict, mark: str, **kwargs):
    """Called by ComfyUI for copies of the model on other GPUs, and with `disable_dynamic` for torch.compile."""
    state_dict, _ = _read(path)
    base = split(state_dict, printable(path.name))[0] if has_extras(state_dict) else state_dict
    if content_digest(base) != mark:
        raise _replaced(path)
    return _load_base(base, path, model_options, **kwargs)


def _replaced(path: Path) -> WeightsError:
    return WeightsError(
        f"{printable(path.name)} has changed since it was loaded, and ComfyUI needs to read it again. Choose the file"
        " once more in the loader, or restart ComfyUI."
    )
