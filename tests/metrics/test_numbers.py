"""The metrics against their definitions and reference implementations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from helpers.support import seeded

from ultragen_core.metrics.clip import clip_score, temporal_consistency
from ultragen_core.metrics.detail import FACTORS, hd_lpips, hd_mse, without_detail
from ultragen_core.metrics.patches import CLIP, SIDE, PatchFeatures, frechet_distance


def picture(*size: int) -> torch.Tensor:
    return seeded(3, *size).sigmoid()


def test_hd_mse_is_the_error_of_every_factor_in_levels():
    frame = picture(96, 160)
    expected = [(frame - without_detail(frame[None], factor)[0]).square().mean() * 255**2 for factor in FACTORS]
    torch.testing.assert_close(hd_mse(frame), torch.stack(expected)[None])


@pytest.mark.parametrize("factor", FACTORS)
def test_only_what_is_finer_than_the_factor_is_lost(factor):
    """A wave along x: 16 factors long it stays, 1 factor long it goes and leaves the mean."""
    x = torch.arange(512) / factor
    long, short = (0.5 + 0.4 * torch.sin(2 * torch.pi * x / period) for period in (16, 1))
    waves = torch.stack([long, short])[:, None, None].expand(-1, 3, 64, -1)
    kept = without_detail(waves, factor)
    inside = slice(2 * factor, -2 * factor)
    assert (kept - waves)[0][..., inside].abs().max() < 0.05
    assert (kept[1][..., inside] - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("size", [(135, 240), (7, 40)])
def test_sides_need_not_divide_by_the_factor(size):
    assert without_detail(picture(*size)[None], 32).shape == (1, 3, *size)
    assert hd_mse(torch.full((3, *size), 0.25)).abs().max() < 1e-6


def test_hd_lpips_asks_for_each_factor_in_minus_one_to_one():
    frame, asked = picture(64, 64), []

    def distance(a, b):
        asked.append((a, b))
        return (a - b).abs().mean().reshape(1, 1, 1, 1)

    assert hd_lpips(frame, distance).shape == (1, len(FACTORS))
    for factor, (a, b) in zip(FACTORS, asked, strict=True):
        torch.testing.assert_close(a, 2 * frame[None] - 1)
        torch.testing.assert_close(b, 2 * without_detail(frame[None], factor) - 1)


def reference_distance(a: np.ndarray, b: np.ndarray) -> float:
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


def test_the_frechet_distance_is_scipys():
    a, b = 3 * seeded(200, 24) @ seeded(24, 24, seed=1), seeded(150, 24, seed=2) + 0.5
    assert frechet_distance(a, b) == pytest.approx(reference_distance(a.double().numpy(), b.double().numpy()), rel=1e-6)


@pytest.mark.parametrize("count", [2, 10, 100])
def test_equal_features_are_at_no_distance_and_shifted_ones_at_the_shift(count):
    """Also with fewer features than channels, where a square root of the covariances' product is inaccurate."""
    features = seeded(count, 40)
    assert abs(frechet_distance(features, features.flip(0))) < 1e-6
    assert frechet_distance(features, features + 0.5) == pytest.approx(40 * 0.25, rel=1e-5)


def test_patches_and_clips_are_cut_around_the_centre():
    seen = []

    def network(clips):
        seen.append(clips)
        return clips.mean((2, 3, 4))

    features = PatchFeatures(network)
    height, width = 2 * SIDE + 10, 5 * SIDE + 7
    frames = torch.rand(CLIP + 3, 3, height, width, generator=torch.Generator().manual_seed(0))
    found = [features(frame) for frame in frames]
    assert [index for index, rows in enumerate(found) if rows is not None] == [CLIP - 1]
    clips = torch.cat(seen)
    assert clips.shape == (10, 3, CLIP, SIDE, SIDE) and max(map(len, seen)) <= 8
    expected = frames[:CLIP, :, 5 + SIDE : 5 + 2 * SIDE, 3 + SIDE : 3 + 2 * SIDE].movedim(0, 1)
    assert ((clips[6] + 1) / 2 - expected).abs().max() < 0.5 / 255 + 1e-6
    torch.testing.assert_close(found[CLIP - 1], clips.mean((2, 3, 4)))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="224x224 pixels, got a video of 300x200"):
        PatchFeatures(torch.flatten)(torch.zeros(3, 200, 300))
    with pytest.raises(ValueError, match="at least 2 patches on each side, got 5 and 1"):
        frechet_distance(seeded(5, 4), seeded(1, 4))
    with pytest.raises(ValueError, match="needs at least 2 frames, got 1"):
        temporal_consistency(seeded(1, 4))


def test_clip_score_is_the_plain_cosine():
    frames, prompt = seeded(5, 16), seeded(16, seed=1)
    expected = [torch.dot(F.normalize(f, dim=0), F.normalize(prompt, dim=0)) for f in frames]
    torch.testing.assert_close(clip_score(3 * frames, 7 * prompt), torch.stack(expected))


def test_temporal_consistency_is_vbenchs():
    """VBench's rule step by step: each frame against the previous and the first, cosines clamped at 0."""
    frames = seeded(6, 3)
    cosines = [
        [F.cosine_similarity(frame, other, dim=0).item() for other in (before, frames[0])]
        for before, frame in zip(frames[:-1], frames[1:], strict=True)
    ]
    assert min(map(min, cosines)) < 0
    scores = [sum(max(0.0, cosine) for cosine in pair) / 2 for pair in cosines]
    assert temporal_consistency(frames).tolist() == pytest.approx(scores, abs=1e-6)
