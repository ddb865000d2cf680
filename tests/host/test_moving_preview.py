"""The preview that moves while a patched model samples."""

from __future__ import annotations

import asyncio
from io import BytesIO
from types import SimpleNamespace

import comfy.latent_formats
import comfy.utils
import latent_preview
import numpy as np
import pytest
import server
import torch
from helpers.comfy_run import sample
from helpers.support import seeded
from PIL import Image

from ultragen_core.host import moving_preview
from ultragen_core.host.moving_preview import FRAMES, SHARE, SIDE, MovingPreview, bounded, encode, pictures

SHAPE = (1, 16, 3, 8, 16)


@pytest.fixture
def colours(monkeypatch):
    """ComfyUI's previewer of Wan's latents by colours."""
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    return latent_preview.get_previewer(torch.device("cpu"), comfy.latent_formats.Wan21())


@pytest.fixture
def sent(monkeypatch):
    """What ComfyUI's progress bars send from now on: (value, total, preview)."""
    messages = []
    hook = lambda value, total, preview, **_: messages.append((value, total, preview))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return messages


class TinyDecoder(latent_preview.TAEHVPreviewerImpl):
    """In place of ComfyUI's tiny decoder: 4 frames for every latent frame but the first, 8 times as wide and high."""

    def __init__(self):
        super().__init__(SimpleNamespace(decode=self.decode))

    def decode(self, latent):
        self.shape = latent.shape
        t, h, w = 1 + 4 * (latent.shape[2] - 1), *(8 * side for side in latent.shape[3:])
        return torch.linspace(0, 1, t)[None, :, None, None, None].expand(1, t, h, w, 3)


def run(model, steps=3):
    """Sample as ComfyUI's nodes do, with the callback that they make."""
    callback = latent_preview.prepare_callback(model, steps)
    context = seeded(1, 3, 4096)
    return sample(model, SHAPE, context, steps=steps, cfg=1.0, callback=callback)


def loops(messages):
    moving = lambda preview: preview is not None and getattr(preview[1], "n_frames", 1) > 1  # noqa: E731
    return [(value, total) for value, total, preview in messages if moving(preview)]


def switch_off(monkeypatch):
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.NoPreviews)


def test_a_loop_follows_every_still_picture_of_comfyui(tiny, colours, sent, monkeypatch):
    monkeypatch.setattr(moving_preview, "SHARE", 1e9)  # a new one after every step
    run(tiny)
    assert loops(sent) == [(1, 3), (2, 3), (3, 3)]
    kinds = [preview[0] for *_, preview in sent if preview]
    assert kinds == 3 * ["JPEG", "WEBP"]


def test_nothing_changes_in_the_samples_nor_in_a_model_that_is_not_patched(tiny, dense, colours, sent, monkeypatch):
    shown = run(tiny)
    assert loops(sent)
    sent.clear()
    run(dense)
    assert not loops(sent)
    switch_off(monkeypatch)
    assert torch.equal(run(tiny), shown)


@pytest.mark.parametrize("off", ("none", "another pack's", "no server"))
def test_when_there_are_no_loops(tiny, colours, sent, monkeypatch, off):
    if off == "none":
        switch_off(monkeypatch)
    elif off == "another pack's":
        other = SimpleNamespace(decode_latent_to_preview_image=lambda *_: ("JPEG", Image.new("RGB", (8, 8)), 512))
        monkeypatch.setattr(latent_preview, "get_previewer", lambda *_: other)
    else:
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    run(tiny)
    assert not loops(sent)


def test_a_client_may_decline_loops(colours, sent, monkeypatch):
    monkeypatch.setattr(moving_preview, "prompt_server", lambda: SimpleNamespace(client_id="a page"))
    shown = MovingPreview(lambda *_: None, colours)
    try:
        moving_preview.decline("another page", True)
        shown(0, seeded(*SHAPE), None, 3)
        moving_preview.decline("a page", True)
        shown(1, seeded(*SHAPE), None, 3)
        moving_preview.decline("a page", False)
        shown(2, seeded(*SHAPE), None, 3)
    finally:
        for client in ("a page", "another page"):
            moving_preview.decline(client, False)
    assert loops(sent) == [(1, 3), (3, 3)]


def test_loops_take_their_share_of_the_time_and_no_more(colours, sent, monkeypatch):
    """A step of 7 s, of which a loop takes 0.2 s: the next is due 20 s after it. In between the last one is shown."""
    now, made = [0.0], []

    def slow(frames):
        now[0] += 0.2
        made.append(now[0])
        return encode(frames)

    monkeypatch.setattr(moving_preview, "encode", slow)
    shown = MovingPreview(lambda *_: None, colours, clock=lambda: now[0])
    for step in range(9):
        now[0] += 7
        shown(step, seeded(*SHAPE, seed=step), None, 9)
    assert np.diff(made) == pytest.approx([21.2, 21.2]) and 0.2 * len(made) / now[0] < SHARE
    assert loops(sent) == [(step + 1, 9) for step in range(9)]


