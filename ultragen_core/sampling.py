"""Noise levels of flow matching, as Wan and UltraGen sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The published shift of UltraGen and the frame that it was set for.
PUBLISHED_SHIFT = 5.0
PUBLISHED_PIXELS = 1920 * 1088


def flow_sigmas(steps: int, shift: float) -> Tensor:
    """Noise levels from 1 to 0: float32 (steps + 1,), s -> shift * s / (1 + (shift - 1) * s) over equal steps of s.

    These are the published sigmas; ComfyUI's "simple" scheduler rounds them to a table of 1000 and ends elsewhere.
    """
    if steps < 1 or not 0 < shift < math.inf:
        raise ValueError(f"Sampling needs at least 1 step and a shift above 0, got steps={steps}, shift={shift}.")
    s = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * s / (1 + (shift - 1) * s)).float()


def shift_for_size(width: int, height: int, shift: float = PUBLISHED_SHIFT) -> float:
    """The shift that leaves as much signal at `width` x `height` pixels as `shift` does at UltraGen's 1920x1088.

    It grows with the square root of the number of pixels (Esser et al. 2024, equation 23).
    """
    return shift * math.sqrt(width * height / PUBLISHED_PIXELS)
