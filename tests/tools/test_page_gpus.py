"""The benchmark page on one video over several GPUs: efficiencies within a run, extrapolations, what is equal."""

from __future__ import annotations

import csv
from collections import Counter

import pytest

from tools.bench import gpu_tables, measured
from tools.bench.gpu_rows import COLUMNS
from tools.bench.measured import floor_of_evaluation, rows

ROW = {
    "run": "1", "size": "1080P x 81", "method": "ours", "cfg": "1", "gpus": "1", "seconds": "3.2", "first_s": "9",
    "exchange": "0.000", "received_gib": "0.00", "host_s": "1.00", "peak_gib": "8.4", "difference": "0.0e+00",
    "allocator": "native", "options": "", "card": "H200", "recorded": "2026-11-27", "note": "",
}  # fmt: skip
TWO = ROW | {"gpus": "2", "seconds": "2.0", "exchange": "0.125", "host_s": "0.40/0.60", "peak_gib": "7.4/6.9"}
TWO |= {"difference": "4.1e-03"}


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    """`page_of(rows)`: the cells of the table of these rows, without its head."""
    monkeypatch.setattr(measured, "DATA", tmp_path)

    def cells(given: list[dict[str, str]], table=gpu_tables.gpus) -> list[list[str]]:
        with (tmp_path / "gpus.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(given)
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in table().splitlines()[2:]]

    return cells


def test_exchange_is_that_of_the_gpu_with_most_and_a_difference_may_be_unknown(page_of):
    *_, two = page_of([ROW, TWO | {"exchange": "0.020/0.125", "difference": ""}])
    assert two[5] == "12.5%" and two[-1] == "not measured"


def test_efficiency_is_that_of_a_runs_own_gpu(page_of):
    other = {"run": "2"}
    heading, one, two, _, slower = page_of([ROW, TWO, ROW | other | {"seconds": "3.6"}, TWO | other])
    assert heading[0] == "*1920x1088, 81 frames, H200, native, 2026-11-27*"
    assert one == ["ultragen", "1", "1", "3.20", "", "", "", "1.00", "8.4", ""]
    assert two == ["ultragen", "1", "2", "2.00", "80%", "12.5%", "0.00", "0.60", "7.4", "4.1e-3"]
    assert slower[4] == "90%"


@pytest.mark.parametrize("column", ["run", "size", "method", "cfg", "allocator", "options", "card", "recorded"])
def test_a_row_without_its_runs_one_gpu_is_refused(page_of, column):
    with pytest.raises(ValueError, match=r"gpus.csv has no row with 1 GPU for \{'run': "):
        page_of([ROW, TWO | {column: "4K x 81" if column == "size" else "7"}])


def test_rows_of_other_code_come_last_under_their_note(page_of):
    older = {"run": "0", "note": "before a", "options": "--layers 6"}
    old = {"run": "2", "note": "before b"}
    cells = page_of([ROW | older, TWO | older, ROW, TWO, ROW | old, TWO | old])
    assert [line[0] for line in cells[::3]] == [
        "*1920x1088, 81 frames, H200, native, 2026-11-27*",
        "*1920x1088, 81 frames, H200, native, 2026-11-27; before b*",
        "*1920x1088, 81 frames, H200, native, 2026-11-27, `--layers 6`; before a*",
    ]


def test_gpus_are_shown_with_their_prompts(page_of):
    two, four = TWO | {"cfg": "5", "exchange": "0.000", "difference": "0.0e+00"}, TWO | {"cfg": "5", "gpus": "4"}
    _, _, prompts, shared = page_of([ROW | {"cfg": "5"}, two, four])
    assert prompts[2] == "2 (a prompt each)" and prompts[5:7] + prompts[9:] == ["", "", "equal"]
    assert shared[2] == "4 (2 for each prompt)"
    video = {"cfg": "5", "options": "--split video"}
    assert page_of([ROW | video, TWO | video])[2][2] == "2"


def test_whole_videos_are_extrapolated_from_the_first_step_and_the_others(page_of):
    sampled = ROW | {"cfg": "5", "seconds": "7", "first_s": "10", "allocator": "cudaMallocAsync"}
    four_k = sampled | {"size": "4K x 81", "method": "t3", "cfg": "1", "seconds": "6", "first_s": "8"}
    fours = {"gpus": "4", "seconds": "2", "first_s": "5"}
    old = [one | {"note": "before", "seconds": "900", "run": "0"} for one in (sampled, sampled | fours)]
    old += [one | {"allocator": "native", "seconds": "900"} for one in (sampled, sampled | fours)]
    cells = page_of([sampled, sampled | fours, four_k, four_k | fours, *old], gpu_tables.gpu_videos)
    assert [line[1:] for line in cells] == [
        [f"{10 + 29 * 7} s", f"{5 + 29 * 2} s (3.4x)"],
        [f"{8 + 49 * 6} s", f"{5 + 49 * 2} s (2.9x)"],
        [f"{2 * (8 + 49 * 6)} s", f"{2 * (5 + 49 * 2)} s (2.9x)"],
    ]
    assert "assumed" in cells[2][0] and "assumed" not in cells[0][0] + cells[1][0]


def test_no_step_is_below_its_floor():
    for one in (each for each in rows("gpus") if not each["options"]):
        evaluations = 1 if one["cfg"] == "1" else 2
        floor = evaluations * floor_of_evaluation("1.3b", one["size"], one["method"]) / int(one["gpus"])
        assert floor < float(one["seconds"]) and gpu_tables.efficiency(one) <= 1.0, one


def test_every_measurement_of_a_code_is_on_the_page_once():
    names = "size", "method", "cfg", "gpus", "allocator", "options", "card", "note"
    found = Counter(tuple(one[name] for name in names) for one in rows("gpus") if one["gpus"] != "1")
    assert max(found.values()) == 1, found


UNEQUAL = (
    "before one GPU fused dense blocks as several do",
    "before maps travelled together",
    "before exchanges became cheaper for the host",
)  # notes of rows in which rectangles with UltraGen's rule had other last bits than one GPU


def test_what_the_page_calls_equal_was_equal():
    """The table "What equals what" of docs/benchmarks.md."""
    equal = {"rectangles": 0, "a prompt each": 0}
    for one in (each for each in rows("gpus") if each["gpus"] != "1" and each["difference"]):
        if one["cfg"] != "1" and one["gpus"] == "2":
            claim = "a prompt each"
        elif one["size"] != "480P x 81" if one["method"] == "t3" else one["note"] not in UNEQUAL:
            claim = "rectangles"
        else:
            assert 0 < float(one["difference"]) < 0.05, one
            continue
        equal[claim] += 1
        assert float(one["difference"]) == 0, one
    assert all(equal.values())
