"""Measurements on a GPU, one table per subject: `COMFYUI_PATH=/path/to/ComfyUI python3 -m tools.bench vae --help`."""

from __future__ import annotations

import argparse
import os
import sys


def as_comfyui_starts(dynamic_vram: bool, native: bool) -> None:
    """Do what ComfyUI's main.py does on an NVIDIA card before it imports PyTorch."""
    if not native:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "backend:cudaMallocAsync"
    if dynamic_vram:
        import comfy_aimdo.control

        comfy_aimdo.control.init()


def main() -> None:
    # ComfyUI parses sys.argv on import: remove our arguments first.
    arguments, sys.argv = sys.argv[1:], sys.argv[:1]
    if comfyui := os.environ.get("COMFYUI_PATH"):
        sys.path.insert(0, comfyui)
    as_comfyui_starts(dynamic_vram="--dynamic" in arguments, native="--native" in arguments)
    from . import attention, bits, card, gpus, kernels, model, page, training, vae

    parser = argparse.ArgumentParser(prog="python3 -m tools.bench", description=__doc__)
    subjects = parser.add_subparsers(required=True)
    vae.add_parser(subjects)
    attention.add_parser(subjects)
    card.add_parser(subjects)
    model.add_parser(subjects)
    kernels.add_parser(subjects)
    gpus.add_parser(subjects)
    bits.add_parser(subjects)
    page.add_parser(subjects)
    training.add_parser(subjects)
    chosen = parser.parse_args(arguments)
    chosen.run(chosen)


if __name__ == "__main__":
    main()
