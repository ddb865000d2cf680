"""Measures the card: an evaluation of both rules, and the decode, in about a minute."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import comfy.model_management as mm
import torch

from ...plan.flops import FLOPs
from ...plan.report import GIB
from ...plan.speed import EvaluationTime, Speed, seconds_text
from ...sizes import PRESETS, VideoSize
from ...wan import WAN_1_3B, WanShape
from ..attention.backend import choose_attention
from ..attention.patch import require_wan
from . import decode
from .evaluation import MEASURED_BLOCKS, evaluation_flops, few_blocks, measure_evaluation
from .random_weights import random_vae
from .setup import Setup, setup_of
from .timing import forget_peak, peak_bytes

THREADS = 4  # more would not speed up a GPU, but keep the whole computer busy


class Workload(NamedTuple):
    """What is measured. sizes: by rule, smallest first. vae_width: channels of the VAE's last stage."""

    model: WanShape = WAN_1_3B
    vae_width: int = 96
    sizes: dict[str, VideoSize] = {
        "ultragen": PRESETS["1080P x 81 (1920x1088)"],
        "t3": PRESETS["4K x 81 (3840x2176)"],
    }


class Step(NamedTuple):
    """One evaluation of a rule at a size, of `flops` FLOPs. measured: None where no number of frames fits."""

    rule: str
    size: VideoSize
    flops: FLOPs
    measured: EvaluationTime | None

    def text(self, speed: Speed) -> str:
        where = f"{self.size.width}x{self.size.height} {self.rule}"
        if self.measured is None:
            return f"{where} does not fit"
        reduced = self.measured.size.frames < self.size.frames
        note = f" (from {self.measured.size.frames} frames)" if reduced else ""
        return f"{where} {seconds_text(speed.evaluation(self.flops))} a step{note}"


class Measurement(NamedTuple):
    """attention: the function that was chosen. peak: bytes of device memory, 0 where PyTorch does not count them."""

    setup: Setup
    attention: str
    workload: Workload
    steps: tuple[Step, ...]
    speed: Speed
    peak: int

    def line(self) -> str:
        """Return all of it in one line, for a table of cards."""
        card, driver, torch_version, comfyui, ultragen, _ = self.setup
        parts = [
            f"{card}, driver {driver}, torch {torch_version}, ComfyUI {comfyui}, UltraGen {ultragen}, attention"
            f" {self.attention}",
            *(step.text(self.speed) for step in self.steps),
        ]
        measured = [one.size for one in self.speed.decodes]
        for size in self.workload.sizes.values() if measured else ():
            note = "" if size in measured else f" (from {measured[-1].width}x{measured[-1].height})"
            parts.append(f"{size.width}x{size.height} decode {seconds_text(self.speed.decode(size))}{note}")
        if self.peak:
            parts.append(f"peak {self.peak / GIB:.1f} GiB")
        frames = max(size.frames for size in self.workload.sizes.values())
        parts.append(
            f"{frames} frames, CFG 1, extrapolated from {MEASURED_BLOCKS} of {self.workload.model.blocks} blocks and"
            f" {max(decode.FRAMES)} decoded frames, {self.speed.date}"
        )
        return "; ".join(parts)


@contextmanager
def few_threads() -> Iterator[None]:
    """Inside, PyTorch computes with at most THREADS threads on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@few_threads()
@torch.inference_mode()
def measure(device: torch.device, workload: Workload, report: Callable[[str], None]) -> Measurement:
    """Measure `workload`. report: called with what is about to be measured. Other models are unloaded."""
    mm.unload_all_models()
    forget_peak(device)
    blocks = workload.model.blocks
    models, steps = few_blocks(workload.model, device), []
    attention = choose_attention(require_wan(models["ultragen"]), {}, device).name
    for rule, size in workload.sizes.items():
        report(f"one evaluation, rule {rule}, {size}")
        found = measure_evaluation(models[rule], size, blocks, device)
        steps.append(Step(rule, size, evaluation_flops(models[rule], size, blocks), found))
    del models
    mm.unload_all_models()
    report("decode")
    decodes = decode.measure_decodes(random_vae(workload.vae_width), list(workload.sizes.values()), device)
    mm.unload_all_models()
    evaluations = tuple(step.measured for step in steps if step.measured)
    speed = Speed(datetime.date.today().isoformat(), evaluations, tuple(decodes))
    return Measurement(setup_of(device), attention, workload, tuple(steps), speed, peak_bytes(device))