def test_a_preview_that_fails_stops_no_sampling(colours, sent, caplog):
    called = []
    shown = MovingPreview(lambda *given: called.append(given[0]), colours)
    for step in range(3):
        shown(step, torch.zeros(1, 5, 3, 8, 8), None, 3)  # of 16 channels the previewer has colours
    assert called == [0, 1, 2] and not sent
    assert caplog.text.count("no moving preview in this run, because RuntimeError") == 1


def test_a_previewer_that_cannot_be_made_stops_no_sampling(tiny, sent, monkeypatch, caplog):
    """Such as a tiny decoder whose file is damaged, under a callback of another pack that needs none."""

    def damaged(*_):
        raise OSError("damaged")

    monkeypatch.setattr(latent_preview, "get_previewer", damaged)
    steps = []
    sample(tiny, SHAPE, seeded(1, 3, 4096), steps=2, cfg=1.0, callback=lambda *given: steps.append(given[0]))
    assert steps == [0, 1] and not loops(sent)
    assert "no moving preview in this run, because OSError: damaged" in caplog.text


def test_frames_are_what_comfyui_shows_of_the_first_one(colours):
    latent = seeded(*SHAPE)
    for index, picture in enumerate(pictures(colours, latent)):
        expected = colours.decode_latent_to_preview(latent[:, :, index : index + 1])
        assert np.array_equal(np.asarray(picture), np.asarray(expected)), index
    assert index == 2


def test_a_tiny_decoder_sees_a_small_latent_and_shows_as_many_frames():
    decoder, sent_latent = TinyDecoder(), seeded(2, 16, 5, 68, 120)
    shown = MovingPreview(lambda *_: None, decoder)
    shown(0, sent_latent, None, 3)
    assert decoder.shape == (1, 16, 5, 27, 48)
    assert shown.loop.n_frames == 5 and shown.loop.size == (384, 216)


@pytest.mark.parametrize(
    "t, h, w, expected",
    [(21, 272, 480, (21, 73, 128)), (61, 8, 16, (FRAMES, 8, 16)), (1, 1, 900, (1, 1, 128))],
)
def test_the_work_is_bounded_by_size_and_frames(t, h, w, expected):
    made = bounded(seeded(2, 16, t, h, w), 128)
    assert made.shape == (1, 16, *expected)


def test_frames_of_a_long_video_are_spread_over_all_of_it():
    latent = torch.arange(61.0).reshape(1, 1, 61, 1, 1).expand(1, 16, 61, 8, 8)
    chosen = bounded(latent, 128)[0, 0, :, 0, 0].tolist()
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 60, FRAMES) and max(np.diff(chosen)) <= 3


@pytest.mark.parametrize("function", ("send_image", "send_image_with_metadata"))
def test_what_comfyuis_server_sends_is_the_whole_loop(colours, function):
    frames, messages = 5 * pictures(colours, seeded(1, 16, 1, 34, 60)), []
    frames = [frame.copy() for frame in frames]
    for index, frame in enumerate(frames):
        frame.paste("black", (6 * index, 0, 6 * index + 6, 6))  # a small change, of which a file could keep that alone
    loop = encode(frames)

    async def send_bytes(event, data, sid=None):
        messages.append(bytes(data))

    send = getattr(server.PromptServer, function)
    asyncio.run(send(SimpleNamespace(send_bytes=send_bytes), ("WEBP", loop, None)))
    file = messages[0][messages[0].index(b"RIFF") :]
    played = Image.open(BytesIO(file))
    assert played.format == "WEBP" and played.n_frames == 5 and max(played.size) == SIDE and played.info["loop"] == 0
    assert stored_sizes(file) == 5 * [played.size]  # web/preview.js shows each by itself


def test_one_frame_does_not_move(colours):
    assert encode(pictures(colours, seeded(1, 16, 1, 8, 8))) is None


def stored_sizes(webp: bytes) -> list[tuple[int, int]]:
    """Width and height of every frame as it is stored."""
    found, at = [], 12
    while at < len(webp):
        size = int.from_bytes(webp[at + 4 : at + 8], "little")
        if webp[at : at + 4] == b"ANMF":
            found.append(tuple(1 + int.from_bytes(webp[start : start + 3], "little") for start in (at + 14, at + 17)))
        at += 8 + size + size % 2
    return found
