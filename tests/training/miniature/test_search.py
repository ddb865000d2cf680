"""The search at toy size: variants are what a user sets, results stay and are shared out."""

from __future__ import annotations

import csv
import functools

import pytest
import torch
from helpers.support import relative_error, seeded
from PIL import Image

from tools.console import Trouble
from ultragen_core.attention.config import LocalConfig
from ultragen_core.metrics.scores import HD_MSE

T_NOISE, T_END = torch.tensor([1000.0]), torch.tensor([100.0])


@pytest.fixture(scope="module")
def variants():
    """One that uses each way of a variant, and two for comparison."""
    from training.miniature.search_variants import DENSE, Variant

    windows = LocalConfig(windows=(3, 2), hierarchical_windows=(1, 1))
    return {
        DENSE: Variant(),
        "windows": Variant(windows),
        "late windows": Variant(windows, start_percent=0.5),
        "scaled": Variant(windows, rope=0.5),
        "scaled first": Variant(windows, scaled_first=(0.5, 0.5)),
        "two passes": Variant(windows, denoise=0.5),
    }


@pytest.fixture(scope="module")
def search(made, variants):
    """`search(variants, ...)`"""
    from training.miniature.scoring import Scoring
    from training.miniature.search import Search

    scoring = Scoring(seeds=(3,), videos=1, sampling_steps=2, held_out=1, levels=2, metrics=(HD_MSE,))
    return functools.partial(Search, made, scoring)


def test_every_variant_is_scored_once_and_all_are_in_one_table(search, variants, made):
    from training.miniature.search_variants import DENSE
    from training.miniature.table import table

    shared = list(variants.items())
    for part in (shared[:2], shared):  # processes may share them
        searched = search(dict(part))
        assert searched.run() and {row["variant"] for row in searched.results()} == dict(part).keys()
    results = {row["variant"]: row for row in searched.results()}
    losses = {name: row["loss"] for name, row in results.items()}
    assert losses["two passes"] == losses["windows"]  # the same model, used differently
    assert len(set(losses.values())) == len(losses) - 1
    assert results["two passes"][HD_MSE] != results["windows"][HD_MSE]
    with (searched.folder / "results.csv").open(encoding="utf-8") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert {name: float(row["loss"]) for name, row in rows.items()} == losses
    lines = table(searched.results(), list(variants), DENSE).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:-2]] == list(variants)
    assert f"| {DENSE} | {losses[DENSE]:.4f} |" in lines[2]
    searched.draw(made.folder / "search.png")
    whole = Image.open(made.folder / "search.png")
    assert whole.width == 1280
    (searched.folder / "windows-3.png").unlink()  # as if the result had been made elsewhere
    searched.draw(made.folder / "fewer.png")
    assert 0 < Image.open(made.folder / "fewer.png").height < whole.height


def test_the_search_ends_when_its_time_is_up(search, variants, made, monkeypatch, tmp_path):
    monkeypatch.setattr(made, "is_up", lambda: True)
    searched = search({"never": variants["windows"]})
    assert not searched.run() and not list(searched.folder.glob("never*"))


def test_a_scaled_start_is_full_attention_with_scaled_positions_and_then_the_variant(search, variants):
    from training.miniature.search_variants import Variant

    searched = search(variants)
    x, text = seeded(1, 16, 5, 6, 18), 0.1 * seeded(1, 512, 4096)
    staged, windows, scaled = (
        searched.velocity(variant) for variant in (variants["scaled first"], variants["windows"], Variant(rope=0.5))
    )
    with torch.no_grad():
        assert torch.equal(staged(x, T_NOISE, text), scaled(x, T_NOISE, text))
        assert torch.equal(staged(x, T_END, text), windows(x, T_END, text))
        assert relative_error(windows(x, T_NOISE, text), scaled(x, T_NOISE, text)) > 1e-3


def test_the_second_pass_keeps_what_the_first_painted(search, variants):
    from training.miniature.sampling import TwoPass

    searched = search(variants)
    sampler = searched.scores.sampler(searched.velocity(variants["windows"]))
    small = seeded(1, 16, 5, 4, 4)
    little, much = (TwoPass(lambda numbers: small, sampler, denoise)([7]) for denoise in (0.0, 1.0))
    assert little.shape == much.shape == (1, 16, 5, 6, 18)
    assert torch.equal(much, sampler([7]))  # from pure noise
    enlarged = torch.nn.functional.interpolate(small[0].movedim(0, 1), (6, 18), mode="bicubic").movedim(0, 1)
    assert torch.equal(little[0], enlarged)


def test_every_offered_variant_is_accepted(search):
    from training.miniature.search_variants import VARIANTS

    searched = search(VARIANTS)
    assert all(0 < min(searched.borders(variant)) for variant in VARIANTS.values() if variant.local)


def test_start_images_need_the_image_to_video_model(search, variants, made, tmp_path):
    import copy

    empty = copy.copy(made)
    empty.folder = tmp_path
    with pytest.raises(Trouble, match="part i2v is needed, .* is missing. Make it with .* --parts i2v"):
        type(search(variants))(empty, search.args[1], variants, start_images=True)


def test_the_nodes_defaults_are_those_that_the_search_chose(monkeypatch):
    """For the miniature, as for any Wan model, by the size of its training frames."""
    from training.miniature.make import Miniature
    from training.miniature.search_variants import DEFAULTS, VARIANTS
    from ultragen_core.grid import TokenGrid
    from ultragen_core.rules.choice import Settings, choose_rule
    from ultragen_core.wan import WanShape

    recipe, chosen = Miniature(), VARIANTS[DEFAULTS]
    low, high = (TokenGrid(5, size.height // 16, size.width // 16) for size in (recipe.low, recipe.high))
    monkeypatch.setattr(WanShape, "base_tokens", low.h * low.w)
    model = WanShape(recipe.blocks, recipe.channels, recipe.channels // 128, recipe.ffn_channels)
    default, wanted = (
        choose_rule(model, Settings(*configs, rule="ultragen")) for configs in ((), (chosen.local, chosen.global_))
    )
    assert default.blocks == wanted.blocks == list(range(recipe.blocks))
    assert [default.spec(block, high) for block in (0, 1)] == [wanted.spec(block, high) for block in (0, 1)]
    assert default.spec(0, high).global_ is None
    gates, wanted_gates = (rule.gate_sources.by_block for rule in (default, wanted))
    assert all(gates[block][0] == wanted_gates[block][0] for block in default.blocks)
