"""CLIP score and temporal consistency, from CLIP's embeddings of the frames and of the prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_score(frames: Tensor, prompt: Tensor) -> Tensor:
    """Cosine of each frame's embedding and the prompt's.

    frames: (n, channels), prompt: (channels), of one CLIP model. Returns (n). The paper's table says CLIP-L, that is
    ViT-L/14, and holds plain cosines (0.2654), neither scaled by 100 nor cut off at 0.
    """
    return F.cosine_similarity(frames.float(), prompt.float()[None])


def temporal_consistency(frames: Tensor) -> Tensor:
    """How much each frame from the second on looks like the one before and like the first.

    frames: (n, channels). Returns (n - 1): the mean of the two cosines, each at least 0. The paper cites VBench for it,
    which has several consistencies; this is the form that they share, and CLIP's embeddings are those of its
    background consistency (there of ViT-B/32, here of the model that the CLIP score needs anyway).
    ValueError for fewer than two frames.
    """
    if len(frames) < 2:
        raise ValueError(f"Temporal consistency compares frames and needs 2, got {len(frames)}. Leave it off.")
    frames = F.normalize(frames.float(), dim=-1)
    later = frames[1:]
    pairs = torch.stack([(later * frames[:-1]).sum(-1), (later * frames[:1]).sum(-1)])
    return pairs.clamp(min=0).mean(0)
