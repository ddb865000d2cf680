"""UltraGenMetrics as ComfyUI runs it: lists in, three outputs, errors when the prompt is queued."""

from __future__ import annotations

import json
import sys

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from helpers.backbones import seeded_i3d
from helpers.support import seeded

from tools.server import Refused
from ultragen_core.metrics.i3d import I3D
from ultragen_core.metrics.scores import METRICS


@pytest.fixture
def node(pack, tmp_path, monkeypatch):
    for folder in ("classifiers", "clip_vision"):
        (tmp_path / folder).mkdir()
        paths = ([str(tmp_path / folder)], folder_paths.folder_names_and_paths[folder][1])
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, paths)
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    node = sys.modules[f"{pack.__name__}.nodes.metrics"].UltraGenMetrics
    node.VALIDATE_CLASS()
    called = node.PREPARE_CLASS_CLONE(None)
    called.hidden = io.HiddenHolder.from_dict({})
    return called


def switches(*on: str) -> dict[str, list[bool]]:
    return {metric: [metric in on] for metric in METRICS}


def test_hd_fvd_of_a_list_of_videos_with_a_list_of_references(node, tmp_path):
    """Two patches have no distance from themselves in another order; the network's file is found by name."""
    state = seeded_i3d({key: value.shape for key, value in I3D().state_dict().items()})
    torch.save(state, tmp_path / "classifiers" / "rgb_imagenet.pt")
    videos = [seeded(16, 224, 224, 3, seed=seed).sigmoid() for seed in (1, 2)]
    with torch.inference_mode():
        output = node.execute(videos, [""], reference=videos[::-1], **switches("hd_mse", "hd_fvd"))
    found, table, picture = json.loads(output.result[0]), *output.result[1:]
    assert found["hd_fvd_patches"] == [2, 2] and abs(found["hd_fvd"]) < 1e-3
    assert found["hd_mse"] == pytest.approx(sum(video["hd_mse"] for video in found["videos"]) / 2)
    assert f"HD-MSE {found['hd_mse']:>25.2f}" in table and "2 patches against 2" in table
    assert picture.shape[0] == 1 and output.ui["text"] == (table,)
    assert (tmp_path / "temp" / output.ui["images"][0]["filename"]).is_file()


def test_what_is_missing_is_reported_when_the_prompt_is_queued(node):
    assert node.validate_inputs(**switches("hd_mse"), prompt=[""]) is True
    for metric in METRICS[1:]:
        message = node.validate_inputs(**switches("hd_mse", metric), prompt=(None,), reference=(None,))
        assert message.startswith(f"{metric} needs files that are missing")
    assert "Connect reference" in node.validate_inputs(**switches("hd_fvd"), prompt=[""])
    assert "needs a prompt, got an empty one" in node.validate_inputs(**switches("clip_score"), prompt=[""])
    linked = {metric: (None,) for metric in METRICS}
    assert node.validate_inputs(**linked, prompt=(None,)) is True


def test_the_server_takes_images_and_videos_and_refuses_what_cannot_run(server):
    switched = dict.fromkeys(METRICS, False) | {"hd_mse": True, "prompt": ""}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 0x808080}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 15.0}},
        "3": {"class_type": "UltraGenMetrics", "inputs": {"video": ["1", 0], **switched}},
        "4": {"class_type": "UltraGenMetrics", "inputs": {"video": ["2", 0], **switched}},
    }
    reported = server.run(graph)
    for node_id in ("3", "4"):
        assert "1 video: 2 frames of 64x64" in reported[node_id]["text"][0] and reported[node_id]["images"]

    graph["3"]["inputs"] |= {"hd_fvd": True}
    graph["4"]["inputs"] |= {"hd_fvd": True, "reference": ["2", 0]}
    with pytest.raises(Refused) as refused:
        server.run(graph)
    errors = {node_id: found["errors"][0]["details"] for node_id, found in refused.value.error["node_errors"].items()}
    assert "Connect reference" in errors["3"] and "hd_fvd needs files that are missing" in errors["4"]
