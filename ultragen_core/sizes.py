"""Video sizes that the VAE and the transformer can hold."""

from __future__ import annotations

from typing import NamedTuple


def frames_text(frames: int) -> str:
    """81 -> "81 frames", 1 -> "1 frame"."""
    return f"{frames} frame{'s' if frames != 1 else ''}"


class VideoSize(NamedTuple):
    """Pixels and frames of a video."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {frames_text(self.frames)}"


PRESETS = {
    "1080P x 81 (1920x1088)": VideoSize(1920, 1088, 81),
    "2K x 81 (2560x1440)": VideoSize(2560, 1440, 81),
    "4K x 29 (3840x2160)": VideoSize(3840, 2160, 29),
    "4K x 81 (3840x2176)": VideoSize(3840, 2176, 81),
}


# Pixels per latent pixel and axis, by the latent's channels: Wan 2.1's VAE, Wan 2.2's.
SPATIAL_RATIO = {16: 8, 48: 16}


def pixels_of(latent_shape: tuple[int, ...]) -> tuple[int, int]:
    """(width, height) in pixels of a latent (b, c, t, h, w) or (b, c, h, w). Raises ValueError for any other."""
    if len(latent_shape) not in (4, 5) or not all(latent_shape):
        raise ValueError(
            f"A latent has 4 or 5 axes, none of them empty, got {tuple(latent_shape)}. Connect a Wan latent."
        )
    ratio = SPATIAL_RATIO.get(latent_shape[1])
    if ratio is None:
        raise ValueError(f"A Wan latent has 16 or 48 channels, got {latent_shape[1]}. Connect a Wan latent.")
    return latent_shape[-1] * ratio, latent_shape[-2] * ratio


def round_up(size: VideoSize, spatial: int = 8, temporal: int = 4) -> VideoSize:
    """The smallest possible size that holds `size`.

    spatial, temporal: pixels and frames that the VAE makes one latent pixel and frame (after the first frame, which
        stands alone). The transformer joins 2x2 latent pixels into one token, so width and height are multiples of 2 *
        spatial.
    """
    step = 2 * spatial

    def up(value: int, multiple: int) -> int:
        return -(-value // multiple) * multiple

    return VideoSize(up(size.width, step), up(size.height, step), up(size.frames - 1, temporal) + 1)


def latent_shape(
    size: VideoSize, batch: int, channels: int = 16, spatial: int = 8, temporal: int = 4
) -> tuple[int, ...]:
    """(batch, channels, t, h, w) of the latent of a rounded size."""
    return batch, channels, (size.frames - 1) // temporal + 1, size.height // spatial, size.width // spatial
