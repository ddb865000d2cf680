"""Attention kernels next to ComfyUI's choice, fp8 weights next to bf16. Error against float32, time and peak memory of
layers (random weights) and of evaluations (random weights and the miniature); the miniature's scores; and how far its
videos are from those of its bf16 run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ultragen_core.attention.extras import ExtrasShape
from ultragen_core.grid import TokenGrid
from ultragen_core.rules.choice import COMFYUI
from ultragen_core.wan import WAN_1_3B

from .attention import CHANNELS, GRIDS, RANK
from .evaluation import latent_of
from .fp8_products import counted_fp8_products
from .kernel_layers import WINDOWS, attention, layers, report
from .random_model import random_checkpoint

PARTS = ("attention", "layer", "evaluation", "miniature", "drift")
UNCHANGED = "default"  # of weight_dtype
MINIATURE = Path(__file__).parents[2] / "training" / "miniature" / "weights" / "ultragen.safetensors"
MINIATURE_GRID = TokenGrid(5, 22, 40)  # 640x352, 17 frames


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("kernels", help=__doc__)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--kernels", nargs="*", default=["int8"], help="values of attention_kernel")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[UNCHANGED],
        help="values of weight_dtype, each with every kernel; fp8_e4m3fn_fast multiplies matrices in fp8",
    )
    parser.add_argument("--size", default="1080P x 81", choices=GRIDS)
    parser.add_argument("--rules", nargs="+", default=["ultragen", "dense"], choices=["ultragen", "t3", "dense"])
    parser.add_argument("--layers", type=int, default=WAN_1_3B.blocks, help="blocks of the evaluated model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.set_defaults(run=run)


class Variant(NamedTuple):
    """A model to compare. kernel: a value of attention_kernel. weights: a value of weight_dtype."""

    kernel: str = COMFYUI
    weights: str = UNCHANGED

    def __str__(self) -> str:
        return self.kernel if self.weights == UNCHANGED else f"{self.kernel}, {self.weights}"

    def load(self, path: Path, **model_options):
        """Load the UltraGen checkpoint at `path`. model_options: of ComfyUI; those of `weights` go before them."""
        from ultragen_core.host.attention.load import WEIGHT_DTYPES, load_model

        return load_model(path, "auto", model_options | WEIGHT_DTYPES[self.weights], self.kernel)


def variants_of(kernels: list[str], weights: list[str]) -> list[Variant]:
    """Return every kernel with all weights. The first is what others are compared with: ComfyUI's choice, bf16."""
    weights = list(dict.fromkeys([UNCHANGED, *weights]))
    return [Variant(kernel, one) for one in weights for kernel in (COMFYUI, *kernels)]


def run(options: argparse.Namespace) -> None:
    import comfy.model_management

    device, names = comfy.model_management.get_torch_device(), [COMFYUI, *options.kernels]
    variants = variants_of(options.kernels, options.weights)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(name, torch.__version__, "CUDA", torch.version.cuda, "| error: against float32, in the norm")
    with torch.inference_mode():
        if "attention" in options.parts:
            attention(names, WINDOWS, WAN_1_3B.heads, options.repeats, device)
        if "layer" in options.parts:
            layers(
                names,
                GRIDS[options.size],
                options.rules,
                options.repeats,
                ExtrasShape(CHANNELS, RANK, refined=True),
                device,
            )
        if "evaluation" in options.parts:
            with random_checkpoint(replace(WAN_1_3B, blocks=options.layers), device) as path:
                evaluations("random 1.3B", path, variants, GRIDS[options.size], options.repeats, device)
    with on_few_keys():
        if "miniature" in options.parts:
            with torch.inference_mode():
                evaluations("miniature", MINIATURE, variants, MINIATURE_GRID, options.repeats, device)
            miniature(variants, device)
        if "drift" in options.parts:
            drift(variants, device)


@contextmanager
def on_few_keys() -> Iterator[None]:
    """Inside, kernels compute all self-attention: the miniature's windows are smaller than what pays."""
    from ultragen_core.host.attention.kernels import KERNELS

    before = {kernel: kernel.fewest_keys for kernel in KERNELS.values() if kernel}
    try:
        for kernel in before:
            kernel.fewest_keys = 1
        yield
    finally:
        for kernel, fewest in before.items():
            kernel.fewest_keys = fewest


def evaluations(
    title: str, path: Path, variants: list[Variant], grid: TokenGrid, repeats: int, device: torch.device
) -> None:
    """Print one line for each variant: one evaluation of the UltraGen checkpoint at `path`.

    Unchanged weights are computed in bfloat16, others in the dtype that ComfyUI chooses.
    """
    from ultragen_core.host.speed.evaluation import inputs

    exact = Variant().load(path, dtype=torch.float32)
    x, context = inputs(latent_of(exact, grid), device)
    with evaluated(exact, x, context) as evaluate:
        reference = evaluate().cpu()
    del exact
    for variant in variants:
        model = variant.load(path, dtype=torch.bfloat16)
        with evaluated(model, x, context) as evaluate, counted_fp8_products() as count:
            report(f"{title}, {variant}", evaluate, reference, repeats, device)
        if count.calls:
            print(f"    computed in {model.model.manual_cast_dtype}; {count}")
        del model


@contextmanager
def evaluated(model, x: Tensor, context: Tensor) -> Iterator[Callable[[], Tensor]]:
    """Load a model alone; the function evaluates it once, and returns the velocity."""
    import comfy.model_management as mm

    from ultragen_core.host.speed.evaluation import evaluating

    mm.unload_all_models()
    sigmas = torch.tensor([0.9])
    with evaluating(model, sigmas) as evaluate:
        yield lambda: x - evaluate(x, context, sigmas[0])


def miniature(variants: list[Variant], device: torch.device, **changes) -> None:
    """Print the miniature's scores. changes: of training.miniature.kernel_scores.KernelScoring."""
    from training.miniature.kernel_scores import KernelScoring, scores, table

    scoring = KernelScoring(**changes)
    print(f"miniature, mean and deviation of {len(scoring.seeds)} seeds of {scoring.videos} videos:")
    print(table({str(one): scores(one.load(MINIATURE), scoring, device) for one in variants}), flush=True)


def drift(variants: list[Variant], device: torch.device, **changes) -> None:
    """Print how far each variant's final latents are from the first one's, in bf16; float32 and another seed for
    comparison. changes: of training.miniature.drift.Trajectories.
    """
    from training.miniature.drift import Trajectories, distance, final_latents

    chosen, first = Trajectories(**changes), variants[0].load(MINIATURE, dtype=torch.bfloat16)
    reference = final_latents(first, chosen, device)
    found = {"another seed": final_latents(first, chosen, device, other_noise=True)}
    del first
    for name, variant, dtype in [
        (f"{variants[0]}, float32", variants[0], torch.float32),
        *((str(variant), variant, torch.bfloat16) for variant in variants[1:]),
    ]:
        found[name] = final_latents(variant.load(MINIATURE, dtype=dtype), chosen, device)
    print(
        f"miniature, final latents after {chosen.steps} steps next to those of {variants[0]} in bf16, relative L2, mean"
        f" and deviation of {len(chosen.seeds)} seeds of {chosen.videos} videos:"
    )
    for name, latents in found.items():
        print(f"{name:40} {distance(latents, reference)}", flush=True)
