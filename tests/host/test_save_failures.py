"""What a save leaves behind when it is refused, fails, is interrupted or killed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from save_run import core_levels, files, folders_in, noise, rgb, rounding_ties, settings

from ultragen_core.host import save
from ultragen_core.host.save import KEEP_NOT, save_video
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
        with pytest.raises((ValueError, OSError), match=message):
            save_video(vae, {"samples": noise(*shape)}, settings(**choices), folders, {}, audio)
        assert files(tmp_path) == []

    def test_an_images_latent(self, tmp_path, vae):
        self.refused(tmp_path, vae, r"5 axes .* got \(1, 16, 6, 8\)", shape=(1, 16, 6, 8))

    def test_the_latent_of_another_model(self, tmp_path, vae):
        self.refused(tmp_path, vae, "the latent has 48 channels, the VAE takes 16", shape=(1, 48, 2, 6, 8))

    def test_a_folder_that_cannot_be_made(self, tmp_path, vae, monkeypatch):
        def denied(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("os.makedirs", denied)
        self.refused(tmp_path, vae, r"folder of video/clip cannot be made in .* \(Permission denied\).*right to write")

    def test_a_crop_higher_than_the_video(self, tmp_path, vae):
        self.refused(tmp_path, vae, "at least as high, this one has 48", crop="1080 lines")

    def test_a_frame_too_small(self, tmp_path, vae):
        self.refused(tmp_path, vae, "got 64x8", shape=(1, 16, 2, 1, 8))

    def test_a_missing_encoder(self, tmp_path, vae, monkeypatch):
        monkeypatch.setattr("ultragen_core.video.codecs._can_encode", lambda name: name != "libx265")
        self.refused(tmp_path, vae, "needs the encoder libx265", codec="H.265 8-bit")

    def test_sound_that_no_codec_takes(self, tmp_path, vae):
        audio = {"waveform": torch.zeros(1, 4, 99), "sample_rate": 48000}
        self.refused(tmp_path, vae, "1, 2 or 6 channels, got 4", codec="H.264 8-bit", audio=audio)
        audio = {"waveform": torch.full((1, 2, 99), float("nan")), "sample_rate": 48000}
        self.refused(tmp_path, vae, "198 of 198 samples are NaN", codec="H.264 8-bit", audio=audio)

    def test_a_disk_too_small(self, tmp_path, vae, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        self.refused(tmp_path, vae, "needs about .* GB free. Make room")

    def test_a_name_outside_the_output_folder(self, tmp_path, vae):
        folders = folders_in(tmp_path)
        with pytest.raises(Exception, match="outside the output folder"):
            save_video(vae, {"samples": noise(*LATENT_SHAPE)}, settings(prefix="../../clip"), folders, {})
        assert files(tmp_path) == []


def test_a_disk_that_fills_up_leaves_the_latent_and_says_so(tmp_path, vae):
    samples = noise(1, 16, 5, 16, 16)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    folders = folders_in(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(RuntimeError, match=r"is full. Make room.\nThe latent is kept in .*clip_00001_.latent"):
            save_video(vae, {"samples": samples}, settings(), folders, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path / "output") == ["latents/video/clip_00001_.latent"]


def test_a_failed_decode_leaves_the_latent_and_says_so(tmp_path, vae, monkeypatch):
    def decode(*_):
        raise RuntimeError("The decode failed.")

    monkeypatch.setattr(save, "stream_decode", decode)
    with pytest.raises(RuntimeError, match=r"^The decode failed.\nThe latent is kept in .*clip_00001_.latent"):
        save_video(vae, {"samples": noise(*LATENT_SHAPE)}, settings(), folders_in(tmp_path), {})
    assert files(tmp_path) == ["output/latents/video/clip_00001_.latent"]


@pytest.mark.parametrize("phase", ["decoding", "encoding"])
def test_an_interruption_leaves_the_latent_and_no_unfinished_file(tmp_path, vae, phase):
    def interrupt(text: str) -> None:
        if text.startswith(phase):
            comfy.model_management.interrupt_current_processing()

    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            save_video(vae, {"samples": noise(*LATENT_SHAPE)}, settings(), folders_in(tmp_path), {}, say=interrupt)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert files(tmp_path / "output") == ["latents/video/clip_00001_.latent"]


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1:4]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import torch
from pathlib import Path
from save_run import folders_in, narrow_vae, noise, settings
from ultragen_core.host.save import save_video

def say(text):
    if text == "encoding: 100 %":
        os.kill(os.getpid(), signal.SIGKILL)

with torch.inference_mode():
    save_video(narrow_vae(), {"samples": noise(1, 16, 2, 6, 8)}, settings(), folders_in(Path(sys.argv[4])), {}, say=say)
"""


def test_killed_while_encoding_the_latent_finishes_the_job(tmp_path, vae):
    tests = Path(__file__).resolve().parent.parent
    paths = [os.environ["COMFYUI_PATH"], str(tests), str(tests.parent), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", KILLED, *paths], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = ["latents/video/clip_00001_.latent", "video/clip_00001_.mkv.part"]
    assert files(tmp_path / "output") == left
    samples = load_latent(tmp_path / "output" / left[0])
    saved = save_video(vae, {"samples": samples}, settings(keep_latent=KEEP_NOT), folders_in(tmp_path), {})
    assert saved.videos[0].name == "clip_00002_.mkv"
    rounding_ties(rgb(saved.videos[0]), core_levels(vae, noise(1, 16, 2, 6, 8)))
