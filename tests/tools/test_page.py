"""The benchmark page is what its command makes of the measured rows, and its floors are counted right."""

from __future__ import annotations

import csv
import re
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tools.bench import floors, measured, model, page, plot, tables
from tools.bench.attention import GRIDS
from tools.bench.evaluation import Row
from tools.bench.floors import Ceilings, ConvolutionFloor, decode_floor
from tools.bench.measured import evaluation_flops, floor_of_decode, floor_of_evaluation, floors_of_layers, rows
from ultragen_core.plan.flops import FLOPs
from ultragen_core.plan.speed import EvaluationTime, Speed
from ultragen_core.sizes import VideoSize

TIMES = ("evaluations", "sampling", "small_cards", "layers", "decodes", "decodes_gpus", "gpus", "others")
LOW_PRECISION = "int8", "int8_scores", "fp8", "fp8_drift", "fp8_products", "fp8_scores", "fp8_windows"


def test_pages_and_plots_are_up_to_date():
    old = [str(path.relative_to(page.ROOT)) for path, text in page.files() if path.read_text(encoding="utf-8") != text]
    assert not old, "Run python3 -m tools.bench page."


def test_every_row_names_its_card_and_date():
    files = [path.stem for path in floors.DATA.glob("*.csv")]
    scores = "search", "search_i2v", "ablation_t3"
    assert {*TIMES, *LOW_PRECISION, *scores, "kernels", "ceilings", "errors"} == set(files)
    for name in files:
        for one in rows(name):
            assert one["card"] in ("H100", "H200") and re.fullmatch(r"2026-11-\d\d", one["recorded"]), (name, one)
            assert None not in one and None not in one.values(), (name, one)


def test_no_time_is_below_its_floor():
    for one in (*rows("evaluations"), *rows("fp8")):
        assert floor_of_evaluation(one["model"], one["size"], one["method"]) < float(one["seconds"]), one
    for one in rows("layers"):
        for floor, ms in zip(
            floors_of_layers(one["size"], one["method"]), (one["even_ms"], one["odd_ms"]), strict=True
        ):
            assert one["method"] == "peaks" or 1000 * floor < float(ms), one
    for one in rows("decodes"):
        assert floor_of_decode(one["video"]) < float(one["seconds"]), one
    for one in rows("decodes_gpus"):
        assert floor_of_decode(one["video"]) / int(one["gpus"]) < float(one["seconds"]), one


def test_a_changed_row_changes_the_page(tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(floors.DATA, data)
    monkeypatch.setattr(measured, "DATA", data)
    for path in page.PAGES:
        assert page.with_tables(path.read_text(encoding="utf-8")) == path.read_text(encoding="utf-8")
    for name, before in ("evaluations", ",ours,3.470,"), ("fp8", ",ours,3.391,"):
        file = data / f"{name}.csv"
        file.write_text(file.read_text().replace(before, ",ours,3.170,"))
    for path in page.PAGES:
        assert "**3.2" in page.with_tables(path.read_text(encoding="utf-8"))
    assert "3.2 s, floor 3.0 s (95%)" in plot.floors()


def test_rows_that_contradict_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "DATA", tmp_path)
    (tmp_path / "sampling.csv").write_text("method,seconds\nours,1\nours,2\n")
    with pytest.raises(ValueError, match=r"sampling.csv has 2 rows for \{'method': 'ours'\}"):
        measured.row("sampling", method="ours")
    assert measured.row("sampling", method="t3") is None


def test_text_around_tables_stays_and_unknown_tables_are_refused():
    mark = "<!-- {}: written by python3 -m tools.bench page -->\n"
    text = f"before\n{mark.format('kernels')}old\n<!-- end -->\nafter\n"
    made = page.with_tables(text)
    assert made.startswith("before\n<!-- kernels") and made.endswith("|\n\n<!-- end -->\nafter\n") and "old" not in made
    assert page.with_tables(made) == made
    with pytest.raises(KeyError):
        page.with_tables(text.replace("kernels", "kernel"))


def test_plots_have_every_point():
    found = [one for one in rows("evaluations") if (one["model"], one["card"]) == ("1.3b", measured.CARD)]
    found = [one for one in found if one["method"] in plot.METHODS]
    root = ElementTree.fromstring(plot.evaluations())
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    hollow = [one for one in circles if one.get("fill") == "white"]
    assert len(circles) == len(found) and len(hollow) == sum(one["extrapolated"] == "True" for one in found) > 0
    heights = {one.get("cy") for one in circles}
    assert all(plot.TOP < float(height) < plot.HEIGHT - plot.BOTTOM for height in heights)


