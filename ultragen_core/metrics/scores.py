"""Computes the metrics of videos in one pass, a frame at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .clip import clip_score, temporal_consistency
from .detail import hd_lpips, hd_mse
from .lpips import SMALLEST
from .patches import CLIP, SIDE, PatchFeatures, frechet_distance

HD_MSE, HD_LPIPS, HD_FVD = "hd_mse", "hd_lpips", "hd_fvd"
CLIP_SCORE, CONSISTENCY = "clip_score", "temporal_consistency"
METRICS = (HD_MSE, HD_LPIPS, HD_FVD, CLIP_SCORE, CONSISTENCY)


class Networks(NamedTuple):
    """The networks; None for those that no wanted metric needs.

    distance: such as `lpips.LPIPS`. features: such as `i3d.I3D`. embed: CLIP, (3, height, width) in
    0..1 -> (1, channels).
    """

    distance: Callable[[Tensor, Tensor], Tensor] | None = None
    features: Callable[[Tensor], Tensor] | None = None
    embed: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class VideoScores:
    """Results of one video. curves: metric -> values per frame. by_factor: metric -> mean per downscaling factor.
    features: HD-FVD's (patches, channels), or None.
    """

    frames: int
    width: int
    height: int
    curves: dict[str, Tensor]
    by_factor: dict[str, list[float]]
    features: Tensor | None

    def mean(self, metric: str) -> float:
        return self.curves[metric].mean().item()


@dataclass(frozen=True)
class Scores:
    """Results of all videos. hd_fvd: over all of them. patches: the numbers of measured and of reference patches."""

    videos: list[VideoScores]
    hd_fvd: float | None = None
    patches: tuple[int, int] | None = None

    def mean(self, metric: str) -> float | None:
        """Return the mean over the videos, or None if the metric was not measured."""
        if metric == HD_FVD:
            return self.hd_fvd
        if metric not in self.videos[0].curves:
            return None
        return sum(video.mean(metric) for video in self.videos) / len(self.videos)


def score(videos: Sequence[VideoScores], references: Sequence[VideoScores]) -> Scores:
    """Combine the results of videos, and compute HD-FVD against the references if there are features."""
    if videos[0].features is None:
        return Scores(list(videos))
    ours, theirs = (torch.cat([video.features for video in group]) for group in (videos, references))
    return Scores(list(videos), frechet_distance(ours, theirs), (len(ours), len(theirs)))


def score_video(
    frames: Iterable[Tensor],
    wanted: Collection[str],
    networks: Networks,
    prompt: Tensor | None = None,
    name: str = "the video",
) -> VideoScores:
    """Measure one video in one pass.

    frames: (height, width, 3) in 0..1, on the networks' device. wanted: names in METRICS. prompt: CLIP embedding
    (channels), for the CLIP score. name: for errors. Raises ValueError for a video too short or too small for a metric.
    """
    meters = _meters(wanted, networks)
    rows: dict[str, list[Tensor]] = {metric: [] for metric in meters}
    count, height, width = 0, 0, 0
    for frame in frames:
        count, (height, width) = count + 1, frame.shape[:2]
        for metric, meter in meters.items():
            values = meter(frame.movedim(-1, 0))
            if values is not None:
                rows[metric].append(values.float().cpu())
    check_length(name, count, wanted)
    found = {metric: torch.cat(values) for metric, values in rows.items()}
    return _summed_up(found, wanted, (count, width, height), prompt)


def check_size(name: str, width: int, height: int, wanted: Collection[str]) -> None:
    """Raise ValueError if a video's frames are too small for a wanted metric."""
    for metric, side in {HD_LPIPS: SMALLEST, HD_FVD: SIDE}.items():
        if metric in wanted and min(width, height) < side:
            raise ValueError(
                f"{metric} needs frames of at least {side}x{side} pixels, but {name} has {width}x{height}. Measure"
                f" larger videos, or switch {metric} off."
            )


def check_length(name: str, frames: int, wanted: Collection[str]) -> None:
    """Raise ValueError if a video has too few frames for a wanted metric."""
    for metric, least in {HD_FVD: CLIP, CONSISTENCY: 2}.items():
        if metric in wanted and frames < least:
            raise ValueError(f"{metric} needs at least {least} frames, but {name} has {frames}. Switch {metric} off.")
    if not frames:
        raise ValueError(f"{name} must have at least one frame, got none. Connect another one.")


def _meters(wanted: Collection[str], networks: Networks) -> dict[str, Callable[[Tensor], Tensor | None]]:
    """Return functions of a frame (3, height, width) by metric. Both CLIP metrics share one."""
    meters = {
        HD_MSE: hd_mse,
        HD_LPIPS: partial(hd_lpips, distance=networks.distance),
        HD_FVD: PatchFeatures(networks.features),
    }
    meters = {name: meter for name, meter in meters.items() if name in wanted}
    return meters | ({CLIP_SCORE: networks.embed} if {CLIP_SCORE, CONSISTENCY} & set(wanted) else {})


def _summed_up(
    rows: dict[str, Tensor], wanted: Collection[str], size: tuple[int, int, int], prompt: Tensor | None
) -> VideoScores:
    detail = {name: rows[name] for name in (HD_MSE, HD_LPIPS) if name in wanted}
    curves = {name: values.sum(1) for name, values in detail.items()}
    if CLIP_SCORE in wanted:
        curves[CLIP_SCORE] = clip_score(rows[CLIP_SCORE], prompt.cpu())
    if CONSISTENCY in wanted:
        curves[CONSISTENCY] = temporal_consistency(rows[CLIP_SCORE])
    by_factor = {name: values.mean(0).tolist() for name, values in detail.items()}
    return VideoScores(*size, curves, by_factor, rows.get(HD_FVD))
