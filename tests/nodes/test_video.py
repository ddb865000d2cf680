"""UltraGen Save Video and UltraGen Load Latent, called as ComfyUI calls them."""

from __future__ import annotations

import json
import os
import re
import sys

import av
import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import io
from helpers.save_run import files, folders_in, narrow_vae, rgb
from helpers.support import seeded

from ultragen_core.host.save.save import SavedVideos

SAVE = {
    "fps": 15.0,
    "codec": "H.264 8-bit",
    "crf": 17,
    "filename_prefix": "video/clip",
    "crop": "keep",
    "keep_latent": "keep",
    "tile": 0,
}


@pytest.fixture
def base(tmp_path, monkeypatch):
    folders = folders_in(tmp_path)
    for name in ("output", "temp", "input"):
        monkeypatch.setattr(folder_paths, f"{name}_directory", getattr(folders, name))
    return tmp_path


@pytest.fixture
def nodes(pack):
    return {node.__name__: node for node in pack.nodes.NODES}


def run(node, **inputs):
    return run_with({"workflow": {"nodes": []}}, node, **inputs)


def run_with(extra_pnginfo, node, **inputs):
    node.VALIDATE_CLASS()
    called = node.PREPARE_CLASS_CLONE(None)
    called.hidden = io.HiddenHolder.from_dict({io.Hidden.prompt: {"7": {}}, io.Hidden.extra_pnginfo: extra_pnginfo})
    with torch.inference_mode():
        return called.execute(**inputs)


def test_the_number_of_gpus_is_passed_on(pack, base, nodes, monkeypatch):
    asked, module = [], sys.modules[f"{pack.__name__}.nodes.video"]
    monkeypatch.setattr(
        module, "save_video", lambda vae, latent, settings, *more: asked.append(settings) or SavedVideos()
    )
    for given in ({}, {"gpus": 4}):
        run(nodes["UltraGenSaveVideo"], samples={"samples": seeded(1, 16, 1, 4, 4)}, vae=narrow_vae(), **SAVE, **given)
    assert [settings.gpus for settings in asked] == [1, 4] and asked[0].prefix == SAVE["filename_prefix"]


def test_save_then_load_then_save_again(base, nodes):
    samples = seeded(1, 16, 2, 6, 8)
    vae = narrow_vae()
    saved = run(nodes["UltraGenSaveVideo"], samples={"samples": samples}, vae=vae, **SAVE)
    assert files(base / "output") == ["latents/video/clip_00001_.latent", "video/clip_00001_.mp4"]
    (video,) = saved.args[0]
    assert video.get_dimensions() == (64, 48)
    assert video.get_components().images.shape == (5, 48, 64, 3)
    assert saved.ui["images"] == [{"filename": "clip_00001_.mp4", "subfolder": "video", "type": "output"}]
    assert saved.ui["animated"] == (True,)
    assert "clip_00001_.mp4" in saved.ui["text"][0] and "clip_00001_.latent" in saved.ui["text"][0]

    load = nodes["UltraGenLoadLatent"]
    (choice,) = load.choices()
    assert choice == "latents/video/clip_00001_.latent [output]"
    assert load.validate_inputs(latent=choice) is True
    latent = run(load, latent=choice).args[0]
    assert torch.equal(latent["samples"], samples)
    again = SAVE | {"codec": "FFV1 lossless RGB", "keep_latent": "off"}
    saved = run(nodes["UltraGenSaveVideo"], samples=latent, vae=vae, **again)
    # Core's own reader of VIDEO sees the lossless frames too; its conversion to float is up to 1.2 levels off.
    images = saved.args[0][0].get_components().images
    assert np.abs(images.numpy() * 255 - rgb(base / "output/video/clip_00002_.mkv")).max() < 1.5
    assert saved.ui["images"][0]["type"] == "temp"
    assert len(files(base / "output/latents")) == 1


def test_prompt_and_workflow_are_stored_in_the_video(base, nodes):
    run(nodes["UltraGenSaveVideo"], samples={"samples": seeded(1, 16, 1, 6, 8)}, vae=narrow_vae(), **SAVE)
    with av.open(str(base / "output/video/clip_00001_.mp4")) as container:
        found = {key: json.loads(container.metadata[key]) for key in ("prompt", "workflow")}
    assert found == {"prompt": {"7": {}}, "workflow": {"nodes": []}}


