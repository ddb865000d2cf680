"""Seeded random weights under the published key names."""

from __future__ import annotations

import torch
from torch import Tensor


def seeded_i3d(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Draw a tensor for every key, in alphabetical order, that keeps activations at about 1 through all layers."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key in sorted(key for key in shapes if not key.endswith("num_batches_tracked")):
        noise = torch.randn(shapes[key], generator=generator)
        if key.endswith("running_var"):
            state[key] = 0.5 + noise.square()
        elif noise.ndim == 5:
            state[key] = noise * (2 / noise[0].numel()) ** 0.5
        else:
            state[key] = 0.2 * noise + key.endswith("bn.weight")
    return state
