"""latent_preview and progress bars: what a sampling node shows after each step."""

from __future__ import annotations

import inspect

import comfy.latent_formats
import comfy.utils
import latent_preview
import pytest
import torch
from helpers.signatures import lacking, parameters

FORMATS = (comfy.latent_formats.Wan21, comfy.latent_formats.Wan22)


@pytest.mark.parametrize("latent_format", FORMATS)
def test_wans_latents_are_shown_by_colours(latent_format, monkeypatch):
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Auto)
    previewer = latent_preview.get_previewer(torch.device("cpu"), latent_format())
    assert type(previewer) is latent_preview.Latent2RGBPreviewer
    # Frames below each other are one picture to it.
    picture = previewer.decode_latent_to_preview(torch.zeros(1, latent_format().latent_channels, 3 * 4, 5))
    assert picture.size == (5, 12)


def test_there_is_no_previewer_where_previews_are_off(monkeypatch):
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.NoPreviews)
    assert latent_preview.get_previewer(torch.device("cpu"), comfy.latent_formats.Wan21()) is None


def test_a_tiny_decoder_of_videos_is_a_vae():
    assert latent_preview.TAEHVPreviewerImpl("a VAE").taesd == "a VAE"
    assert {"lighttaew2_1", "lighttaew2_2"} <= set(latent_preview.VIDEO_TAES)
    assert "self.taesd.decode(x0[:1, :, :1])[0][0]" in inspect.getsource(latent_preview.TAEHVPreviewerImpl)
    assert parameters(latent_preview.preview_to_image) == ["latent_image", "do_scale"]


def test_progress_bars_send_previews_through_one_hook(monkeypatch):
    assert not lacking(comfy.utils, "PROGRESS_BAR_HOOK")
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *given, **_: seen.append(given))
    comfy.utils.ProgressBar(1).update_absolute(2, 3, ("WEBP", "a picture", None))
    assert seen == [(2, 3, ("WEBP", "a picture", None))]
