"""The `compare` command: the part of the template that has trained miniatures, and its picture."""

from __future__ import annotations

from PIL import Image

from tools import compare, workflow


def test_everything_but_seedvr2_and_the_comparison_runs(server):
    graph = workflow.to_api(compare.TEMPLATE, server.get("/object_info"))
    part = workflow.ancestors(graph, compare.saves(graph))
    left_out = {node["class_type"] for key, node in graph.items() if key not in part}
    assert {"UltraGenMetrics", "KSampler", "SeedVR2Preprocess", "SaveVideo"} <= left_out
    assert sum(node["class_type"] == "SamplerCustomAdvanced" for node in part.values()) == 4  # the small video too
    linked = [value[0] for node in part.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert set(linked) <= part.keys()
    loaders = [node["inputs"]["unet_name"] for node in part.values() if node["class_type"] == "UNETLoader"]
    assert [f"models/diffusion_models/{name}" for name in loaders] == [compare.DENSE_FILE]


def test_pictures_are_side_by_side_above_their_names(tmp_path):
    colors = ("red", "green", "blue")
    compare.draw([Image.new("RGB", (64, 32), color) for color in colors], tmp_path / "whole.png")
    whole = Image.open(tmp_path / "whole.png")
    assert whole.size == (3 * 64, 32 + compare.BAND)
    for index, color in enumerate(colors):
        assert (
            whole.crop((64 * index, 0, 64 * (index + 1), 32)).getcolors()
            == Image.new("RGB", (64, 32), color).getcolors()
        )
