"""The tables of docs/ablation.md whose results are kept, and those of the help pages, are what was measured."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "ablation.md"


def page_rows(heading: str, page: Path = PAGE) -> dict[str, list[str]]:
    """The rows of the table under a line that begins with `heading`, by their first cells."""
    lines = page.read_text(encoding="utf-8").split(f"\n{heading}", 1)[1].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    return {name: cells for name, *cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in table)}


def kept_results(name: str) -> list[dict]:
    """The rows of docs/data/`name`.csv, with numbers."""
    with (PAGE.parent / "data" / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts, flags = {"variant", "card", "recorded"}, {"True": True, "False": False}
    return [
        {key: value if key in texts else flags[value] if value in flags else float(value) for key, value in row.items()}
        for row in rows
    ]


def test_the_page_shows_the_kept_results_of_the_ablations_second_run():
    from training.miniature.study import FULL, ON_DEMAND, VARIANTS
    from training.miniature.table import table

    printed = table(kept_results("ablation_t3"), [*VARIANTS, *ON_DEMAND], FULL)
    assert printed.count("\n| t3") == 3 and f"\n\n{printed}\n\n" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "heading"), [("search", "## Without trained"), ("search_i2v", "**Image-to-video**")])
def test_the_page_shows_the_kept_results(name, heading):
    """Every row is one of the command's table, without columns that the page leaves out."""
    from training.miniature.search_variants import DENSE, VARIANTS
    from training.miniature.table import table

    results = kept_results(name)
    assert {row["variant"] for row in results} <= VARIANTS.keys()
    assert all(sum(row["variant"] == one["variant"] for one in results) == 3 for row in results)
    printed = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(results, VARIANTS, DENSE).split("\n")
    ]
    headings, *_ = printed
    shown = page_rows(heading)
    kept = [headings.index(cell) for cell in shown.pop("")]
    del shown["---"]
    by_name = {row[0]: row for row in printed}
    assert len(shown) > 10
    for variant, cells in shown.items():
        assert cells == [by_name[variant][index] for index in kept], variant


def test_the_page_shows_what_settings_cost():
    from tools.bench.measured import evaluation_flops, row
    from training.miniature.search_variants import DEFAULTS, VARIANTS
    from ultragen_core.grid import TokenGrid
    from ultragen_core.host.plan import flops_of
    from ultragen_core.plan.speed import EvaluationTime, Speed
    from ultragen_core.rules.choice import Settings, choose_rule
    from ultragen_core.sizes import VideoSize
    from ultragen_core.wan import WAN_1_3B, WanShape

    large, small = TokenGrid(21, 68, 120), TokenGrid(21, 30, 52)
    models = WAN_1_3B, WanShape(blocks=40, channels=5120, heads=40, ffn_channels=13824)
    evaluations = [
        EvaluationTime(VideoSize(1, 1, 1), evaluation_flops("1.3b", size, method), float(found["seconds"]))
        for size, method in (("1080P x 81", "ours"), ("4K x 81", "t3"))
        for found in [row("evaluations", card="H200", model="1.3b", size=size, method=method)]
    ]
    speed = Speed("2026-11-24", tuple(evaluations), ())

    def evaluation(name, model, grid=large):
        """FLOPs, as UltraGen Apply would set it: with dense outer blocks."""
        variant = VARIANTS[name]
        if variant.local is None:
            return flops_of((), grid, model)[0]
        global_ = dataclasses.replace(variant.global_, dense_blocks=None)
        rule = choose_rule(model, Settings(variant.local, global_, rule="ultragen"))
        return flops_of(rule.groups(grid), grid, model)[0]

    shown = page_rows("**What it costs**")
    del shown[""], shown["---"]
    dense = shown.pop("dense, scaled or not")
    assert dense[:2] == ["1", "1"] and len(shown) == 5
    measured = row("evaluations", card="H200", model="1.3b", size="1080P x 81", method="cudnn")
    assert dense[2] == f"{float(measured['seconds']):.1f} (measured)"
    for name, (*shares, seconds) in shown.items():
        run = name.startswith(("scaled first", "two passes"))  # of more than one evaluation's cost
        variant = DEFAULTS if run else name
        for share, model in zip(shares, models, strict=True):
            whole = evaluation("dense", model).total
            part = evaluation(variant, model).total / whole
            if name.startswith("scaled first"):
                part = 0.3 + 0.7 * part
            elif name.startswith("two passes"):
                part = 0.4 * part + evaluation("dense", model, small).total / whole
            assert f"{part:.2f}" == share, name
        assert seconds == ("" if run else f"{speed.evaluation(evaluation(variant, models[0])):.1f}")
    shares = []
    for model in models:
        first = evaluation("dense", model, TokenGrid(21, 34, 60)).total
        both = 0.4 * evaluation(DEFAULTS, model).total + first
        shares.append(f"{both / evaluation('dense', model).total:.2f}")
    sentence = "first pass at 960x544 it costs {} of full attention's FLOPs ({} with the 14B)".format(*shares)
    assert sentence in " ".join(PAGE.read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    "page", sorted((ROOT / "web" / "docs" / "UltraGenApply").glob("*.md")), ids=lambda page: page.stem
)
def test_the_help_page_shows_the_same(page):
    from training.miniature.scenes import CHECKED
    from training.miniature.search_variants import DEFAULTS, DENSE
    from ultragen_core.metrics.scores import HD_FVD

    def mean(name, variant, *measures):
        found = [row for row in kept_results(name) if row["variant"] == variant]
        return statistics.mean(statistics.mean(row[measure] for measure in measures) for row in found)

    heading, _, *rows = page_rows("## Without" if page.stem == "en" else "## 没有训练权重时", page).values()
    costs = page_rows("**What it costs**")
    two_passes = "two passes, 40%, small"
    variants = DENSE, DEFAULTS, two_passes, "dense scaled 0.4"
    cost = {DEFAULTS: costs[DEFAULTS][0], two_passes: costs[f"{two_passes}; the first at 832x480"][0]}
    assert len(heading) == 4
    for variant, cells in zip(variants, rows, strict=True):
        expected = (
            f"{mean('search', variant, *CHECKED):.0%}",
            f"{mean('search', variant, HD_FVD):.3f}",
            f"{mean('search_i2v', variant, HD_FVD):.4f}",
            cost.get(variant, "1"),
        )
        assert tuple(cells) == expected, variant
