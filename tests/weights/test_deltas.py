"""Deltas on the feed-forward part in a file: complete in all blocks with extras, or in none."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from helpers.deltas import with_deltas
from helpers.support import DATA
from safetensors.torch import load_file

from ultragen_core.attention.extras import BlockExtras, ExtrasSummary
from ultragen_core.rules.choice import Settings, choose_rule
from ultragen_core.wan import WanShape
from ultragen_core.weights.extras_file import read_extras, save_extras
from ultragen_core.weights.files import WeightsError
from ultragen_core.weights.published import published_items, split

FLAT = load_file(DATA / "tiny_ultragen.safetensors")
DELTAS = with_deltas(FLAT)
HIDDEN = len(FLAT["blocks.0.ffn.0.weight"])
KEY = "blocks.2.ffn.{}_lora.lora_{}.weight"


def test_they_are_found_beside_the_base_and_written_as_they_were(tmp_path):
    base, extras = split(DELTAS, "x")
    plain = split(FLAT, "x")[1]
    assert base.keys() == split(FLAT, "x")[0].keys()
    assert extras.shape == replace(plain.shape, ffn_channels=HIDDEN) and plain.shape.ffn_channels == 0
    assert "ffn" not in str(plain.blocks) and "ffn" not in str(list(BlockExtras(plain.shape).state_dict()))
    save_extras(extras, tmp_path / "extras.safetensors")
    again = read_extras(tmp_path / "extras.safetensors")
    found = dict(published_items(again))
    assert again.shape == extras.shape and found.keys() == DELTAS.keys() - base.keys()
    assert all(torch.equal(found[key], DELTAS[key]) for key in found)
    assert sum(".ffn." in key for key in found) == 2 * 2 * 4


def without(*parts: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in DELTAS.items() if not any(part in key for part in parts)}


def with_axis_halved(key: str, axis: int) -> dict[str, torch.Tensor]:
    return DELTAS | {key: DELTAS[key].narrow(axis, 0, DELTAS[key].shape[axis] // 2)}


REFUSED = {
    "a tensor is missing": (without("blocks.1.ffn.2_lora.lora_B.bias"), r"1.ffn.2_lora.lora_B.bias .*, found nothing"),
    "the first block has none": (without("blocks.1.ffn.0_lora", "blocks.1.ffn.2_lora"), "1.ffn.0_lora.* found nothing"),
    "the last block has none": (without("blocks.2.ffn.0_lora", "blocks.2.ffn.2_lora"), "2.ffn.0_lora.* found nothing"),
    "one layer has none": (without("ffn.2_lora"), "1.ffn.2_lora.* found nothing"),
    "another rank": (with_axis_halved(KEY.format(0, "A"), 0), r"2.ffn.0_lora.lora_A.weight .* found \(4, 256\)"),
    "another width": (with_axis_halved(KEY.format(2, "A"), 1), rf"should be \(8, {HIDDEN}\), found \(8, {HIDDEN // 2}"),
    "in a dense block": (DELTAS | {KEY.format(0, "B").replace("2", "0"): torch.zeros(HIDDEN, 8)}, "0.ffn.0_.* nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_part_of_them_is_refused(case):
    content, sentence = REFUSED[case]
    with pytest.raises(WeightsError, match="x is not a complete UltraGen checkpoint: blocks") as error:
        split(content, "x")
    assert re.search(f"{sentence}.*Get the complete file from its source", str(error.value))


def test_they_must_fit_the_base():
    other = {key: torch.cat((value, value)) if ".ffn.0." in key else value for key, value in DELTAS.items()}
    with pytest.raises(WeightsError, match=f"for {HIDDEN} feed-forward channels, its base for {2 * HIDDEN}. Get a"):
        split(other, "x")
    extras = split(DELTAS, "x")[1]
    summary = ExtrasSummary(extras.shape, frozenset(extras.blocks), dict.fromkeys(extras.gates))
    model = WanShape(blocks=4, channels=256, heads=2, ffn_channels=2 * HIDDEN)
    with pytest.raises(ValueError, match=f"do not fit .* for {HIDDEN} channels .* has {2 * HIDDEN}. Use the"):
        choose_rule(model, Settings(), summary)
    assert choose_rule(replace(model, ffn_channels=HIDDEN), Settings(), summary).blocks == [1, 2]
