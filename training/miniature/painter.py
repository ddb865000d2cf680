"""Paint scenes: layered ridges under a sky, soft and slowly moving, the same at every size.

Edges are as soft as a pixel is high. Canvases are (3, frames, height, width).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.miniature.scenes import Scene, scene

from .view import ASPECT, HORIZON, View, chance

SHORE = 0.64
SHADES = {"dawn": "2c2440", "noon": "1c2c44", "dusk": "180c20", "night": "8090bc"}
GRAIN = 64  # cells of a texture, along each side


def paint(number: int, width: int, height: int, frames: int, device: torch.device | str = "cpu") -> Tensor:
    """Paint the video of a scene's number at 15 fps: (frames, height, width, 3) float32 in 0..1."""
    return picture(scene(number), number, width, height, frames, device)


def picture(
    shown: Scene, number: int, width: int, height: int, frames: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Paint a given scene with the shapes of a number. Returns the same as `paint`."""
    view = View(shown, number, width, height, frames, torch.device(device))
    canvas = _sky(view)
    canvas = _shine(view, _clouds(view, canvas))
    canvas = _ridges(view, canvas)
    canvas = _water(view, canvas) if shown.ground == "lake" else _swells(view, canvas)
    canvas = _fog(view, canvas)
    canvas = _shade(view, canvas)
    return canvas.clamp(0, 1).movedim(0, -1).contiguous()


def _step(value: Tensor, softness: float) -> Tensor:
    """Smoothstep from 0 to 1 around 0, as wide as `softness`."""
    share = (value / softness + 0.5).clamp(0, 1)
    return share * share * (3 - 2 * share)


def _sky(view: View) -> Tensor:
    top, middle, low = view.colors[:3]
    down = (view.seen_y / HORIZON).clamp(0, 1).expand(view.frames, view.height, -1)
    sky = torch.lerp(torch.lerp(top, middle, _step(down - 0.3, 0.7)), low, _step(down - 0.62, 0.5))
    sky = sky.expand(-1, -1, -1, view.width)
    return _stars(view, sky) if (view.shown.time, view.shown.weather) == ("night", "clear") else sky


def _stars(view: View, sky: Tensor) -> Tensor:
    across, down, bright = view.chance(4, 3, 16, 1, 1) / (2 * math.pi)
    distance = torch.hypot(view.x - across * ASPECT, view.y - 0.4 * down)
    stars = ((0.3 + 0.5 * bright) * torch.exp(-((distance / 0.007) ** 2))).sum(0)
    return torch.lerp(sky, view.colors[3], stars.clamp(0, 1))


def _texture(view: View, purpose: int, x: Tensor, y: Tensor, smooth: float) -> Tensor:
    """Sample cloudy noise at x, y: mean 0, deviation 1, period of 4 heights. Shape of x and y broadcast."""
    wave = torch.fft.fftfreq(GRAIN, 1 / GRAIN)
    length = torch.hypot(wave[:, None], wave)
    power = length.clamp(min=1) ** -smooth * (length >= 2)
    cells = torch.fft.ifft2(torch.polar(power, chance(view.number, purpose, GRAIN, GRAIN))).real
    cells = F.pad((cells / cells.std())[None, None], (2, 2, 2, 2), mode="circular").to(view.device)
    x, y = torch.broadcast_tensors(x, y)
    places = torch.stack((x, y), -1).remainder(4) * (GRAIN / 4)
    grid = (places + 2) * (2 / (GRAIN + 3)) - 1
    return F.grid_sample(cells.expand(len(grid), -1, -1, -1), grid, mode="bicubic", align_corners=True)[:, 0]


def _clouds(view: View, canvas: Tensor) -> Tensor:
    if view.shown.weather != "cloudy":
        return canvas
    x = view.panned(0.25) + 0.05 * view.seconds
    y = view.seen_y.expand(view.frames, -1, -1)
    thick = _texture(view, 2, x, 2 * y, 2.1)
    above = _texture(view, 2, x, 2 * y - 0.09, 2.1)
    # Give every sky the same amount of clouds.
    first = thick[0, : view.height // 2]
    thick, above = ((layer - first.mean()) / first.std() for layer in (thick, above))
    # The sun stays in view: clouds thin out around it.
    cover = _step(thick - 0.15, 1.6) * (1 - 0.9 * torch.exp(-((view.light_distance / 0.2) ** 2)))
    shade = _step(above - 0.9, 2.6)
    color = torch.lerp(view.colors[6], torch.lerp(view.colors[1], view.colors[5], 0.5) * 0.85, 0.75 * shade)
    return torch.lerp(canvas, color, 0.9 * cover * (1 - 0.5 * _step(y - 0.45, 0.4)))


def _shine(view: View, canvas: Tensor) -> Tensor:
    """Paint the sun or the moon and its glow."""
    night = view.shown.time == "night"
    radius = 0.06 if night else 0.07
    beyond = (view.light_distance - radius).clamp(min=0)
    glow = 0.45 * torch.exp(-beyond / 0.05) + (0.08 if night else 0.15) * torch.exp(-((beyond / 0.25) ** 2))
    disc = _step(radius - view.light_distance, 1 / view.height + 0.012)
    return torch.lerp(canvas, view.colors[3], torch.maximum(glow, disc))


def _profile(view: View, layer: int, x: Tensor) -> Tensor:
    """Return the height profile of a ridge, about -1..1: a fractal of round or pointed waves."""
    phases = view.chance(10 + layer, 5)
    peaks = view.shown.ridges == "peaks"
    line = torch.zeros_like(x)
    for octave in range(4 if peaks else 2):
        wave = torch.sin((3.4 if peaks else 2.2) * 1.16**layer * 2.03**octave * x + phases[octave])
        line = line + 0.45**octave * (torch.asin(0.985 * wave) / 1.4 if peaks else wave)
    return line * 0.6


def _ridges(view: View, canvas: Tensor) -> Tensor:
    low, dark = view.colors[2], torch.lerp(view.colors[4], view.ground, 0.45 if view.shown.ground == "snow" else 0.3)
    for layer in range(4):
        near = layer / 3
        tall = (0.13 if view.shown.ridges == "peaks" else 0.06) * (1 - 0.5 * near)
        top = 0.48 + 0.09 * near - tall * _profile(view, layer, view.panned(0.15 + 0.4 * near))
        under = view.seen_y - top
        # Valleys are hazier than crests, far ridges hazier than near ones.
        haze = 0.72 - 0.5 * near + 0.2 * _step(under - 0.08, 0.2)
        color = torch.lerp(dark, low, haze)
        if view.shown.ground == "snow":
            color = torch.lerp(color, view.ground, 0.7 - 0.7 * _step(under - 0.05, 0.13))
        canvas = torch.lerp(canvas, color, _step(under, 1.5 / view.height))
    return canvas


def _swells(view: View, canvas: Tensor) -> Tensor:
    """Paint open ground: three swells, brighter at the crest and towards the sun."""
    for layer, top in enumerate((SHORE, 0.71, 0.83)):
        x = view.panned(0.6 + 0.2 * layer)
        phase = (3.9 - 0.7 * layer) * x + view.chance(20 + layer)
        phase = phase + 0.6 * torch.sin(phase + view.chance(24 + layer))
        under = view.y - top + 0.028 * torch.sin(phase)
        lit = 1.06 - 0.24 * _step(under - 0.09, 0.26) + 0.16 * (ASPECT / 2 - view.light_x) * torch.cos(phase)
        color = torch.lerp(view.ground * lit, view.colors[2], 0.3 - 0.13 * layer)
        canvas = torch.lerp(canvas, color, _step(under, 1.5 / view.height))
    return canvas


def _water(view: View, canvas: Tensor) -> Tensor:
    depth = ((view.y - HORIZON) / (1 - HORIZON)).clamp(min=0)
    water = torch.lerp(canvas, view.ground, 0.35 + 0.4 * depth)
    water = water * (1 + 0.06 * view.ripples)
    path = torch.exp(-(((view.x - view.light_x) / (0.06 + 0.14 * depth)) ** 2))
    water = torch.lerp(water, view.colors[3], path * (0.3 + 0.2 * view.ripples))
    return torch.lerp(canvas, water, _step(view.y - HORIZON, 1.5 / view.height))


def _fog(view: View, canvas: Tensor) -> Tensor:
    if view.shown.weather != "foggy":
        return canvas
    y = view.y.expand(view.frames, -1, -1)
    drift = _texture(view, 3, view.panned(0.5) + 0.08 * view.seconds, 2.5 * y, 2.8)
    thick = (0.8 + 0.08 * drift) * (1 - 0.85 * _step(y - 0.78, 0.4)) * (1 - 0.25 * _step(0.2 - y, 0.5))
    # The sun burns a hole into it.
    thick = thick * (1 - 0.55 * torch.exp(-((view.light_distance / 0.12) ** 2)) * (y < HORIZON))
    return torch.lerp(canvas, view.colors[5], thick.clamp(0, 1))


def _shade(view: View, canvas: Tensor) -> Tensor:
    """Shade the left: a cloud's shadow by day, mist by night.

    Wan's transformer knows only relative positions. If nothing tells left from right before the sun appears out of the
    noise, a model does not learn the side that captions name and paints the sun anywhere.
    """
    share = 0.6 * (1 - _step(view.x / ASPECT - 0.25, 0.5))
    share = share * (1 - 0.9 * torch.exp(-((view.light_distance / 0.2) ** 2)))
    return torch.lerp(canvas, view.color(SHADES[view.shown.time]), share)
