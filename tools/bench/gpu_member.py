"""One member of several GPUs, alone on one GPU: the time of its part of an evaluation, and of its host, which no other
member delays. What others would send is made up, so the video is wrong.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from contextlib import nullcontext
from typing import NamedTuple

import torch

from ultragen_core.grid import TokenGrid

from .evaluation import latent_of
from .methods import prepared
from .model import SHIFT, random_prompts, sample

STEPS = 4  # the first builds plans and tables


class MemberTimes(NamedTuple):
    """The shortest of all steps but the first. seconds: until the GPU has done its part. host: until it is launched."""

    seconds: float
    host: float


class MadeUp:
    """Replaces a member's port to the exchange: returns as many tokens as it would, the member's own over and over.

    All alike they would let the GPU draw less power, and clock higher than in a real run.
    """

    def __init__(self, index: int):
        self.index, self.block = index, -1

    def __call__(self, x: torch.Tensor, moves) -> torch.Tensor:
        return x.index_select(1, torch.arange(moves.wanted[self.index], device=x.device) % x.shape[1])

    def evaluation(self):
        return nullcontext()


def measure(model, method: str, grid: TokenGrid, count: int, profile: bool) -> list[MemberTimes]:
    """The times of each of `count` members. profile: print where the host of the last one spends its time."""
    found = []
    for index in range(count):
        profiler = cProfile.Profile() if profile and index == count - 1 else None
        found.append(alone(model, method, grid, count, index, profiler))
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    return found


def alone(
    model, method: str, grid: TokenGrid, count: int, index: int, profiler: cProfile.Profile | None = None
) -> MemberTimes:
    """Member `index` of `count` in a run through ComfyUI's sampler. profiler: gets the last step."""
    from comfy.patcher_extension import WrappersMP

    from ultragen_core.host.attention.runtime import EVALUATION, GROUPS
    from ultragen_core.host.multigpu.evaluation import Inputs, Part, latent_slices
    from ultragen_core.host.sampling import with_shift
    from ultragen_core.host.speed.timing import synchronize

    chosen = with_shift(prepared(model, method), SHIFT)
    steps: list[MemberTimes] = []

    def part_of(
        executor, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **others
    ):
        options = dict(transformer_options)
        options.pop(GROUPS)
        evaluation = options.pop(EVALUATION)
        inputs = Inputs(x, timestep, context, clip_fea, time_dim_concat, options, {}, tuple(x.shape[-2:]), evaluation.t)
        part = Part(chosen.model, x.device, evaluation.runtime, inputs, count, MadeUp(index))
        synchronize(x.device)
        start = time.perf_counter()
        with profiler if profiler and len(steps) == STEPS - 1 else nullcontext():
            output = part.compute()
        host = time.perf_counter() - start
        synchronize(x.device)
        steps.append(MemberTimes(time.perf_counter() - start, host))
        video = x.new_zeros(x.shape[0], output.shape[1], *x.shape[2:])
        video[(..., *latent_slices(part.rectangle))] = output
        return video

    chosen.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "bench_member", part_of)
    chosen.model_options["transformer_options"][GROUPS] = "one member"
    sample(chosen, method, torch.zeros(latent_of(model, grid)), random_prompts(), STEPS, 1.0, lambda: None)
    later = steps[1:]
    return MemberTimes(min(step.seconds for step in later), min(step.host for step in later))
