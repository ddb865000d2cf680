"""Times one evaluation of a Wan model by a few of its blocks, in the proportions of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import comfy.model_management as mm
import comfy.sd
import torch
from torch import Tensor

from ...plan.flops import TEXT_TOKENS, FLOPs
from ...plan.memory import MAX_PIECES, ActivationMemory
from ...plan.speed import EvaluationTime
from ...rules.choice import Settings
from ...sizes import SPATIAL_RATIO, VideoSize, latent_shape
from ...wan import WanShape
from ..attention.extras import build
from ..attention.patch import apply, require_wan, runtime_of
from ..memory import is_out_of_memory
from ..plan import ITEMSIZE, flops_of
from ..wan_model import shape_of, token_grid
from .random_weights import TEXT_CHANNELS, random_base, random_extras
from .timing import MOST_REPEATS, timed

# Block 0 is dense, two even and two odd ones run UltraGen's rule: a sixth of the published 6, 12 and 12. Under
# T3-Video's rule each has other windows, which the further blocks repeat.
MEASURED_BLOCKS, ULTRAGEN_BLOCKS = 5, [1, 2, 3, 4]
# Fewer are measured where more would not fit, or would take the few blocks longer than LONGEST seconds.
FRAMES = 81, 57, 33, 17, 9
LONGEST, BUDGET = 15.0, 8.0  # seconds of the few blocks; of all repeats of them
SIGMAS = torch.linspace(1, 0, 2 + MOST_REPEATS)


def few_blocks(shape: WanShape, device: torch.device) -> dict[str, object]:
    """Return {rule: patched model of MEASURED_BLOCKS blocks}, with random weights. shape: of the whole model."""
    state = random_base(replace(shape, blocks=MEASURED_BLOCKS), device)
    base = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.bfloat16})
    extras = random_extras(shape.channels, ULTRAGEN_BLOCKS)
    trained = apply(base, Settings(rule="ultragen"), build(extras, lambda: extras))
    return {"ultragen": trained, "t3": apply(base, Settings(rule="t3"))}


def evaluation_flops(model, size: VideoSize, blocks: int) -> FLOPs:
    """FLOPs of an evaluation of the whole model of `blocks` blocks. model: from `few_blocks`."""
    shape = shape_of(require_wan(model))
    grid = token_grid(latent_shape(size, 1, shape.out_channels, SPATIAL_RATIO[shape.out_channels]))
    planned, _ = flops_of(runtime_of(model).rule.groups(grid), grid, shape)
    return planned * (blocks // MEASURED_BLOCKS)


def measure_evaluation(model, size: VideoSize, blocks: int, device: torch.device) -> EvaluationTime | None:
    """Time a model from `few_blocks` as one of `blocks` blocks, with as many of FRAMES, up to size.frames, as fit.

    Returns None where not even the fewest frames fit.
    """
    with evaluating(model, SIGMAS) as evaluate:

        def at(frames: int) -> EvaluationTime | None:
            return _measured(model, evaluate, size._replace(frames=frames), blocks, device)

        *more, fewest = FRAMES
        first = at(fewest)
        if first is None:
            return None
        limit = LONGEST * blocks / MEASURED_BLOCKS * first.flops.total / first.seconds
        for frames in more:
            fits = frames <= size.frames and evaluation_flops(model, size._replace(frames=frames), blocks).total < limit
            if fits and (found := at(frames)):
                return found
        return first


def _measured(model, evaluate: Callable, size: VideoSize, blocks: int, device: torch.device) -> EvaluationTime | None:
    """None where memory runs out."""
    dm, free = require_wan(model), mm.get_free_memory(device)
    latent = latent_shape(size, 1, dm.out_dim, SPATIAL_RATIO[dm.out_dim])
    needs = ActivationMemory.of(shape_of(dm), token_grid(latent), 1, ITEMSIZE)
    if needs.needed(MAX_PIECES) > free:
        return None
    # In place of the other blocks, as far as ComfyUI would keep their weights on the device.
    held = min((blocks // MEASURED_BLOCKS - 1) * _block_bytes(model), max(0, free - needs.planned(True)))
    try:
        seconds = _seconds(model, evaluate, latent, held, blocks, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        seconds = None  # freed below, outside of this block, whose traceback holds the tensors
    mm.soft_empty_cache()
    return None if seconds is None else EvaluationTime(size, evaluation_flops(model, size, blocks), seconds)


def _seconds(model, evaluate: Callable, latent: tuple[int, ...], held: int, blocks: int, device: torch.device) -> float:
    """Seconds of the whole model: what is outside of blocks once, the measured blocks as often as it has them.

    held: bytes that are allocated meanwhile.
    """
    _, (x, text) = torch.empty(held, dtype=torch.uint8, device=device), inputs(latent, device)
    sigmas = itertools.cycle(SIGMAS)
    few = timed(lambda: evaluate(x, text, next(sigmas)), device, BUDGET)
    sigma = SIGMAS[:1].to(device)
    with without_blocks(require_wan(model)):
        rest = timed(lambda: model.model.apply_model(x, sigma, c_crossattn=text), device, BUDGET)
    return rest + max(0.0, few - rest) * blocks / MEASURED_BLOCKS


@contextmanager
def without_blocks(dm: torch.nn.Module) -> Iterator[None]:
    """Inside, a Wan model consists of its embeddings and its head."""
    blocks, dm.blocks = dm.blocks, torch.nn.ModuleList()
    try:
        yield
    finally:
        dm.blocks = blocks


def _block_bytes(model) -> int:
    """Bytes of the weights of a model's blocks, extras included."""
    extras = sum(patcher.model_size() for patcher in model.get_nested_additional_models())
    return extras + sum(weight.nbytes for weight in require_wan(model).blocks.parameters())


def inputs(latent: tuple[int, ...], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return a random latent and text (1, tokens, text channels) of one video."""
    return torch.randn(latent, device=device), 0.1 * torch.randn(1, TEXT_TOKENS, TEXT_CHANNELS, device=device)


@contextmanager
def evaluating(model, sigmas: Tensor) -> Iterator[Callable[..., Tensor]]:
    """Load a model, and yield evaluate(latent, text, sigma), which denoises as in a sampling run over `sigmas`."""
    mm.load_models_gpu([model, *model.get_nested_additional_models()])
    model.pre_run()
    options = model.model_options.get("transformer_options", {})
    options = {**options, "wrappers": model.wrappers, "sample_sigmas": sigmas}

    def evaluate(x: Tensor, context: Tensor, sigma: Tensor) -> Tensor:
        return model.model.apply_model(x, sigma[None].to(x.device), c_crossattn=context, transformer_options=options)

    try:
        yield evaluate
    finally:
        model.cleanup()
