"""From a latent of a real, narrow Wan VAE to video files."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import av
import comfy.cli_args
import comfy.model_management
import comfy.utils
import numpy as np
import pytest
import torch
from helpers.save_run import core_levels, files, folders_in, rgb, rounding_ties, settings
from helpers.signatures import needs
from helpers.support import seeded
from safetensors import safe_open

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.save import request
from ultragen_core.host.save.preview import preview_size
from ultragen_core.host.save.request import KEEP_NEVER, KEEP_UNTIL_SAVED
from ultragen_core.host.save.save import save_video
from ultragen_core.host.vae import gpus
from ultragen_core.video.latents import load_latent

PROMPT = {"prompt": {"1": {"class_type": "X"}}, "workflow": {"nodes": []}}
LATENT_SHAPE = (1, 16, 2, 6, 8)


pytestmark = pytest.mark.usefixtures("inference")


def test_lossless_frames_are_those_of_cores_decode(tmp_path, vae):
    samples = seeded(1, 16, 3, 26, 36)
    core = core_levels(vae, samples)
    assert core.std() > 10
    saved = save_video(vae, {"samples": samples}, settings(tile=128), folders_in(tmp_path), {})
    # If every value differed by float32's last bit at 0.5, one in 65,000 would round the other way.
    assert rounding_ties(rgb(saved.videos[0]), core) < core.size / 40_000


@needs(gpu_pool_class() is not None, "a pool of GPU threads")
def test_several_gpus_write_the_same_frames(tmp_path, vae, monkeypatch):
    names = [torch.device("cpu"), torch.device("cpu", 1), torch.device("cpu", 2)]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda *given, **more: names)
    samples, videos, used = seeded(2, 16, 2, 9, 10), [], []
    workers = gpus.Workers
    monkeypatch.setattr(gpus, "Workers", lambda devices: used.append(len(devices)) or workers(devices))
    for count in (1, 3):
        saved = save_video(vae, {"samples": samples}, settings(tile=64, gpus=count), folders_in(tmp_path), {})
        videos.append([rgb(path) for path in saved.videos])
    assert used == [3, 3], "one pool for each video of the batch"
    assert all(np.array_equal(*pair) for pair in zip(*videos, strict=True))


def test_a_batch_is_one_file_each_and_one_latent(tmp_path, vae):
    samples = seeded(3, *LATENT_SHAPE[1:])
    saved = save_video(vae, {"samples": samples}, settings(), folders_in(tmp_path), {})
    assert [path.name for path in saved.videos] == [f"clip_0000{n}_.mkv" for n in (1, 2, 3)]
    for index, path in enumerate(saved.videos):
        rounding_ties(rgb(path), core_levels(vae, samples[index : index + 1]))
    assert torch.equal(load_latent(saved.latent), samples)
    assert files(tmp_path / "output/latents") == ["video/clip_00001_.latent"]


def test_frames_on_disk_give_the_same_file(tmp_path, vae, monkeypatch):
    samples = seeded(*LATENT_SHAPE)
    monkeypatch.setattr(request, "RAM_SHARE", 0)
    saved = save_video(vae, {"samples": samples}, settings(), folders_in(tmp_path), {})
    rounding_ties(rgb(saved.videos[0]), core_levels(vae, samples))
    assert all("preview" in name for name in files(tmp_path / "temp"))


def test_rows_are_cropped_from_the_centre(tmp_path, vae):
    samples = seeded(1, 16, 1, 136, 2)
    saved = save_video(vae, {"samples": samples}, settings(crop="1080 lines"), folders_in(tmp_path), {})
    rounding_ties(rgb(saved.videos[0]), core_levels(vae, samples)[:, 4:1084])


@pytest.mark.parametrize("codec", ["H.264 8-bit", "H.265 10-bit"])
def test_prompt_and_workflow_are_in_video_and_latent(tmp_path, vae, codec):
    saved = save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings(codec), folders_in(tmp_path), PROMPT)
    with av.open(str(saved.videos[0])) as container, safe_open(saved.latent, "pt") as latent:
        for found in (container.metadata, latent.metadata()):
            assert {key: json.loads(found[key]) for key in PROMPT} == PROMPT


def test_what_other_nodes_leave_in_the_prompt_stops_no_save_and_is_json(tmp_path, vae):
    """ComfyUI writes there what a node's IS_CHANGED returns, which may be any object."""
    left = [math.nan, b"digest", np.int64(7), {(1, 2): -math.inf}, torch.zeros(1)]
    prompt = {"1": {"class_type": "X", "inputs": {"cfg": 1.5, "text": "湖"}, "is_changed": left}}
    saved = save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings(), folders_in(tmp_path), {"prompt": prompt})
    with av.open(str(saved.videos[0])) as container, safe_open(saved.latent, "pt") as latent:
        texts = container.metadata["PROMPT"], latent.metadata()["prompt"]
    for text in texts:
        found = json.loads(text, parse_constant=pytest.fail)["1"]
        assert found.pop("is_changed") == [None, "b'digest'", "7", {"(1, 2)": None}, "tensor([0.])"]
        assert found == {"class_type": "X", "inputs": {"cfg": 1.5, "text": "湖"}}


