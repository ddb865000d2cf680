"""What a save leaves behind if it is refused, fails, is interrupted or killed."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.nested_tensor
import pytest
import torch
from conftest import ROOT
from helpers.save_run import core_levels, files, folders_in, narrow_vae, rgb, rounding_ties, settings
from helpers.support import seeded

import ultragen_core.host.vae.exact as exact
from ultragen_core.host.save import preview as save_preview
from ultragen_core.host.save import request, save
from ultragen_core.host.save.request import KEEP_NEVER, KEEP_UNTIL_SAVED
from ultragen_core.host.save.save import save_video
from ultragen_core.host.vae.support import vae_support
from ultragen_core.video.latents import load_latent

LATENT_SHAPE = (1, 16, 2, 6, 8)


pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def never_decoded(monkeypatch):
    def decode(*_):
        pytest.fail("decoded, although the save was known to be impossible")

    monkeypatch.setattr(save, "stream_decode", decode)


class TestRefusedBeforeDecoding:
    @pytest.fixture(autouse=True)
    def checks(self, never_decoded):
        yield

    def refused(self, tmp_path, vae, message, shape=LATENT_SHAPE, audio=None, **choices):
        folders = folders_in(tmp_path)
        where = "latent is kept in .*" if 0 not in shape else ""
        with pytest.raises((ValueError, OSError), match=f"(?s){message}.*{where}"):
            save_video(vae, {"samples": seeded(*shape)}, settings(**choices), folders, {}, audio)
        kept = [load_latent(tmp_path / name) for name in files(tmp_path)]
        assert [tuple(latent.shape) for latent in kept] == ([shape] if 0 not in shape else [])

    def test_an_images_latent(self, tmp_path, vae):
        self.refused(tmp_path, vae, r"5 axes .* got \(1, 16, 6, 8\)", shape=(1, 16, 6, 8))

    def test_the_latent_of_another_model(self, tmp_path, vae):
        self.refused(tmp_path, vae, "the latent has 48 channels, but the VAE takes 16", shape=(1, 48, 2, 6, 8))

    @pytest.mark.parametrize("shape", [(0, 16, 2, 6, 8), (1, 16, 0, 6, 8)])
    def test_a_latent_of_nothing(self, tmp_path, vae, shape):
        self.refused(tmp_path, vae, "at least one frame", shape=shape)

    def test_a_folder_that_cannot_be_made(self, tmp_path, vae):
        folders = folders_in(tmp_path)
        (tmp_path / "output/video").write_text("no folder")
        with pytest.raises(
            OSError, match=r"(?s)folder of video/clip cannot be created in .* \(.*right to write.*kept in"
        ):
            save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings(), folders, {})
        assert len(list(tmp_path.rglob("*.latent"))) == 1

    def test_a_crop_higher_than_the_video(self, tmp_path, vae):
        self.refused(tmp_path, vae, "at least that high, got 48", crop="1080 lines")

    def test_a_frame_too_small(self, tmp_path, vae):
        self.refused(tmp_path, vae, "got 64x8", shape=(1, 16, 2, 1, 8))

    def test_a_missing_encoder(self, tmp_path, vae, monkeypatch):
        monkeypatch.setattr("ultragen_core.video.codecs._can_encode", lambda name: name != "libx265")
        self.refused(tmp_path, vae, "needs the encoder libx265", codec="H.265 8-bit")

    def test_sound_of_too_many_channels(self, tmp_path, vae):
        audio = {"waveform": torch.zeros(1, 4, 99), "sample_rate": 48000}
        self.refused(tmp_path, vae, "1, 2 or 6 channels, got 4", codec="H.264 8-bit", audio=audio)

    def test_sound_that_is_not_finite(self, tmp_path, vae):
        audio = {"waveform": torch.full((1, 2, 99), float("nan")), "sample_rate": 48000}
        self.refused(tmp_path, vae, "198 of 198 samples are NaN", codec="H.264 8-bit", audio=audio)

    def test_a_disk_too_small(self, tmp_path, vae, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        self.refused(tmp_path, vae, "needs about .* GB free. Free some space")

    def test_a_disk_too_small_for_what_shares_it(self, tmp_path, vae, monkeypatch):
        """Room for the video, and room for its frames, but not for both."""
        monkeypatch.setattr(request, "RAM_SHARE", 0)
        frames = 5 * 48 * 64 * 3
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=frames + 1000))
        self.refused(tmp_path, vae, "together with its decoded frames, needs about")

    @pytest.mark.parametrize("prefix", ["../../clip", "/clip", "C:\\clip"])
    def test_a_name_outside_the_output_folder(self, tmp_path, vae, prefix):
        self.refused(tmp_path, vae, "stay inside the output folder", prefix=prefix)

    @pytest.mark.parametrize("prefix", ["y" * 240, "湖" * 80])
    def test_a_name_too_long(self, tmp_path, vae, prefix):
        self.refused(tmp_path, vae, "Choose a shorter name", prefix=prefix)

    @pytest.mark.parametrize("fps", [0.0, -1.0, 1e-4, float("nan"), float("inf"), 1e9])
    def test_fps_out_of_range(self, tmp_path, vae, fps):
        self.refused(tmp_path, vae, "fps", fps=fps)

    @pytest.mark.parametrize(
        "choice", [{"crf": 0}, {"crf": 99}, {"codec": "VP9"}, {"crop": "9 lines"}, {"side_file": "xml"}]
    )
    def test_what_a_link_may_bring(self, tmp_path, vae, choice):
        self.refused(tmp_path, vae, "must be .*, got", **choice)


def test_a_disk_that_fills_up_leaves_the_latent_and_says_so(tmp_path, vae):
    samples = seeded(1, 16, 5, 16, 16)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    folders = folders_in(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(
            RuntimeError, match=r"is full. Free some space and save again.\nThe latent is kept in .*clip_00001_.latent"
        ):
            save_video(vae, {"samples": samples}, settings(), folders, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path / "output") == ["latents/video/clip_00001_.latent"]


def test_a_failed_decode_leaves_the_latent_and_says_so(tmp_path, vae, monkeypatch):
    def decode(*_):
        raise RuntimeError("The decode failed.")

    monkeypatch.setattr(save, "stream_decode", decode)
    with pytest.raises(RuntimeError, match=r"^The decode failed.\nThe latent is kept in .*clip_00001_.latent"):
        save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings(), folders_in(tmp_path), {})
    assert files(tmp_path) == ["output/latents/video/clip_00001_.latent"]


@pytest.mark.parametrize("phase", ["decoding", "encoding"])
def test_an_interruption_leaves_the_latent_and_no_unfinished_file(tmp_path, vae, phase):
    def interrupt(text: str) -> None:
        if text.startswith(phase):
            comfy.model_management.interrupt_current_processing()

    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            save_video(
                vae, {"samples": seeded(*LATENT_SHAPE)}, settings(), folders_in(tmp_path), {}, on_status=interrupt
            )
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert files(tmp_path / "output") == ["latents/video/clip_00001_.latent"]


def test_a_latent_that_finds_no_room_does_not_stop_the_video(tmp_path, vae, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    saved = save_video(vae, {"samples": seeded(1, 16, 1, 6, 8)}, settings(), folders_in(tmp_path), {})
    assert "The latent could not be kept: its disk is full" in saved.notes[0]
    assert files(tmp_path / "output") == ["video/clip_00001_.mkv"]


@pytest.mark.parametrize("failure", ["gone", "full"])
def test_a_latent_that_the_output_folder_cannot_take_is_kept_in_the_input_folder(tmp_path, vae, monkeypatch, failure):
    folders, samples, write = folders_in(tmp_path), seeded(1, 16, 1, 6, 8), Path.write_bytes
    if failure == "gone":
        (tmp_path / "output").rmdir()
        (tmp_path / "output").symlink_to(tmp_path / "a disk that is not connected")

    def full(path, content):
        if path.is_relative_to(folders.output):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(save, "stream_decode", lambda *_: 1 / 0)
    with pytest.raises(Exception, match=r"\nThe latent is kept in .*ultragen_00001_.latent. UltraGen Load Latent"):
        save_video(vae, {"samples": samples}, settings(), folders, {})
    assert files(tmp_path) == ["input/ultragen_00001_.latent"]
    assert torch.equal(load_latent(tmp_path / "input/ultragen_00001_.latent"), samples)


def test_a_latent_that_somebody_removed_is_no_error(tmp_path, vae):
    def say(text):
        if text == "encoding: 100 %":
            (tmp_path / "output/latents/video/clip_00001_.latent").unlink()

    choices = settings(keep_latent=KEEP_UNTIL_SAVED)
    saved = save_video(vae, {"samples": seeded(1, 16, 1, 6, 8)}, choices, folders_in(tmp_path), {}, on_status=say)
    assert files(tmp_path / "output") == ["video/clip_00001_.mkv"] and not saved.notes


def test_an_error_without_words_gets_some(tmp_path, vae, monkeypatch):
    def decode(*_):
        raise AssertionError

    monkeypatch.setattr(save, "stream_decode", decode)
    with pytest.raises(RuntimeError, match=r"^AssertionError, without a message.*\nThe latent is kept in"):
        save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings(), folders_in(tmp_path), {})


def test_an_error_names_the_videos_that_are_saved(tmp_path, vae, monkeypatch):
    real = save.stream_decode

    def decode(vae, samples, *more):
        if list(tmp_path.rglob("*.mkv")):
            raise RuntimeError("The second failed.")
        return real(vae, samples, *more)

    monkeypatch.setattr(save, "stream_decode", decode)
    with pytest.raises(RuntimeError, match=r"The second failed.\n.*\nAlready saved: .*clip_00001_.mkv"):
        save_video(vae, {"samples": seeded(2, 16, 1, 6, 8)}, settings(), folders_in(tmp_path), {})
    assert files(tmp_path / "output/video") == ["clip_00001_.mkv"]


class TestNotFinite:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_broken_latent_is_counted_and_kept(self, tmp_path, vae, caplog, value):
        samples = seeded(*LATENT_SHAPE)
        samples[0, 3, 1, 2, 4:6] = value
        choices = settings(keep_latent=KEEP_UNTIL_SAVED)
        saved = save_video(vae, {"samples": samples}, choices, folders_in(tmp_path), {})
        assert re.match(r"2 of the latent's 1536 values are NaN or infinite", saved.notes[0])
        assert saved.notes[0] in caplog.text
        assert saved.latent.exists() and len(rgb(saved.videos[0])) == 5

    def test_a_vae_that_overflows_is_noticed_at_the_frames(self, tmp_path, monkeypatch):
        vae = narrow_vae()
        with torch.no_grad():
            vae.first_stage_model.decoder.head[2].bias.fill_(torch.nan)
        choices = settings(keep_latent=KEEP_UNTIL_SAVED)
        saved = save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, choices, folders_in(tmp_path), {})
        (note,) = saved.notes
        assert note.startswith("5 of 5 decoded frames of clip_00001_.mkv hold NaN") and saved.latent.exists()

    def test_a_sound_video_has_no_notes(self, tmp_path, vae):
        assert not save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings(), folders_in(tmp_path), {}).notes


class TestThePreviewFails:
    def saved(self, tmp_path, vae, audio=None, on_status=lambda text: None):
        samples = {"samples": seeded(*LATENT_SHAPE)}
        saved = save_video(vae, samples, settings(), folders_in(tmp_path), {}, audio, on_status)
        assert rgb(saved.videos[0]).shape == (5, 48, 64, 3)
        return saved

    def test_a_rate_that_only_the_video_takes(self, tmp_path, vae):
        saved = self.saved(tmp_path, vae, {"waveform": torch.zeros(1, 2, 192_000), "sample_rate": 192_000})
        assert len(saved.previews) == 1 and not saved.notes

    def test_a_temp_folder_that_is_cleaned_meanwhile(self, tmp_path, vae):
        def say(text):
            if text in ("decoding: 100 %", "encoding: 100 %"):
                shutil.rmtree(tmp_path / "temp")

        saved = self.saved(tmp_path, vae, on_status=say)
        assert not saved.previews and "The preview could not be written" in saved.notes[0]

    @pytest.mark.parametrize("when", ["__init__", "write", "finish"])
    def test_a_full_temp_disk(self, tmp_path, vae, monkeypatch, when):
        def full(self, *args, **more):
            raise OSError(errno.ENOSPC, "No space left on device")

        broken = type("Writer", (save_preview.VideoWriter,), {when: full})
        monkeypatch.setattr(save_preview, "VideoWriter", broken)
        saved = self.saved(tmp_path, vae)
        assert not saved.previews and re.match(
            r"The preview could not be written \(the disk of .*temp is full\)", saved.notes[0]
        )
        assert files(tmp_path / "temp") == []


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1:4]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import torch
from pathlib import Path
from helpers.save_run import folders_in, narrow_vae, settings
from helpers.support import seeded
from ultragen_core.host.save.save import save_video

def say(text):
    if text == "encoding: 100 %":
        os.kill(os.getpid(), signal.SIGKILL)

with torch.inference_mode():
    samples = {"samples": seeded(1, 16, 2, 6, 8)}
    save_video(narrow_vae(), samples, settings(), folders_in(Path(sys.argv[4])), {}, on_status=say)
"""


