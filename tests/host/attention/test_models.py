"""The table of models in the docs, row by row: each kind of Wan model at toy size, through ComfyUI's sampler."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import ROOT
from helpers.comfy_run import attn_state, sample
from helpers.support import relative_error, seeded
from helpers.wan_models import KINDS, H, T, W, WanVariant, load

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.gate import GateLine
from ultragen_core.host.attention.patch import Settings, apply

EVERY_BLOCK = frozenset()
WINDOWED = Settings(LocalConfig(windows=(2, 3)), GlobalConfig(enabled=True, dense_blocks=EVERY_BLOCK), rule="ultragen")
FINE_ONLY = GateLine(1.0, 1.0)
# One window over the frame, and nothing of the coarse branches: what dense attention computes.
WHOLE = Settings(
    LocalConfig(windows=(1, 1), gate=FINE_ONLY),
    GlobalConfig(enabled=True, gate=FINE_ONLY, dense_blocks=EVERY_BLOCK),
    rule="ultragen",
)


def video(model, kind: WanVariant) -> torch.Tensor:
    shape = (1, kind.latent_channels, T, H, W)
    return sample(model, shape, seeded(1, 8, 4096, seed=1), steps=1, cfg=1.0, **kind.conditions())


@pytest.mark.parametrize("name", KINDS)
def test_kind_of_model(name, caplog):
    caplog.set_level("INFO")
    kind = KINDS[name]
    model = load(kind)
    assert type(model.model.diffusion_model) is kind.build
    before, dense = attn_state(model), video(model, kind)

    caplog.clear()
    windowed = video(apply(model, WINDOWED), kind)
    assert kind.dense_because in caplog.text
    if kind.dense_because:
        assert relative_error(windowed, dense) < 1e-6
    else:
        assert "rule ultragen in 5 of 5 blocks" in caplog.text and "stay dense" not in caplog.text
        assert relative_error(windowed, dense) > 1e-4
        assert relative_error(video(apply(model, WHOLE), kind), dense) < 1e-5
    assert torch.isfinite(windowed).all()
    assert torch.equal(video(model, kind), dense) and attn_state(model) == before


def test_vace_blocks_take_the_rule_of_the_block_that_they_feed(caplog):
    kind = KINDS["Wan2.1 VACE"]
    model = load(kind)
    evaluated = []
    for block in model.model.diffusion_model.vace_blocks:
        block.self_attn.register_forward_pre_hook(
            lambda module, args: evaluated.append(hasattr(module, "ultragen_layer"))
        )
    some = Settings(WINDOWED.local, GlobalConfig(dense_blocks=frozenset({1, 3})), rule="ultragen")
    caplog.set_level("INFO")
    video(apply(model, some), kind)
    assert "VACE blocks use the attention of the blocks that they feed (experimental)" in caplog.text
    assert evaluated == [True, False, True, False, True]


def test_table_has_the_rows_that_are_tested():
    """Those of ComfyUI 0.3.75 are fewer."""
    table = (ROOT / "docs" / "models.md").read_text()
    windowed = {
        name: "windowed" in row for name, row in re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", table, re.MULTILINE)
    }
    assert {name: not kind.dense_because for name, kind in KINDS.items()}.items() <= windowed.items()