def test_disable_metadata_is_honoured(tmp_path, vae, monkeypatch):
    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", True)
    saved = save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings("H.264 8-bit"), folders_in(tmp_path), PROMPT)
    with av.open(str(saved.videos[0])) as container, safe_open(saved.latent, "pt") as latent:
        assert not {"prompt", "workflow"} & set(container.metadata)
        assert not latent.metadata()


def test_details_are_the_files_comment_and_a_side_file(tmp_path, vae):
    details = json.dumps({"prompt": "a lake, 湖", "seed": 7})
    choices = {"details": details, "side_file": "json"}
    saved = save_video(vae, {"samples": seeded(2, 16, 1, 6, 8)}, settings(**choices), folders_in(tmp_path), {})
    for video, side in zip(saved.videos, saved.side_files, strict=True):
        with av.open(str(video)) as container:
            assert container.metadata["COMMENT"] == details
        facts = json.loads(side.read_text(encoding="utf-8"))
        assert side.with_suffix(".mkv") == video and facts["file"] == video.name
        assert facts["details"] == json.loads(details) and facts["frames"] == 1 and facts["fps"] == 15.0


def test_any_text_can_be_a_comment(tmp_path, vae, monkeypatch):
    choices = {"codec": "H.264 8-bit", "details": "half \ud800, NUL \0, two\nlines"}
    saved = save_video(vae, {"samples": seeded(1, 16, 1, 6, 8)}, settings(**choices), folders_in(tmp_path), {})
    with av.open(str(saved.videos[0])) as container:
        assert container.metadata["comment"] == "half ?, NUL , two\nlines"
    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", True)
    saved = save_video(vae, {"samples": seeded(1, 16, 1, 6, 8)}, settings(**choices), folders_in(tmp_path), {})
    with av.open(str(saved.videos[0])) as container:
        assert "comment" not in container.metadata


@pytest.mark.parametrize(("fps", "exact"), [(15.0, "15"), (23.976, "24000/1001")])
def test_frames_a_second(tmp_path, vae, fps, exact):
    latent = {"samples": seeded(*LATENT_SHAPE)}
    saved = save_video(vae, latent, settings("H.264 8-bit", fps=fps), folders_in(tmp_path), {})
    with av.open(str(saved.videos[0])) as container:
        assert container.streams.video[0].average_rate == Fraction(exact)