def test_the_exponent_is_the_slope():
    assert plot.exponent_of([(10, 3.0), (20, 12.0), (40, 48.0)]) == pytest.approx(2)


def test_a_floor_is_the_slower_of_computing_and_copying():
    rates = Ceilings(attention=10.0, products=5.0, copies=2.0)
    assert rates.floor(FLOPs(20.0, 15.0), 1.0) == 5.0
    assert rates.floor(FLOPs(20.0, 15.0), 12.0) == 6.0
    assert floors.ceilings() == Ceilings(575e12, 752e12, 3e12)
    assert floors.ceilings("fp8", "fp8") == Ceilings(861e12, 1365e12, 3e12)
    slower = [floor_of_evaluation("1.3b", "1080P x 81", method) for method in ("ours", "fp8", "fp8 products")]
    assert slower == sorted(slower, reverse=True) and len(set(slower)) == 3


def test_convolutions_are_counted(monkeypatch):
    x, weight = torch.zeros(1, 4, 3, 8, 8, device="meta"), torch.zeros(6, 4, 3, 3, 3, device="meta")
    for rates, wanted in (
        (Ceilings(1.0, 1.0, float("inf")), 2 * (6 * 1 * 6 * 6) * (4 * 27)),
        (Ceilings(1.0, float("inf"), 1.0), 2 * (4 * 3 * 64 + 6 * 36)),
    ):
        monkeypatch.setattr(floors, "ceilings", lambda rates=rates: rates)
        with ConvolutionFloor() as floor:
            torch.nn.functional.conv3d(x, weight)
        assert floor.seconds == wanted


@torch.no_grad()
def test_a_decodes_flops_are_comfyuis_own(monkeypatch):
    """Counted by PyTorch, attention included."""
    import comfy.ldm.wan.vae

    def attention(q, k, v):
        q, k, v = (x.flatten(2) for x in (q, k, v))
        return (v @ (q.transpose(1, 2) @ k).transpose(1, 2)).unflatten(2, (6, 8))

    monkeypatch.setattr(comfy.ldm.wan.vae, "vae_attention", lambda: attention)  # its own asks for free memory
    with torch.device("meta"):
        vae = comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True])
        with FlopCounterMode(display=False) as counter:
            vae.decode(torch.zeros(1, 16, 4, 6, 8))
    monkeypatch.setattr(floors, "ceilings", lambda: Ceilings(1.0, 1.0, float("inf")))
    assert decode_floor(64, 48, 13) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_two_evaluations_predict_the_others():
    """What docs/benchmarks.md says of the estimates in UltraGen Plan."""
    found = [one for one in rows("evaluations") if one["method"] in ("ours", "t3") and one["card"] == measured.CARD]

    def flops(one) -> FLOPs:
        return evaluation_flops(one["model"], one["size"], one["method"])

    measured_ones = [
        EvaluationTime(VideoSize(1, 1, 1), flops(one), float(one["seconds"]))
        for one in found
        if (one["model"], one["size"], one["method"]) in {("1.3b", "1080P x 81", "ours"), ("1.3b", "4K x 81", "t3")}
    ]
    speed = Speed("2026-11-24", tuple(measured_ones), ())
    ratios = [speed.evaluation(flops(one)) / float(one["seconds"]) for one in found]
    assert len(measured_ones) == 2 and len(ratios) == 13 and all(0.92 < ratio < 1.08 for ratio in ratios), ratios


def test_bench_model_writes_rows_for_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    made = Row("1080P x 81", GRIDS["1080P x 81"].tokens, "ours", 3.4, 10.2, False, 110.0)
    model.write_csv(tmp_path / "rows.csv", "1.3b", [made])
    with (tmp_path / "rows.csv").open() as written, (floors.DATA / "evaluations.csv").open() as kept:
        (row,), columns = list(csv.DictReader(written)), csv.DictReader(kept).fieldnames
    assert [*row, "note"] == columns and (row["seconds"], row["host_ms"], row["card"]) == ("3.4", "110.0", "H100")


def test_every_table_is_on_a_page():
    pages = "".join(path.read_text(encoding="utf-8") for path in page.PAGES)
    assert {match[2] for match in page.BLOCK.finditer(pages)} == set(tables.TABLES)
