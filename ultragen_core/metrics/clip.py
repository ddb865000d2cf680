"""CLIP score and temporal consistency, from CLIP embeddings of the frames and the prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_score(frames: Tensor, prompt: Tensor) -> Tensor:
    """Return the cosine similarity (n) of each frame embedding (n, channels) and the prompt embedding (channels).

    The paper's table says CLIP-L, which is ViT-L/14, and lists plain cosines (0.2654): not scaled by 100 and not
    clamped at 0.
    """
    return F.cosine_similarity(frames.float(), prompt.float()[None])


def temporal_consistency(frames: Tensor) -> Tensor:
    """Compare each frame from the second on with the one before and with the first.

    frames: embeddings (n, channels). Returns (n - 1): the mean of the two cosines, each clamped at 0. The paper cites
    VBench, whose consistencies share this form; CLIP embeddings are those of its background consistency (ViT-B/32
    there, here ViT-L/14, which the CLIP score needs anyway). Raises ValueError for fewer than two frames.
    """
    if len(frames) < 2:
        raise ValueError(f"Temporal consistency needs at least 2 frames, got {len(frames)}. Switch it off.")
    frames = F.normalize(frames.float(), dim=-1)
    later = frames[1:]
    pairs = torch.stack([(later * frames[:-1]).sum(-1), (later * frames[:1]).sum(-1)])
    return pairs.clamp(min=0).mean(0)