def test_killed_while_encoding_the_latent_finishes_the_job(tmp_path, vae):
    tests = ROOT / "tests"
    paths = [os.environ["COMFYUI_PATH"], str(tests), str(tests.parent), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", KILLED, *paths], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = ["latents/video/clip_00001_.latent", "video/clip_00001_.mkv.part"]
    assert files(tmp_path / "output") == left
    samples = load_latent(tmp_path / "output" / left[0])
    saved = save_video(vae, {"samples": samples}, settings(keep_latent=KEEP_NEVER), folders_in(tmp_path), {})
    assert saved.videos[0].name == "clip_00002_.mkv"
    rounding_ties(rgb(saved.videos[0]), core_levels(vae, seeded(1, 16, 2, 6, 8)))


def test_pixels_that_overflow_are_not_made_white(tmp_path, monkeypatch):
    """The clamp of ComfyUI's `process_output` would turn infinity into an ordinary value before it can be counted."""
    vae, decoded = narrow_vae(), []
    vae_support(vae)
    inner = exact.decode_video

    def overflowing(vae, layers, z, tile, emit, *more):
        def spoil(frames, rect, pixels):
            pixels[..., 0, 0] = torch.inf
            decoded.append(frames)
            emit(frames, rect, pixels)

        return inner(vae, layers, z, tile, spoil, *more)

    monkeypatch.setattr(exact, "decode_video", overflowing)
    saved = save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings(), folders_in(tmp_path), {})
    assert decoded and "5 of 5 decoded frames" in saved.notes[0]


def test_where_the_folder_of_latents_cannot_be_used_the_latent_is_kept_beside_it(tmp_path, vae):
    """It may be a link to another disk, which newer ComfyUI does not follow."""
    folders = folders_in(tmp_path)
    (tmp_path / "output").mkdir(exist_ok=True)
    (tmp_path / "output" / "latents").write_text("no folder")
    saved = save_video(vae, {"samples": seeded(*LATENT_SHAPE)}, settings(), folders, {})
    assert saved.latent.parent == tmp_path / "output" and saved.latent.is_file()


def test_of_a_latent_with_sound_the_video_is_saved(tmp_path, vae):
    nested = comfy.nested_tensor.NestedTensor([seeded(*LATENT_SHAPE), torch.zeros(1, 8, 4)])
    assert save_video(vae, {"samples": nested}, settings(), folders_in(tmp_path), {}).videos[0].is_file()