@pytest.mark.parametrize("extra_pnginfo", [None, "a workflow", [{"workflow": {}}]])
def test_metadata_of_another_shape_costs_no_video(base, nodes, extra_pnginfo):
    """ComfyUI passes on unchecked what an API client sends."""
    inputs = {"samples": {"samples": seeded(1, 16, 1, 4, 4)}, "vae": narrow_vae()}
    run_with(extra_pnginfo, nodes["UltraGenSaveVideo"], **inputs, **SAVE)
    with av.open(str(base / "output/video/clip_00001_.mp4")) as container:
        assert json.loads(container.metadata["prompt"]) == {"7": {}}


def test_codec_and_tile_are_checked_when_the_prompt_is_queued(nodes):
    save = nodes["UltraGenSaveVideo"]
    assert save.validate_inputs(codec="H.264 8-bit", tile=0) is True
    assert "must be one of H.264 8-bit, " in save.validate_inputs(codec="VP9", tile=0)
    assert save.validate_inputs(codec="H.264 8-bit", tile=16).startswith("tile must be at least 64 pixels, got 16")


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("/video/x", "inside the output folder"),
        ("../x", "inside the output folder"),
        ("湖" * 80, "shorter name"),
        ("file/x", "cannot be created"),
        ("file/%KSampler.seed%", "cannot be created"),
        ("file\\a%width%/x", "cannot be created"),
    ],
)
def test_a_prefix_is_checked_when_the_prompt_is_queued(base, nodes, prefix, message):
    save = nodes["UltraGenSaveVideo"]
    (base / "output/file").touch()
    answer = save.validate_inputs(codec="H.264 8-bit", tile=0, filename_prefix=prefix)
    assert message in answer and answer.startswith("filename_prefix ")
    for good in ("video/lake/", "%date:yyyy-MM-dd%/%KSampler.seed%", str(base / "output/x"), ""):
        assert save.validate_inputs(codec="H.264 8-bit", tile=0, filename_prefix=good) is True
    assert save.validate_inputs(codec=None, tile=None, filename_prefix=None) is True


def test_a_name_too_long_for_its_disk_is_refused_when_the_prompt_is_queued(base, nodes, monkeypatch):
    """As on Windows, where a path has 259 characters, and on encrypted disks, where a name has 143."""
    deep = base / "output"
    while len(str(deep)) < os.pathconf(base, "PC_PATH_MAX") - 200:
        deep /= "y" * 50
    deep.mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "output_directory", str(deep))
    save = nodes["UltraGenSaveVideo"]
    answer = save.validate_inputs(codec="H.264 8-bit", tile=0, filename_prefix=200 * "y")
    assert answer.startswith("filename_prefix ") and "shorter name" in answer
    assert save.validate_inputs(codec="H.264 8-bit", tile=0, filename_prefix="lake") is True
    assert files(deep) == []


def test_what_a_link_brings_is_refused_with_the_latent_kept(base, nodes):
    for name, value in {"fps": float("nan"), "filename_prefix": "/elsewhere", "codec": "VP9", "crop": "9"}.items():
        before = len(files(base / "output"))
        with pytest.raises(ValueError, match="(?s)got.*The latent is kept in .*Load Latent loads it again"):
            run(
                nodes["UltraGenSaveVideo"],
                samples={"samples": seeded(1, 16, 1, 6, 8)},
                vae=None,
                **SAVE | {name: value},
            )
        assert len(files(base / "output")) == before + 1


def test_programs_find_every_file_in_the_history(base, nodes):
    choices = SAVE | {"codec": "H.265 8-bit", "side_file": "json", "details": "a lake"}
    saved = run(nodes["UltraGenSaveVideo"], samples={"samples": seeded(1, 16, 1, 6, 8)}, vae=narrow_vae(), **choices)
    assert [item["type"] for item in saved.ui["images"]] == ["temp"]
    assert saved.ui["ultragen_files"] == [
        {"filename": "clip_00001_.mp4", "subfolder": "video", "type": "output"},
        {"filename": "clip_00001_.json", "subfolder": "video", "type": "output"},
    ]


