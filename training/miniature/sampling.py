"""Sample latents for the captions of scenes, as a user would: in one pass, or in two."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.miniature.scenes import scene
from training.objective import generator, padded
from training.preview import denoised
from ultragen_core.sampling import flow_sigmas

from .latents import words

CFG = 3.0

Paint = Callable[[Sequence[int]], Tensor]
"""paint(numbers of scenes) -> latents (b, c, t, h, w) as the transformer gives them."""


class Patched:
    """velocity(x, t, text, condition) of a patched ComfyUI model, as a sampler evaluates it."""

    def __init__(self, model):
        self._model = model
        comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()])

    def __call__(self, x: Tensor, t: Tensor, text: Tensor, condition: Tensor | None = None) -> Tensor:
        model, sigma = self._model, (t / 1000)[:, None, None, None, None]
        options = {**model.model_options.get("transformer_options", {}), "wrappers": model.wrappers}
        model.pre_run()
        try:
            # ComfyUI chooses the model's precision itself.
            with torch.autocast(x.device.type, enabled=False):
                denoised = model.model.apply_model(
                    x, t / 1000, c_concat=condition, c_crossattn=text, transformer_options=options
                )
        finally:
            model.cleanup()
        return (x - denoised) / sigma


@dataclass(frozen=True)
class Sampler:
    """Euler steps of flow matching with CFG, from noise that depends on a scene's number and on `noise` alone.

    model: velocity(x, t, text), or with `condition` velocity(x, t, text, condition).
    shape: of a latent, (c, t, h, w). steps, shift: the schedule.
    condition: maps numbers to an image-to-video model's input besides noise, (b, 20, t, h, w).
    noise: names the noise; another name gives other noise for the same scene.
    """

    model: Callable
    shape: tuple[int, ...]
    steps: int
    shift: float
    device: torch.device
    condition: Callable[[Sequence[int]], Tensor] | None = None
    noise: str = "noise"

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        return self._denoised(numbers, self._noise(numbers), self._sigmas())

    def refined(self, numbers: Sequence[int], latents: Tensor, denoise: float) -> Tensor:
        """Enlarge latents (b, c, t, h, w), add noise and sample the last `denoise` of the steps (0 to 1)."""
        flat = latents.transpose(1, 2).flatten(0, 1)
        large = F.interpolate(flat, self.shape[-2:], mode="bicubic").unflatten(0, (len(latents), -1)).transpose(1, 2)
        sigmas = self._sigmas()[-1 - round(denoise * self.steps) :]
        return self._denoised(numbers, torch.lerp(large, self._noise(numbers), sigmas[0]), sigmas)

    def _denoised(self, numbers: Sequence[int], x: Tensor, sigmas: Tensor) -> Tensor:
        model = self.model
        if self.condition is not None:
            model = functools.partial(model, condition=self.condition(numbers).repeat(2, 1, 1, 1, 1))  # twice for CFG
        texts = nn.utils.rnn.pad_sequence([words(scene(number).caption) for number in numbers], batch_first=True)
        texts = padded(texts.to(self.device))
        return denoised(model, x, texts, torch.zeros_like(texts), sigmas, CFG)

    def _noise(self, numbers: Sequence[int]) -> Tensor:
        random = [generator(self.device, self.noise, number) for number in numbers]
        return torch.stack([torch.randn(*self.shape, generator=one, device=self.device) for one in random])

    def _sigmas(self) -> Tensor:
        return flow_sigmas(self.steps, self.shift).to(self.device)


@dataclass(frozen=True)
class TwoPass:
    """A small video by `first`, enlarged and refined by the last `denoise` of the steps of `second`."""

    first: Paint
    second: Sampler
    denoise: float

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        return self.second.refined(numbers, self.first(numbers), self.denoise)