def test_only_what_browsers_cannot_play_gets_a_preview(tmp_path, vae):
    folders, latent = folders_in(tmp_path), {"samples": seeded(*LATENT_SHAPE)}
    saved = save_video(vae, latent, settings("H.264 8-bit"), folders, {})
    assert saved.previews == saved.videos
    saved = save_video(vae, latent, settings(), folders, PROMPT)
    assert saved.previews[0].is_relative_to(folders.temp)
    with av.open(str(saved.previews[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height, stream.frames) == ("h264", 64, 48, 5)
        assert {key: json.loads(container.metadata[key]) for key in PROMPT} == PROMPT
    assert preview_size(3840, 2160) == (1280, 720)
    assert preview_size(1080, 1921) == (720, 1280)


def test_each_video_has_its_sound(tmp_path, vae):
    tones = torch.stack([torch.sin(torch.arange(48000) * pitch).expand(2, -1) for pitch in (0.05, 0.2)])
    audio = {"waveform": tones, "sample_rate": 48000}
    saved = save_video(vae, {"samples": seeded(2, *LATENT_SHAPE[1:])}, settings(), folders_in(tmp_path), {}, audio)
    crossings = []
    for path in saved.videos:
        with av.open(str(path)) as container:
            wave = np.concatenate([frame.to_ndarray().reshape(-1)[::2] for frame in container.decode(audio=0)])
        assert len(wave) == 5 / 15 * 48000
        crossings.append(np.count_nonzero(np.diff(np.sign(wave.astype(float)))))
    assert crossings[1] == pytest.approx(4 * crossings[0], rel=0.02)


@pytest.mark.parametrize("keep", [KEEP_UNTIL_SAVED, KEEP_NEVER])
def test_the_latent_goes_where_it_is_not_wanted(tmp_path, vae, keep):
    saved = save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings(keep_latent=keep), folders_in(tmp_path), {})
    assert saved.latent is None
    assert files(tmp_path / "output") == ["video/clip_00001_.mkv"]


@pytest.mark.parametrize(("samples", "frames"), [(9600, 3), (9601, 4), (1, 1), (48000, 5)])
def test_a_video_trimmed_to_its_sound_ends_with_it(tmp_path, vae, samples, frames):
    audio = {"waveform": torch.zeros(1, 1, samples), "sample_rate": 48000}
    latent, chosen = {"samples": seeded(*LATENT_SHAPE)}, settings(trim_to_audio=True, side_file="json")
    saved = save_video(vae, latent, chosen, folders_in(tmp_path), {}, audio)
    for path in (*saved.videos, *saved.previews):
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
    assert json.loads(saved.side_files[0].read_text())["frames"] == frames
    assert len(rgb(save_video(vae, latent, chosen, folders_in(tmp_path), {}).videos[0])) == 5


@pytest.mark.parametrize(
    ("max_frames", "samples", "frames"), [(3, 48000, 3), (4, 9600, 3), (9, 48000, 5), (0, 48000, 5)]
)
def test_a_video_ends_after_max_frames_with_its_sound(tmp_path, vae, max_frames, samples, frames):
    audio = {"waveform": torch.zeros(1, 1, samples), "sample_rate": 48000}
    latent, chosen = {"samples": seeded(*LATENT_SHAPE)}, settings(trim_to_audio=True, max_frames=max_frames)
    saved = save_video(vae, latent, chosen, folders_in(tmp_path), {}, audio)
    for path in (*saved.videos, *saved.previews):
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
            container.seek(0)
            heard = sum(frame.samples for frame in container.decode(audio=0))
            assert heard == pytest.approx(min(samples, 48000 * frames / 15), abs=1024)  # AAC: blocks of 1024


def test_sound_of_no_length_is_none(tmp_path, vae):
    audio = {"waveform": torch.zeros(1, 2, 0), "sample_rate": 44100}
    saved = save_video(vae, {"samples": seeded(1, 16, 1, 6, 8)}, settings(), folders_in(tmp_path), {}, audio)
    with av.open(str(saved.videos[0])) as container:
        assert not container.streams.audio and len(container.streams.video) == 1


def test_without_a_name_the_latent_lies_among_latents(tmp_path, vae):
    saved = save_video(vae, {"samples": seeded(1, 16, 1, 6, 8)}, settings(prefix=""), folders_in(tmp_path), {})
    assert files(tmp_path / "output") == ["latents/ultragen_00001_.latent", "ultragen_00001_.mkv"]
    assert saved.latent.name == "ultragen_00001_.latent"


def test_progress_runs_over_all_phases_of_all_videos(tmp_path, vae, monkeypatch):
    steps, texts = [], []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: steps.append((value, total)))
    samples = seeded(2, *LATENT_SHAPE[1:])
    save_video(vae, {"samples": samples}, settings(), folders_in(tmp_path), {}, on_status=texts.append)
    values = [value for value, _ in steps]
    assert values == sorted(values)
    assert steps[-1] == (1000, 1000)
    ends = [f"video {n} of 2, {phase}: 100 %" for n in (1, 2) for phase in ("decoding", "encoding")]
    assert [text for text in texts if text in ends] == ends