def test_both_nodes_report_a_failed_sampling(base, nodes):
    broken = {"samples": torch.full((1, 16, 1, 6, 8), torch.nan)}
    saved = run(nodes["UltraGenSaveVideo"], samples=broken, vae=narrow_vae(), **SAVE)
    assert "768 of the latent's 768 values are NaN" in saved.ui["text"][0]
    load = nodes["UltraGenLoadLatent"]
    loaded = run(load, latent=load.choices()[0])
    assert loaded.args[0]["samples"].isnan().all()
    assert "768 of 768 values are NaN" in loaded.ui.as_dict()["text"][0]


def test_the_newest_latent_is_the_first_choice(base, nodes):
    times = {"input/a.latent": 1000, "output/latents/b.latent": 3000, "output/latents/x/c.latent": 2000}
    for name, time in times.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()
        os.utime(base / name, (time, time))
    load = nodes["UltraGenLoadLatent"]
    assert load.choices() == ["latents/b.latent [output]", "latents/x/c.latent [output]", "a.latent"]
    before = load.fingerprint_inputs(latent="a.latent")
    os.utime(base / "input/a.latent", (4000, 4000))
    assert load.fingerprint_inputs(latent="a.latent") != before


def test_a_folder_that_cannot_be_read_has_no_latents(base, nodes, unreadable, monkeypatch):
    """ComfyUI could not load the pack while the disk of its output folder was not connected."""
    (base / "input/a.latent").touch()
    monkeypatch.setattr(folder_paths, "output_directory", unreadable)
    assert nodes["UltraGenLoadLatent"].choices() == ["a.latent"]
    monkeypatch.setattr(folder_paths, "input_directory", unreadable)
    assert nodes["UltraGenLoadLatent"].choices() == []


def test_a_name_that_comes_through_a_link_is_not_known_yet(nodes):
    load = nodes["UltraGenLoadLatent"]
    assert load.validate_inputs(latent=None) is True
    changed = load.fingerprint_inputs(latent=None)
    assert changed != changed, "runs each time"


def test_placeholders_of_the_tooltip_are_filled_in(base, nodes):
    inputs = {item.id: item for item in nodes["UltraGenSaveVideo"].GET_SCHEMA().inputs}
    tooltip = inputs["filename_prefix"].tooltip
    placeholders = [part for part in ("%year%", "%month%", "%day%", "%width%", "%height%") if part in tooltip]
    assert len(placeholders) == 5 and "%date:yyyy-MM-dd%" in tooltip and "%NodeTitle.widget%" in tooltip
    assert tooltip.count("%") == 14
    prefix = {"filename_prefix": "video/" + "-".join(placeholders)}
    run(nodes["UltraGenSaveVideo"], samples={"samples": seeded(1, 16, 1, 6, 8)}, vae=narrow_vae(), **SAVE | prefix)
    (name,) = files(base / "output/video")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-64-48_00001_\.mp4", name)


@pytest.mark.parametrize(
    "name",
    ["../s.latent", "../s.latent [output]", "/etc/s.latent", "//machine/share/s.latent", "a/../../s.latent"]
    + ["gone.latent", "a.txt", "a\0.latent", ""],
)
def test_nothing_outside_the_folders_is_read(base, nodes, looked_up, name):
    (base / "s.latent").touch()
    (base / "input/a.txt").touch()
    assert "hold no latent file" in nodes["UltraGenLoadLatent"].validate_inputs(latent=name)
    with pytest.raises(ValueError, match="hold no latent file"):
        run(nodes["UltraGenLoadLatent"], latent=name)
    assert not [path for path in looked_up if "s.latent" in path]


def test_schemas_are_whole(nodes):
    for name in ("UltraGenSaveVideo", "UltraGenLoadLatent"):
        schema = nodes[name].GET_SCHEMA()
        assert schema.node_id == name and schema.category == "UltraGen"
        assert all(item.tooltip for item in schema.inputs)
        nodes[name].GET_NODE_INFO_V1()
