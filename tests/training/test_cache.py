"""Videos and captions become what training reads."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.support import seeded

from tools.console import Trouble
from training.cache import Cache, CacheSettings, fill
from training.data import captions, clips
from training.encoders import latent_format, text_encoder, video_encoder
from training.miniature.text import word_vectors
from ultragen_core.sizes import VideoSize
from ultragen_core.video.codecs import CODECS
from ultragen_core.video.encoder import VideoWriter

SIZE = VideoSize(64, 48, 5)
CAPTIONS = {"one.mkv": "a quiet lake", "two.mkv": "a red moon"}


def write_video(path, frames: np.ndarray) -> None:
    height, width = frames.shape[1:3]
    with VideoWriter(path, CODECS["FFV1 lossless RGB"], (width, height), Fraction(15), 0, len(frames)) as writer:
        for frame in frames:
            writer.write(frame)
        writer.finish(lambda: None)


def drawn(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    write_video(tmp_path / "videos" / "one.mkv", drawn(12, 48, 64))
    write_video(tmp_path / "videos" / "two.mkv", drawn(5, 48, 64, seed=1))
    return tmp_path


@pytest.mark.parametrize(("stride", "starts"), [(1, [0, 5]), (2, [0])])
def test_clips_follow_each_other(dataset, stride, starts):
    whole = drawn(12, 48, 64)
    made = list(clips(dataset / "videos" / "one.mkv", SIZE, stride))
    assert len(made) == len(starts)
    for clip, start in zip(made, starts, strict=True):
        expected = whole[start : start + 5 * stride : stride]
        assert np.array_equal((clip.numpy() * 255).round(), expected)


@pytest.mark.parametrize(("height", "width"), [(96, 128), (100, 128), (96, 200), (24, 32), (30, 90)])
def test_frames_cover_the_size_around_their_centre(tmp_path, height, width):
    """A picture of two halves keeps its border in the middle, whatever its shape."""
    frames = np.zeros((5, height, width, 3), np.uint8)
    frames[:, :, width // 2 :] = 255
    write_video(tmp_path / "x.mkv", frames)
    (clip,) = clips(tmp_path / "x.mkv", SIZE, 1)
    assert clip.shape == (5, 48, 64, 3)
    assert clip[:, :, :28].max() < 0.05 and clip[:, :, 36:].min() > 0.95


def test_the_cache_holds_exact_latents_and_texts(dataset, tmp_path):
    from helpers.save_run import narrow_vae

    vae = narrow_vae()
    cache = Cache(tmp_path / "cache")
    fill(dataset, cache, CacheSettings(SIZE), video_encoder(vae), text_encoder("words"))
    cache = Cache(cache.folder)
    assert cache.names == ["one.mkv-000", "one.mkv-001", "two.mkv-000"] and cache.latent_shape() == (16, 2, 6, 8)
    clip = cache.clip(1)
    pixels = torch.from_numpy(drawn(12, 48, 64)[5:10] / np.float32(255))
    expected = latent_format(16).process_in(vae.encode(pixels))[0]
    assert (clip.latent - expected).abs().max() < 1e-3 * expected.abs().max()
    assert clip.caption == "a quiet lake"
    assert torch.equal(clip.text, word_vectors("a quiet lake")[:3].bfloat16())
    assert cache.empty_text().shape == (0, 4096)


def test_only_what_is_new_is_encoded(dataset, tmp_path):
    encoded = []

    def encode(clip):
        encoded.append(clip)
        return seeded(16, 2, 6, 8)

    cache = Cache(tmp_path / "cache")
    for expected, changed in ((3, {}), (3, {}), (4, {"two.mkv": "another caption"})):
        (dataset / "captions.json").write_text(json.dumps(CAPTIONS | changed))
        fill(dataset, cache, CacheSettings(SIZE), encode, word_vectors)
        assert len(encoded) == expected
    assert Cache(cache.folder).clip(2).caption == "another caption"


def test_videos_that_differ_in_ending_or_folder_are_entries_of_their_own(dataset, tmp_path):
    (dataset / "videos" / "more").mkdir()
    names = ["one.mkv", "one.mp4", "more/one.mkv", "more%2Fone.mkv"]
    for name in names[1:]:
        shutil.copy(dataset / "videos" / "one.mkv", dataset / "videos" / name)
    (dataset / "captions.json").write_text(json.dumps({name: name for name in names}))
    cache = Cache(tmp_path / "cache")
    fill(dataset, cache, CacheSettings(SIZE), lambda clip: seeded(16, 2, 6, 8), word_vectors)
    held = Cache(cache.folder)
    assert sorted(held.clip(index).caption for index in range(len(held.names))) == sorted(2 * names)


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"size": VideoSize(32, 48, 5)}, "size 64x48, 5 frames -> 32x48, 5 frames"),
        ({"stride": 2}, "stride 1 -> 2"),
        ({"vae": "other.safetensors"}, "vae  -> other.safetensors"),
        ({"text_encoder": "words"}, "text_encoder  -> words"),
    ],
)
def test_a_cache_is_filled_with_one_set_of_settings(dataset, tmp_path, changed, difference):
    cache, encoded = Cache(tmp_path / "cache"), []

    def encode(clip):
        encoded.append(clip)
        return seeded(16, 2, 6, 8)

    fill(dataset, cache, CacheSettings(SIZE), encode, word_vectors)
    before, count = {path: path.read_bytes() for path in cache.folder.iterdir()}, len(encoded)
    with pytest.raises(Trouble, match=rf"cache was begun with other settings \(old -> new\): {difference}\."):
        fill(dataset, cache, CacheSettings(**{"size": SIZE} | changed), encode, word_vectors)
    assert len(encoded) == count and {path: path.read_bytes() for path in cache.folder.iterdir()} == before


def test_datasets_and_caches_that_cannot_be_used_are_refused(dataset, tmp_path):
    (dataset / "videos" / "two.mkv").unlink()
    with pytest.raises(Trouble, match=r"missing: two.mkv \(1 of 2\)"):
        captions(dataset)
    with pytest.raises(Trouble, match='must be json such as {"video001.mp4": "a caption"}'):
        captions(tmp_path / "nowhere")
    cache = Cache(tmp_path / "cache")
    for index in (1, 2):
        cache.write(f"clip{index}", seeded(16, index, 6, 8), word_vectors("x"), "x")
    with pytest.raises(Trouble, match=r"has \(16, 1, 6, 8\) \(clip1\), \(16, 2, 6, 8\) \(clip2\)"):
        Cache(cache.folder).latent_shape()
    with pytest.raises(Trouble, match="has none"):
        Cache(tmp_path / "empty").latent_shape()


@pytest.mark.parametrize("texts", [["one.mkv"], {"one.mkv": None}, {"one.mkv": ["a", "lake"]}])
def test_captions_that_are_no_texts_are_refused(dataset, texts):
    (dataset / "captions.json").write_text(json.dumps(texts))
    with pytest.raises(Trouble, match='must be json such as {"video001.mp4": "a caption"}'):
        captions(dataset)


def test_a_clip_that_was_half_copied_is_named(dataset, tmp_path):
    cache = Cache(tmp_path / "cache")
    cache.write("clip", seeded(16, 1, 6, 8), word_vectors("x"), "x")
    file = cache.folder / "clip.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    cut = Cache(cache.folder)
    for read in (cut.latent_shape, lambda: cut.clip(0), lambda: cut.holds("clip", "x")):
        with pytest.raises(Trouble, match=r"clip.safetensors cannot be read: .*Delete it with all other clips"):
            read()
    with pytest.raises(Trouble, match=r"empty.safetensors cannot be read"):
        cut.empty_text()


def test_a_video_that_cannot_be_read_is_named(dataset, tmp_path):
    (dataset / "videos" / "two.mkv").write_bytes(b"no video")
    cache = Cache(tmp_path / "cache")
    with pytest.raises(Trouble, match=r"two.mkv cannot be read: .*, or remove it from captions.json"):
        fill(dataset, cache, CacheSettings(SIZE), lambda clip: seeded(16, 2, 6, 8), word_vectors)
    assert Cache(cache.folder).names == ["one.mkv-000", "one.mkv-001"]
    with pytest.raises(Trouble, match="stride must be at least 1, got 0"):
        CacheSettings(SIZE, stride=0)
