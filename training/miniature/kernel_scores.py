"""Score the kept miniature as ComfyUI runs it: with one attention kernel or another, in one precision or another."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from training.miniature.scenes import CHECKED
from ultragen_core.sizes import VideoSize, latent_shape

from . import WEIGHTS, clip_vae, judge
from .latents import encoded, normalised
from .make import Miniature
from .reading import read
from .sampling import Patched, Sampler
from .scoring import Scoring

MEASURES = {"loss": "held-out loss", **{name: f"caption: {name}" for name in CHECKED}, "seam_ratio": "seam ratio"}


@dataclass(frozen=True)
class KernelScoring(Scoring):
    """size: of videos and clips. held_out: here of every seed, others each time. The metrics are left out."""

    size: VideoSize = Miniature.high


def scores(model, scoring: KernelScoring, device: torch.device) -> list[dict[str, float]]:
    """Return the measures of each seed. model: the miniature, loaded and patched."""
    recipe = Miniature()
    velocity = Patched(model)
    vae = clip_vae.new_vae(recipe.vae.width)
    vae.load_state_dict(load_file(WEIGHTS / "vae.safetensors"))
    vae = vae.to(device).eval().requires_grad_(False)
    shape = latent_shape(scoring.size, 1)[1:]
    sampler = Sampler(velocity, shape, scoring.sampling_steps, recipe.shift, device)
    borders, rows = _borders(scoring.size), []
    for seed in scoring.seeds:
        clips = judge.held_out(scoring.held_out, seed * scoring.held_out)
        numbers = judge.held_out(scoring.videos, seed * scoring.videos)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            latents = [(normalised(x),) for x in encoded(vae, clips, scoring.size, device, batch=1)]
            row = {"loss": judge.held_out_loss(velocity, latents, clips, scoring.levels, recipe.ultragen)}
            videos = list(judge.videos(sampler, vae, numbers))
        seams = statistics.mean(judge.seam_ratio(video, borders) for video in videos)
        rows.append(row | judge.agreement([read(video) for video in videos], numbers) | {"seam_ratio": seams})
    return rows


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return mean and standard deviation over the seeds, as Markdown, with the differences from the first model.

    results: of `scores`, by the model's name.
    """
    names = list(results)
    lines = [
        "| | " + " | ".join([*names, *(f"{name} - {names[0]}" for name in names[1:])]) + " |",
        "|" + "---|" * (2 * len(names)),
    ]
    for measure, heading in MEASURES.items():
        columns = [[row[measure] for row in results[name]] for name in names]
        apart = [[a - b for a, b in zip(column, columns[0], strict=True)] for column in columns[1:]]
        lines.append("| " + " | ".join([heading, *map(mean_and_deviation, [*columns, *apart])]) + " |")
    return "\n".join(lines)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation of several values, with four digits."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def _borders(size: VideoSize) -> set[int]:
    """Return the token columns where windows of the miniature meet."""
    recipe, columns = Miniature(), size.width // judge.TOKEN
    specs = [recipe.ultragen.spec(index).local for index in recipe.ultragen.hierarchical_blocks(recipe.blocks)]
    return judge.borders(columns, [(spec.num_windows, spec.shifted) for spec in specs])
