"""Every size up to 4096x4096: windows that cover it, and a warning with good sizes exactly where it cuts badly."""

from __future__ import annotations

import re
from itertools import product

import pytest

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.extras import ExtrasShape
from ultragen_core.grid import TokenGrid
from ultragen_core.plan.flops import dense_layer_flops, layer_flops
from ultragen_core.rules.advice import MAX_RESIZE, MAX_UNEVENNESS, resized, ultragen_advice, uneven
from ultragen_core.rules.choice import UNTRAINED_RATIO, untrained_summary
from ultragen_core.rules.groups import enabled_branches, ultragen_group
from ultragen_core.rules.t3 import PUBLISHED_1_3B, t3_rule
from ultragen_core.rules.ultragen import UNTRAINED_WARNING, WHOLE_FRAME_WARNING, block_spec, ultragen_rule
from ultragen_core.sizes import PRESETS
from ultragen_core.wan import WAN_1_3B

LENGTHS = range(1, 257)  # tokens of 16 to 4096 pixels
KINDS = {
    "trained": (True, LocalConfig(), ExtrasShape(8, rank=2)),
    "untrained": (False, LocalConfig(), ExtrasShape(8)),
    "swin": (False, LocalConfig(cross_window="swin", windows=(8, 8)), ExtrasShape(8, global_ratio=3)),
    "odd counts": (True, LocalConfig(windows=(7, 16), hierarchical_windows=(5, 1)), ExtrasShape(8, global_ratio=16)),
}


@pytest.fixture(params=KINDS)
def specs_and_extras(request):
    """The specs of even and odd blocks, and the extras."""
    trained, local, extras = KINDS[request.param]
    return [block_spec(block, local, GlobalConfig(), trained) for block in (0, 1)], extras


def advice(specs_and_extras, w, h):
    return ultragen_advice(TokenGrid(21, h, w), *specs_and_extras, pixels=16)


def test_windows_cover_every_axis(specs_and_extras):
    """Rows and columns are cut alike and apart, so that every length stands for all frames with such a side."""
    for length, spec in product(LENGTHS, specs_and_extras[0]):
        for branch, ratio in enabled_branches(spec, specs_and_extras[1]).values():
            size, regions = branch.layout(TokenGrid(1, length, length), ratio)
            rows = {(region.rows.start, region.rows.stop, region.windows[1]) for region in regions}
            starts, stops, counts = zip(*sorted(rows), strict=True)
            assert (0, *stops) == (*starts, size.h) and size.h == size.w
            assert all((b - a) % n == 0 < b - a for a, b, n in sorted(rows))
            assert sum(counts) <= branch.num_windows + branch.shifted


def test_every_size_has_a_cost(specs_and_extras):
    for h, w in product(LENGTHS[::15], LENGTHS[::15]):
        for spec in specs_and_extras[0]:
            grid = TokenGrid(1025, h, w)
            flops = layer_flops(ultragen_group("blocks", [0], grid, spec, specs_and_extras[1]).branches, grid, 8)
            assert min(flops) > 0
            if min(h, w) > 60:
                assert flops.attention < dense_layer_flops(grid, 8).attention


def test_there_is_advice_exactly_where_a_size_cuts_badly_and_it_names_good_ones(specs_and_extras):
    specs, extras = specs_and_extras
    cuts = [branch for spec in specs for branch in enabled_branches(spec, extras).values()]
    for length in LENGTHS:
        bad = any(resized(length, *cut) > MAX_RESIZE or uneven(length, *cut) > MAX_UNEVENNESS for cut in cuts)
        said = advice(specs_and_extras, length, 240)
        assert len(said) == (bad or bool(advice(specs_and_extras, 240, 240)))
        for w, h in re.findall(r"(\d+)x(\d+)", said[0].partition("good sizes:")[2]) if said else ():
            assert not advice(specs_and_extras, int(w) // 16, int(h) // 16)


def test_what_is_said():
    trained, untrained = (
        ([block_spec(block, LocalConfig(), GlobalConfig(), has_weights) for block in (0, 1)], ExtrasShape(8))
        for has_weights in (True, False)
    )
    for size in PRESETS.values():
        assert not advice(trained, size.width // 16, size.height // 16)
    published = [resized(length, branch, ratio) for length in (68, 120) for spec in trained[0]
                 for branch, ratio in enabled_branches(spec, trained[1]).values()]  # fmt: skip
    assert max(published) == pytest.approx(0.029, abs=5e-4)
    assert advice(trained, 80, 45) == [
        "Frames of 1280x720 divide badly into windows: features are resized by up to 6.7%. The nearest good sizes:"
        " 1280x704, 1280x736."
    ]
    assert not advice(untrained, 80, 45)
    assert advice(untrained, 60, 13) == [
        "Frames of 960x208 divide badly into windows: features are resized by up to 7.7%, windows are up to 50% longer"
        " than others. The nearest good sizes: 960x64, 960x384."
    ]


@pytest.mark.parametrize(
    ("grid", "local", "whole_frame"),
    [((21, 30, 52), {}, True), ((21, 45, 80), {}, False), ((21, 30, 52), {"windows": (1, 2)}, False)],
)
def test_without_weights_a_window_that_covers_the_frame_is_pointed_out(grid, local, whole_frame):
    grid, extras = TokenGrid(*grid), untrained_summary(WAN_1_3B, UNTRAINED_RATIO)
    rule = ultragen_rule(WAN_1_3B, LocalConfig(**local), GlobalConfig(), extras)
    assert (WHOLE_FRAME_WARNING in rule.advice(grid)) == whole_frame and rule.advice(grid)[0] == UNTRAINED_WARNING
    dense = dense_layer_flops(grid, WAN_1_3B.channels)
    dearer = all(sum(layer_flops(group.branches, grid, WAN_1_3B.channels)) > sum(dense) for group in rule.groups(grid))
    assert dearer == whole_frame


def test_t3_says_which_size_it_was_trained_for_or_which_it_can_cut():
    rule = t3_rule(WAN_1_3B)
    assert rule.advice(PUBLISHED_1_3B.grid) == []
    assert rule.advice(TokenGrid(21, 68, 120)) == [
        "The weights were not trained for 1920x1088, 81 frames (experimental); they were for 3840x2176, 81 frames."
    ]
    assert "The nearest size that does: 1792x1056, 81 frames" in rule.advice(TokenGrid(21, 67, 113))[0]
