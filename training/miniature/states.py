"""State dicts of the miniature: widened, halved and saved."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ultragen_core.storage.files import finished_file
from ultragen_core.weights.files import StateDict

from .latents import CONDITION_CHANNELS


def image_to_video(state: StateDict) -> StateDict:
    """Widen a text-to-video model's input to 36 channels, as Wan 2.2's image-to-video models have it.

    The new channels have no effect yet: their weights are zero.
    """
    weight = state["patch_embedding.weight"]
    added = weight.new_zeros(len(weight), CONDITION_CHANNELS, *weight.shape[2:])
    return state | {"patch_embedding.weight": torch.cat((weight, added), dim=1)}


def half(state: StateDict) -> StateDict:
    return {key: tensor.half() for key, tensor in state.items()}


def save(state: StateDict, file: Path) -> None:
    with finished_file(file) as part:
        save_file({key: tensor.cpu().contiguous() for key, tensor in state.items()}, part)
