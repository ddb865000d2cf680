"""`python3 -m tools.bench gpus` compares what it names, here with names of the CPU for GPUs."""

from __future__ import annotations

from types import SimpleNamespace

from helpers.signatures import needs

from tools.bench import gpus, methods
from tools.bench.attention import GRIDS
from ultragen_core.grid import TokenGrid
from ultragen_core.host.compat import gpu_pool_class


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
def test_runs_on_one_and_on_several_gpus_are_compared(tiny, cpus, monkeypatch, capsys):
    cpus(2)
    monkeypatch.setattr(methods, "PUBLISHED_DENSE", frozenset({0, 3}))
    monkeypatch.setitem(GRIDS, "tiny", TokenGrid(2, 8, 12))
    gpus.compare(tiny, "ours", "tiny", 1.0, SimpleNamespace(model="1.3b", gpus=[1, 2], sample=2, split="auto"))
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith("tiny") and "1 GPUs" in one and "100.0%" in one and "difference 0.0e+00  steps" in one
    assert "2 GPUs" in two and float(two.partition("difference ")[2].split()[0]) < 1e-5
    for line, count in ((one, 1), (two, 2)):
        hosts = [float(each) for each in line.partition("host ")[2].partition(" s")[0].split("/")]
        assert len(hosts) == count and all(hosts)
