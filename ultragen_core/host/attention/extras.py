"""UltraGen's extras as a model that ComfyUI itself counts, loads, offloads and casts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import nn

from ...attention.extras import BlockExtras, ExtrasShape, ExtrasSummary
from ...attention.gate import BlockGates
from ...weights.published import Extras
from ..compat import is_dynamic, patcher_class
from .parameters import Operations

KEY = "ultragen"  # of everything that the pack registers on a ModelPatcher


class ExtrasModel(nn.Module):
    """The extras that all tokens pass through, by block index."""

    def __init__(self, shape: ExtrasShape, blocks: list[int], **factory):
        super().__init__()
        self.blocks = nn.ModuleDict({str(i): BlockExtras(shape, Operations, **factory) for i in blocks})


@dataclass(frozen=True)
class LoadedExtras:
    """Extras ready to be installed on a model.

    patcher: manages an `ExtrasModel`. summary: for the rule, with the gates, which stay outside the patcher because
    they depend on the timestep alone. fingerprint: recognises the base model that the extras were trained with.
    """

    patcher: comfy.model_patcher.ModelPatcher
    summary: ExtrasSummary
    fingerprint: dict[int, list[float]]


def build(extras: Extras, read: Callable[[], Extras]) -> LoadedExtras:
    """Build the modules of `extras`. read: gets the same extras again, for ComfyUI's copies on other GPUs."""
    gates = {index: _gates(extras.shape.channels, state) for index, state in extras.gates.items()}
    summary = ExtrasSummary(extras.shape, frozenset(extras.blocks), gates)
    return LoadedExtras(_patcher(extras, read), summary, extras.fingerprint)


def blocks_of(patcher) -> dict[int, BlockExtras]:
    """The extras by block index, of the model that a patcher from `build` manages."""
    return {int(index): block for index, block in patcher.model.blocks.items()}


def extras_on(base) -> dict[int, BlockExtras]:
    """The extras of the clone that is sampling; none under a rule without extras."""
    patchers = base.current_patcher.get_additional_models_with_key(KEY)
    return blocks_of(patchers[0]) if patchers else {}


def _gates(channels: int, state: dict[str, torch.Tensor]) -> BlockGates:
    with torch.device("meta"):
        gates = BlockGates(channels)
    gates.load_state_dict(state, assign=True)
    return gates.requires_grad_(False)


def _patcher(
    extras: Extras, read: Callable[[], Extras], disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    state = {f"blocks.{index}.{key}": tensor for index, keys in extras.blocks.items() for key, tensor in keys.items()}
    offload_device = comfy.model_management.unet_offload_device()
    module = ExtrasModel(
        extras.shape, list(extras.blocks), dtype=comfy.utils.weight_dtype(state), device=offload_device
    )
    module.requires_grad_(False)
    patcher = patcher_class(dynamic=not disable_dynamic)(
        module, load_device=comfy.model_management.get_torch_device(), offload_device=offload_device
    )
    module.load_state_dict(state, assign=is_dynamic(patcher))
    patcher.cached_patcher_init = (_reload, (read,))
    return patcher


def _reload(read: Callable[[], Extras], disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return _patcher(read(), read, disable_dynamic)
