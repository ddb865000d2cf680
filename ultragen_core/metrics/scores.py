"""From frames to numbers: one pass over each video, a frame at a time."""

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
    """What the metrics look through; None for those that no wanted metric needs.

    distance: as `lpips.LPIPS`. features: as `i3d.I3D`. embed: CLIP's (3, height, width) in 0..1 -> (1, channels).
    """

    distance: Callable[[Tensor, Tensor], Tensor] | None = None
    features: Callable[[Tensor], Tensor] | None = None
    embed: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class VideoScores:
    """One video: values frame by frame, their parts by factor (mean over the frames), and features for HD-FVD."""

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
    """All videos, and the one number that belongs to no single video. `patches`: how many it came from, and of how many
    reference patches.
    """

    videos: list[VideoScores]
    hd_fvd: float | None = None
    patches: tuple[int, int] | None = None

    def mean(self, metric: str) -> float | None:
        """Over the videos; None if it was not asked for."""
        if metric == HD_FVD:
            return self.hd_fvd
        if metric not in self.videos[0].curves:
            return None
        return sum(video.mean(metric) for video in self.videos) / len(self.videos)


def score(videos: Sequence[VideoScores], references: Sequence[VideoScores]) -> Scores:
    """Put videos together; HD-FVD where their features are there."""
    if videos[0].features is None:
        return Scores(list(videos))
    ours, theirs = (torch.cat([video.features for video in group]) for group in (videos, references))
    return Scores(list(videos), frechet_distance(ours, theirs), (len(ours), len(theirs)))


def score_video(
    frames: Iterable[Tensor], wanted: Collection[str], networks: Networks, prompt: Tensor | None = None
) -> VideoScores:
    """Go through a video once.

    frames: (height, width, 3) in 0..1, on the device of the networks. wanted: names of METRICS. prompt: CLIP's
    embedding (channels), for the CLIP score. ValueError for a video that is too short or too small for a metric.
    """
    meters = _meters(wanted, networks)
    rows: dict[str, list[Tensor]] = {name: [] for name in meters}
    count, height, width = 0, 0, 0
    for frame in frames:
        count, (height, width) = count + 1, frame.shape[:2]
        for name, meter in meters.items():
            found = meter(frame.movedim(-1, 0))
            if found is not None:
                rows[name].append(found.float().cpu())
    if not count:
        raise ValueError("Metrics need at least one frame, got a video of none. Connect another video.")
    if HD_FVD in wanted and not rows[HD_FVD]:
        raise ValueError(f"HD-FVD compares clips of {CLIP} frames, got a video of {count}. Leave hd_fvd off.")
    return _summed_up({name: torch.cat(found) for name, found in rows.items()}, wanted, (count, width, height), prompt)


def check_size(name: str, width: int, height: int, wanted: Collection[str]) -> None:
    """Raise ValueError where the frames of a video are too small for a metric."""
    for metric, side in {HD_LPIPS: SMALLEST, HD_FVD: SIDE}.items():
        if metric in wanted and min(width, height) < side:
            raise ValueError(
                f"{name} has frames of {width}x{height}, {metric} needs at least {side}x{side} pixels. Give it larger"
                f" videos or leave {metric} off."
            )


def check_length(name: str, frames: int, wanted: Collection[str]) -> None:
    """Raise ValueError where a video has too few frames for a metric."""
    for metric, least in {HD_FVD: CLIP, CONSISTENCY: 2}.items():
        if metric in wanted and frames < least:
            raise ValueError(f"{name} has {frames} frames, {metric} needs at least {least}. Leave {metric} off.")
    if not frames:
        raise ValueError(f"{name} has no frames. Connect another one.")


def _meters(wanted: Collection[str], networks: Networks) -> dict[str, Callable[[Tensor], Tensor | None]]:
    """By name, what takes a frame (3, height, width) and gives rows; CLIP's two metrics share one."""
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
