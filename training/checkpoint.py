"""A run on disk: states to continue from, bit for bit, and weights in the formats that ComfyUI loads.

Both are gathered from all processes, so that a run can continue on another number of processes.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ultragen_core.storage.files import finished_file
from ultragen_core.weights.extras_file import save_extras
from ultragen_core.weights.files import StateDict
from ultragen_core.weights.published import Extras, fingerprint, published_items

from .ema import AveragedWeights
from .model import Velocity
from .recipe import Recipe

LEARNING = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
SET = StateDictOptions(full_state_dict=True, strict=False)
KEPT = 2
_STATE = re.compile(r"state-(\d{6,})\.pt")
_PART = re.compile(r"(?:wan\.)?blocks\.(\d+)\.(self_attn|ffn)\.(extras|gates)\.(.+)")


class States:
    """`state-*.pt` in a run's folder: learning parameters, their averages, the optimizer's state, the step count."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, averages: AveragedWeights):
        self._folder, self._model, self._optimizer, self._averages = folder, model, optimizer, averages

    def save(self, step: int, writes: bool, data: str) -> None:
        """Save the state after `step` steps and remove all but the newest `KEPT`. All processes must call this.

        writes: whether this process writes the file. data: the fingerprint of the cache.
        """
        state = {"step": step, "data": data, "model": get_model_state_dict(self._model, options=LEARNING)}
        state["optimizer"] = get_optimizer_state_dict(self._model, self._optimizer, options=LEARNING)
        with self._averages.applied():
            # Clone: on the CPU these are the model's own tensors, which change back below.
            state["averages"] = {k: v.clone() for k, v in get_model_state_dict(self._model, options=LEARNING).items()}
        if writes:
            with finished_file(self._folder / f"state-{step:06}.pt") as part:
                torch.save(state, part)
            for path in self._all()[:-KEPT]:
                path.unlink()

    def newest(self) -> dict | None:
        """Read the newest state, None if there is none."""
        found = self._all()
        return torch.load(found[-1], map_location="cpu", weights_only=True) if found else None

    def restore(self, state: dict) -> None:
        """Load a state into model, averages and optimizer. All processes must call this with the same state."""
        set_model_state_dict(self._model, state["averages"], options=SET)
        self._averages.take_over()
        set_model_state_dict(self._model, state["model"], options=SET)
        set_optimizer_state_dict(self._model, self._optimizer, state["optimizer"], options=LEARNING)

    def _all(self) -> list[Path]:
        found = {path: _STATE.fullmatch(path.name) for path in self._folder.glob("state-*.pt")}
        return sorted((path for path in found if found[path]), key=lambda path: int(found[path][1]))


def weights_file(folder: Path, step: int, recipe: Recipe) -> Path:
    """Return the file of the weights after `step` steps."""
    return folder / f"{recipe.trains}-{step:06}.safetensors"


def publish(folder: Path, step: int, wrapped: nn.Module, model: Velocity, recipe: Recipe, writes: bool) -> None:
    """Write the current weights in the dtype of the base's file. All processes must call this.

    What is written depends on `recipe.trains`. "full": a whole checkpoint in the published key format, or in Wan's for
    a dense model. "extras": an extras-only file. "lora": a LoRA for ComfyUI's loader.
    wrapped: the model as accelerate prepared it. writes: whether this process writes the file.
    """
    state = get_model_state_dict(wrapped, options=WHOLE if recipe.trains != "lora" else LEARNING)
    if not writes:
        return
    state = {key.removeprefix("wan."): tensor.to(model.dtype) for key, tensor in state.items()}
    path = weights_file(folder, step, recipe)
    if recipe.trains == "lora":
        state = {f"diffusion_model.{key.replace('.default.', '.')}": tensor for key, tensor in state.items()}
    else:
        base, extras = _split(state, model)
        if recipe.trains == "extras":
            save_extras(extras, path)
            return
        state = base | dict(published_items(extras))
    with finished_file(path) as part:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, part)


def _split(state: StateDict, model: Velocity) -> tuple[StateDict, Extras]:
    base: StateDict = {}
    parts: dict[str, dict[int, StateDict]] = {"extras": {}, "gates": {}}
    for key, tensor in state.items():
        if match := _PART.fullmatch(key):
            key = f"ffn.{match[4]}" if match[2] == "ffn" else match[4]
            parts[match[3]].setdefault(int(match[1]), {})[key] = tensor
        else:
            base[key] = tensor
    blocks = parts["extras"]
    return base, Extras(model.shape, blocks, parts["gates"], fingerprint(base, list(blocks)))
