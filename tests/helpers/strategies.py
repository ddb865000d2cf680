"""Strategies of property tests: grids, and every setting that a user can choose."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.gate import GateLine
from ultragen_core.grid import TokenGrid

# For examples that take a tenth of a second, or a whole one.
few, very_few = (settings(max_examples=settings().max_examples // part) for part in (4, 20))

shares = st.floats(0, 1)
gates = st.none() | st.builds(GateLine, shares, shares)
window_counts = st.integers(1, 8)
pieces = st.none() | st.integers(1, 64)  # tokens_at_a_time

local_configs = st.builds(
    LocalConfig,
    windows=st.tuples(window_counts, window_counts),
    cross_window=st.sampled_from(["paper", "off", "swin"]),
    uneven=st.sampled_from(["auto", "resize", "balanced"]),
    antialias=st.booleans(),
    hierarchical=st.booleans(),
    hierarchical_windows=st.tuples(window_counts, window_counts),
    hierarchical_lora_strength=st.sampled_from([0.0, 1.0]) | st.floats(0, 2),
    gate=gates,
)


global_configs = st.builds(
    GlobalConfig,
    enabled=st.none() | st.booleans(),
    lora_strength=st.sampled_from([0.0, 1.0]) | st.floats(0, 2),
    gate=gates,
    ffn_lora_strength=st.sampled_from([0.0, 1.0]) | st.floats(0, 2),
)


@st.composite
def grids(draw, most_frames: int = 7, longest: int = 40, most_tokens: int = 400):
    """Draw token grids of any proportions, small enough for attention in a test."""
    t = draw(st.integers(1, most_frames))
    h = draw(st.integers(1, min(longest, most_tokens // t)))
    w = draw(st.integers(1, min(longest, most_tokens // (t * h))))
    return TokenGrid(t, *draw(st.permutations((h, w))))
