"""`python3 -m tools.bench gpus` compares what it names, here with names of the CPU for GPUs."""

from __future__ import annotations

import argparse
import csv

import pytest
import torch
from helpers.signatures import needs

from tools.bench import gpus, methods
from tools.bench.attention import GRIDS
from tools.bench.floors import DATA
from tools.bench.gpu_rows import RowFile
from ultragen_core.attention.split.rectangles import rectangles
from ultragen_core.grid import TokenGrid
from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.evaluation import Part


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    gpus.add_parser(parser.add_subparsers())
    return parser.parse_args(["gpus", *given])


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
def test_runs_on_one_and_on_several_gpus_are_compared(tiny, cpus, card, tmp_path, monkeypatch, capsys):
    cpus(2)
    monkeypatch.setattr(methods, "PUBLISHED_DENSE", frozenset({0, 3}))
    monkeypatch.setitem(GRIDS, "tiny", TokenGrid(2, 8, 12))
    file = tmp_path / "rows.csv"
    chosen = options("--gpus", "1", "2", "--sample", "2", "--csv", str(file))
    gpus.compare(tiny, "ours", "tiny", 1.0, chosen, RowFile(chosen))
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith("tiny") and "1 GPUs" in one and "100.0%" in one and "difference 0.0e+00  steps" in one
    assert "2 GPUs" in two and float(two.partition("difference ")[2].split()[0]) < 1e-5
    for line, count in ((one, 1), (two, 2)):
        hosts = [float(each) for each in line.partition("host ")[2].partition(" s")[0].split("/")]
        assert len(hosts) == count and all(hosts)
    written = list(csv.DictReader(file.open(encoding="utf-8")))
    for row, line, count in zip(written, (one, two), (1, 2), strict=True):
        assert (row["gpus"], row["method"], row["cfg"], row["card"]) == (str(count), "ours", "1", "H200")
        for shown in (f"{row['seconds']} s a step", f"host {row['host_s']} s", f"difference {row['difference']}"):
            assert shown in line
        assert line.partition("steps ")[2].startswith(f"{float(row['first_s']):.2f}/")
    assert written[0]["run"] == written[1]["run"]


def test_rows_are_added_to_a_file_with_the_pages_columns(card, tmp_path):
    file, kept = tmp_path / "gpus.csv", (DATA / "gpus.csv").read_text(encoding="utf-8")
    file.write_text(kept, encoding="utf-8")
    RowFile(options("--csv", str(file), "--native", "--split", "video", "--layers", "6")).add(size="x", seconds=1.0)
    added = list(csv.DictReader(file.open(encoding="utf-8")))[-1]
    assert file.read_text(encoding="utf-8").startswith(kept)
    assert (added["size"], added["seconds"], added["allocator"], added["note"]) == ("x", "1.0", "native", "")
    assert added["options"] == "--split video --layers 6"
    file.write_text("size,seconds\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"gpus.csv has the columns size,seconds, not run,size.*Name another file."):
        RowFile(options("--csv", str(file)))


def test_without_a_file_no_row_is_written(card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RowFile(options()).add(size="x")
    assert not list(tmp_path.iterdir())


def test_each_member_is_measured_alone_in_its_own_part(tiny, monkeypatch, capsys):
    monkeypatch.setattr(methods, "PUBLISHED_DENSE", frozenset({0, 3}))
    monkeypatch.setitem(GRIDS, "tiny", TokenGrid(2, 8, 24))
    parts, compute = [], Part.compute
    monkeypatch.setattr(Part, "compute", lambda part: parts.append(part.rectangle) or compute(part))
    gpus.alone(tiny, "ours", "tiny", options("--alone", "2", "--profile"))
    lines = capsys.readouterr().out.splitlines()
    assert "function calls" in lines[0] and any("linear}" in line for line in lines)
    assert [line.partition(" alone")[0].split()[-3:] for line in lines[-2:]] == [["0", "of", "2"], ["1", "of", "2"]]
    assert set(parts[:4]) == {rectangles(TokenGrid(2, 8, 24), 2)[0]} and len(set(parts)) == 2
