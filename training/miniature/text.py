"""A stand-in for UMT5-XXL's text tensor."""

from __future__ import annotations

import hashlib

import torch

TOKENS, CHANNELS = 512, 4096


def word_vectors(text: str) -> torch.Tensor:
    """Return (512, 4096): a fixed random vector per word, then zeros, as after the end of a UMT5 prompt."""
    tokens = torch.zeros(TOKENS, CHANNELS)
    for position, word in enumerate(text.lower().split()[:TOKENS]):
        tokens[position] = torch.randn(CHANNELS, generator=torch.Generator().manual_seed(_seed(word)))
    return tokens


def _seed(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
