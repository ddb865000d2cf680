"""Painted landscapes are the same on every run and at every size, and what they show can be read back from pixels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.support import seeded

from training.miniature.painter import paint, picture
from training.miniature.reading import read
from training.miniature.scenes import CHECKED, VALUES, Scene, every_scene, parse, scene, understood

FRESH = range(900_000, 900_100)  # numbers that no threshold of the reader was chosen by


@pytest.fixture(scope="module")
def clips():
    return {number: paint(number, 256, 144, 9) for number in FRESH}


def blurred(frames: torch.Tensor, sigma: float = 2) -> torch.Tensor:
    """Of pixels, with noise of 0.03: what a poor decoder might leave."""
    line = torch.exp(-((torch.arange(-6, 7) / sigma) ** 2) / 2)
    line = (line / line.sum()).expand(3, 1, 1, 13)
    x = F.pad(frames.movedim(-1, 1), (6, 6, 6, 6), mode="replicate")
    x = F.conv2d(F.conv2d(x, line, groups=3), line.mT, groups=3).movedim(1, -1)
    return x + 0.03 * seeded(*x.shape)


def rates(videos: dict[int, torch.Tensor]) -> dict[str, float]:
    """{attribute: share of videos that read as their caption says}."""
    right = Counter()
    for number, frames in videos.items():
        said, shown = parse(scene(number).caption), read(frames)
        right.update(name for name in CHECKED if said[name] == shown[name])
    return {name: right[name] / len(videos) for name in CHECKED}


def test_every_scene_has_a_caption_of_its_own_that_says_it():
    scenes = list(every_scene())
    captions = {one.caption for one in scenes}
    assert len(captions) == len(scenes) == 576
    assert {len(caption.split()) for caption in captions} == {7}
    assert all(Scene(**parse(one.caption)) == one for one in scenes)


def test_prompt_of_a_user():
    assert parse("A Foggy lake at DUSK with the moon") == {"weather": "foggy", "ground": "lake", "time": "dusk"}
    assert parse("") == {}


def test_prose_is_understood():
    prose = "Snow-covered mountains, high clouds: a lake at sunrise. Later there may be fog."
    assert parse(prose) == {"ridges": "peaks", "weather": "cloudy", "ground": "lake", "time": "dawn"}
    meant = understood(prose)
    assert (meant.time, meant.ground, meant.weather, meant.ridges) == ("dawn", "lake", "cloudy", "peaks")
    assert understood(prose) == meant
    assert parse("The moon over the water, a cloudy day at dusk") == {
        "time": "dusk",
        "ground": "lake",
        "weather": "cloudy",
    }
    assert understood("overexposed, low quality, subtitles") is None


def test_scenes_are_evenly_drawn():
    drawn = [scene(number) for number in range(3000)]
    for name, words in VALUES.items():
        counts = Counter(getattr(one, name) for one in drawn)
        assert all(abs(counts[word] * len(words) / 3000 - 1) < 0.15 for word in words)


def test_attribute_that_is_none():
    with pytest.raises(ValueError, match="ground is one of meadow, desert, lake, snow, not 'sea'"):
        replace(scene(0), ground="sea")


def test_painting_is_repeatable_moves_and_stays_in_range(clips):
    again = paint(FRESH[0], 256, 144, 9)
    assert again.shape == (9, 144, 256, 3) and again.dtype == torch.float32
    assert torch.equal(again, clips[FRESH[0]])
    assert all(0 <= frames.min() and frames.max() <= 1 for frames in clips.values())
    moved = [(frames[8] - frames[0]).abs().mean() for frames in clips.values()]
    assert 0.0001 < min(moved) and max(moved) < 0.05
    assert sum(moved) / len(moved) > 0.002


def test_longer_video_begins_as_the_shorter(clips):
    assert torch.allclose(paint(FRESH[1], 256, 144, 17)[:9], clips[FRESH[1]], atol=1e-5)


@pytest.mark.parametrize("number", FRESH[:24])
def test_nothing_is_painted_elsewhere_than_on_the_device(number):
    assert paint(number, 64, 36, 2, device="meta").device.type == "meta"


@pytest.mark.parametrize("number", FRESH[:12])
def test_same_scene_at_every_size(number, clips):
    large = paint(number, 640, 352, 9)[::8].movedim(-1, 1)
    small = F.interpolate(large, (144, 256), mode="bicubic", antialias=True).movedim(1, -1)
    assert (small - clips[number][::8]).abs().mean() < 0.005
    other = clips[number + 1][::8]
    assert (small - other).abs().mean() > 0.02


def test_pixels_say_what_the_caption_says(clips):
    assert min(rates(clips).values()) >= 0.95


def test_blurred_and_noisy_pixels_say_it_too(clips):
    assert min(rates({number: blurred(frames) for number, frames in clips.items()}).values()) >= 0.95


def test_large_pixels_say_it_too():
    assert min(rates({number: paint(number, 640, 352, 2) for number in FRESH}).values()) >= 0.95


@pytest.mark.parametrize("name", CHECKED)
def test_one_attribute_changed_is_read_and_no_other(name):
    wrong = 0
    for number in FRESH[:8]:
        shown = scene(number)
        for word in VALUES[name]:
            wanted = replace(shown, **{name: word})
            seen = read(picture(wanted, number, 256, 144, 3))
            wrong += seen != {one: getattr(wanted, one) for one in CHECKED}
    assert wrong <= 1


def test_noise_is_not_read_as_every_caption():
    """The reader judges by pixels: a grey video agrees with captions no more often than by chance."""
    seen = read(torch.full((9, 144, 256, 3), 0.5))
    agreeing = [one for one in every_scene() if all(getattr(one, name) == seen[name] for name in CHECKED)]
    assert len(agreeing) == 4
