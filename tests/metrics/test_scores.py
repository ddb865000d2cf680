"""From frames to a report: values per video and over all videos, and their display."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.support import seeded

from ultragen_core.metrics.clip import clip_score, temporal_consistency
from ultragen_core.metrics.detail import hd_mse
from ultragen_core.metrics.patches import frechet_distance
from ultragen_core.metrics.report import LABELS, numbers, picture, text
from ultragen_core.metrics.scores import METRICS, Networks, VideoScores, score, score_video


def distance(a, b):
    return (a - b).abs().mean((1, 2, 3), keepdim=True)


def features(clips):
    """Means and deviations of the colours, which distinguish clips."""
    return torch.cat([clips.mean((2, 3, 4)), clips.std((2, 3, 4))], dim=1)


def embed(frame):
    return frame[:, ::32, ::32].reshape(1, -1) - 0.5


NETWORKS = Networks(distance, features, embed)


def video(seed: int, frames: int = 17, width: int = 460) -> torch.Tensor:
    return seeded(frames, 224, width, 3, seed=seed).sigmoid()


@pytest.fixture(scope="module")
def prompt():
    return seeded(embed(torch.zeros(3, 224, 460)).shape[1], seed=9)


@pytest.fixture(scope="module")
def scores(prompt):
    videos = [score_video(video(seed), METRICS, NETWORKS, prompt) for seed in (1, 2)]
    return score(videos, [score_video(video(3), {"hd_fvd"}, NETWORKS)])


def test_every_metric_is_the_mean_over_frames_and_then_over_videos(scores, prompt):
    frames = torch.cat([video(1), video(2)]).movedim(-1, 1)
    parts = torch.cat([hd_mse(frame) for frame in frames])
    embedded = [torch.cat([embed(frame) for frame in some]) for some in frames.split(17)]
    expected = {
        "hd_mse": parts.sum(1).mean(),
        "clip_score": clip_score(torch.cat(embedded), prompt).mean(),
        "temporal_consistency": torch.cat([temporal_consistency(some) for some in embedded]).mean(),
    }
    for metric, value in expected.items():
        assert scores.mean(metric) == pytest.approx(value.item(), rel=1e-5)
    first = numbers(scores)["videos"][0]
    assert list(first["hd_mse_by_factor"].values()) == pytest.approx(parts[:17].mean(0).tolist(), rel=1e-5)
    assert first["hd_lpips"] == pytest.approx(sum(first["hd_lpips_by_factor"].values()), rel=1e-5)


def test_hd_fvd_is_between_the_patches_of_all_videos_and_of_all_references(scores):
    def patches(seed):
        clip = (video(seed)[:16, :, 6:454] * 255).round().movedim(-1, 0)
        return features(torch.stack(clip.chunk(2, dim=-1)) / 127.5 - 1)

    assert scores.patches == (4, 2)
    assert scores.hd_fvd == pytest.approx(frechet_distance(torch.cat([patches(1), patches(2)]), patches(3)), rel=1e-4)


def test_only_what_is_wanted_is_measured_and_shown(scores):
    only = score([score_video(video(1, 2), ["temporal_consistency"], NETWORKS)], [])
    assert numbers(only).keys() == {"temporal_consistency", "videos"}
    assert len(text(only).splitlines()) == 3 and picture(only).shape[1] < picture(scores).shape[1]


def test_the_report_names_every_metric_with_its_value(scores):
    found = json.loads(json.dumps(numbers(scores)))
    lines = text(scores).splitlines()
    assert lines[0] == "2 videos: 17 frames of 460x224"
    rows = iter(lines[2:])
    for metric in METRICS:
        line, digits = next(rows), LABELS[metric].digits
        assert line.startswith(LABELS[metric].name) and f"{found[metric]:.{digits}f}" in line
        if metric != "hd_fvd":  # which is one number over all videos
            each = ", ".join(f"{video[metric]:.{digits}f}" for video in found["videos"])
            assert next(rows) == f"  videos 1 to 2: {each}"
    assert list(rows) == []
    image = picture(scores)
    assert image.shape[0] == 1 and image.shape[3] == 3 and 0 <= image.min() < 0.5 and image.max() == 1


@pytest.mark.parametrize("curve", [[0.5], [0.5, 0.5], [0.0, 1.0, 0.25]])
def test_a_curve_is_drawn_between_its_lowest_and_highest_value(scores, curve):
    flat = torch.tensor(curve)
    drawn = picture(score([VideoScores(3, 64, 64, {"clip_score": flat}, {}, None)], []))[0]
    blue = ((drawn[..., 2] - drawn[..., 0]) > 0.4).nonzero()
    assert len(blue) > 300
    assert (blue[:, 0].max() - blue[:, 0].min() > 50) == (len(set(curve)) > 1)


def test_each_of_a_few_videos_has_its_value_and_its_colour():
    def drawn(count: int) -> tuple[int, set[tuple[int, ...]]]:
        videos = [VideoScores(2, 64, 64, {"hd_mse": torch.tensor([index, 2.0])}, {}, None) for index in range(count)]
        pixels = (255 * picture(score(videos, []))[0]).round().int().flatten(0, 1).unique(dim=0).tolist()
        return len(text(score(videos, [])).splitlines()), {tuple(pixel) for pixel in pixels}

    blue, red = (31, 119, 180), (214, 39, 40)
    lines, colours = drawn(1)
    assert lines == 3 and blue in colours and red not in colours
    lines, colours = drawn(2)
    assert lines == 4 and {blue, red} <= colours
    assert drawn(11)[0] == 3


@pytest.mark.parametrize(
    ("frames", "wanted", "message"),
    [(0, ["hd_mse"], "at least one frame"), (15, ["hd_fvd"], "at least 16 frames, but the video has 15")],
)
def test_videos_too_short_are_refused(frames, wanted, message):
    with pytest.raises(ValueError, match=message):
        score_video(video(1, frames, 224), wanted, NETWORKS)
