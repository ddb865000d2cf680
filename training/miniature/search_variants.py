"""The settings that the search compares."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.gate import GateLine

# All that a variant uses is written here, so that results keep their meaning when the nodes' defaults change.
FROM_HALF = GateLine(0.5, 1.0)
AT_QUARTER = GlobalConfig(enabled=True, compress_ratio=4, gate=FROM_HALF)
AT_HALF = GlobalConfig(enabled=True, compress_ratio=2, gate=FROM_HALF)
OFF = GlobalConfig(enabled=False)


@dataclass(frozen=True)
class Variant:
    """local, global_, start_percent: of UltraGen Apply with attention_rule ultragen; local None: full attention.

    rope: factor on token positions in height and width, as ComfyUI's ScaleROPE sets it, in the whole run.
    scaled_first: (share, rope): the first share of the run has full attention with this factor, as two samplers and
    SplitSigmas set it.
    denoise: None, or a first pass at the size of the dense training, of which the second changes the last share.
    """

    local: LocalConfig | None = None
    global_: GlobalConfig = AT_QUARTER
    start_percent: float = 0.0
    rope: float = 1.0
    scaled_first: tuple[float, float] | None = None
    denoise: float | None = None


DENSE = "dense"
DEFAULTS = "small, gate 0.2 to 1"  # what UltraGen Apply sets without trained weights
TO_BASE = 0.4  # brings positions at 640 pixels back to those of the dense training at 256
# Windows about as large as the frames of the dense training, in both branches.
NEAR = LocalConfig(windows=(2, 3), hierarchical_windows=(1, 2), gate=FROM_HALF)
# The hierarchical branch sees whole frames, at half of the resolution.
WHOLE = LocalConfig(windows=(2, 3), hierarchical_windows=(1, 1), gate=FROM_HALF)
# No window is larger than the frames of the dense training.
SMALL = LocalConfig(windows=(3, 4), hierarchical_windows=(1, 1), gate=FROM_HALF)


def _gated(local: LocalConfig, at_noise: float, at_end: float) -> LocalConfig:
    return dataclasses.replace(local, gate=GateLine(at_noise, at_end))


WHOLE_GATED = _gated(WHOLE, 0.3, 0.9)

VARIANTS: dict[str, Variant] = {
    DENSE: Variant(),
    "dense scaled 0.4": Variant(rope=TO_BASE),
    "dense scaled 0.6": Variant(rope=0.6),
    "near": Variant(NEAR),
    "near from 10%": Variant(NEAR, start_percent=0.1),
    "near from 20%": Variant(NEAR, start_percent=0.2),
    "near from 30%": Variant(NEAR, start_percent=0.3),
    "without global": Variant(NEAR, OFF),
    "without hierarchical": Variant(dataclasses.replace(NEAR, hierarchical=False)),
    "outer blocks dense": Variant(NEAR, dataclasses.replace(AT_QUARTER, dense_blocks=frozenset({0, 5}))),
    "whole": Variant(WHOLE),
    "whole, without global": Variant(WHOLE, OFF),
    "whole, global at half": Variant(WHOLE, AT_HALF),
    "whole, gate 0.3 to 0.9": Variant(WHOLE_GATED, OFF),
    "whole, gate 0.2 to 1": Variant(_gated(WHOLE, 0.2, 1.0), OFF),
    "whole, gate 0.5": Variant(_gated(WHOLE, 0.5, 0.5), OFF),
    "whole, gate 0.3 to 0.9, off": Variant(dataclasses.replace(WHOLE_GATED, cross_window="off"), OFF),
    "whole, gate 0.3 to 0.9, swin": Variant(dataclasses.replace(WHOLE_GATED, cross_window="swin"), OFF),
    "whole, gate 0.3 to 0.9, from 10%": Variant(WHOLE_GATED, OFF, start_percent=0.1),
    "whole, gate 0.3 to 0.9, scaled 0.8": Variant(WHOLE_GATED, OFF, rope=0.8),
    "whole, gate 0.3 to 0.9, outer blocks dense": Variant(
        WHOLE_GATED, dataclasses.replace(OFF, dense_blocks=frozenset({0, 5}))
    ),
    "small, gate 0.3 to 0.9": Variant(_gated(SMALL, 0.3, 0.9), OFF),
    DEFAULTS: Variant(_gated(SMALL, 0.2, 1.0), OFF),
    "scaled first 10%, near": Variant(NEAR, scaled_first=(0.1, TO_BASE)),
    "scaled first 20%, near": Variant(NEAR, scaled_first=(0.2, TO_BASE)),
    "scaled first 10%, whole": Variant(WHOLE_GATED, OFF, scaled_first=(0.1, TO_BASE)),
    "scaled first 20%, whole": Variant(WHOLE_GATED, OFF, scaled_first=(0.2, TO_BASE)),
    "scaled first 30%, whole": Variant(WHOLE_GATED, OFF, scaled_first=(0.3, TO_BASE)),
    "scaled first 20%, small": Variant(_gated(SMALL, 0.3, 0.9), OFF, scaled_first=(0.2, TO_BASE)),
    "two passes, 40%, near": Variant(NEAR, denoise=0.4),
    "two passes, 60%, near": Variant(NEAR, denoise=0.6),
    "two passes, 40%, whole": Variant(WHOLE_GATED, OFF, denoise=0.4),
    "two passes, 60%, whole": Variant(WHOLE_GATED, OFF, denoise=0.6),
    "two passes, 60%, dense": Variant(denoise=0.6),
}

# The second round combines what won in the first, with what it is compared with.
SMALL_GATED = _gated(SMALL, 0.2, 1.0)
SCALED = 0.8
REFERENCES = (DENSE, "near", DEFAULTS, "two passes, 40%, near")
SECOND: dict[str, Variant] = {
    "near scaled 0.8": Variant(NEAR, rope=SCALED),
    "small scaled 0.8": Variant(SMALL_GATED, OFF, rope=SCALED),
    "small scaled 0.6": Variant(SMALL_GATED, OFF, rope=0.6),
    "small, with global": Variant(SMALL_GATED),
    "small, global at half": Variant(SMALL_GATED, AT_HALF),
    "small scaled 0.8, global at half": Variant(SMALL_GATED, AT_HALF, rope=SCALED),
    "small scaled 0.8, outer blocks dense": Variant(
        SMALL_GATED, dataclasses.replace(OFF, dense_blocks=frozenset({0, 5})), rope=SCALED
    ),
    "small scaled 0.8, swin": Variant(dataclasses.replace(SMALL_GATED, cross_window="swin"), OFF, rope=SCALED),
    "small scaled 0.8, gate 0.5": Variant(_gated(SMALL, 0.5, 0.5), OFF, rope=SCALED),
    "scaled first 30%, small": Variant(SMALL_GATED, OFF, scaled_first=(0.3, TO_BASE)),
    "scaled first 30%, small scaled 0.8": Variant(SMALL_GATED, OFF, rope=SCALED, scaled_first=(0.3, TO_BASE)),
    "two passes, 40%, dense": Variant(denoise=0.4),
    "two passes, 40%, small": Variant(SMALL_GATED, OFF, denoise=0.4),
    "two passes, 40%, small scaled 0.8": Variant(SMALL_GATED, OFF, rope=SCALED, denoise=0.4),
    "two passes, 40%, whole, gate 0.5": Variant(_gated(WHOLE, 0.5, 0.5), OFF, denoise=0.4),
}
ROUNDS = {1: tuple(VARIANTS), 2: (*REFERENCES, *SECOND)}
VARIANTS |= SECOND
