"""The GPU that the benchmarks run on: what measure.py measures, an emulated small card, ComfyUI's dynamic VRAM."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

GIB = 2**30
# Holds all of the card's memory except what a small card would have, until its stdin is closed.
HOLDER = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("card", help="what measure.py measures: one line about this card")
    parser.add_argument("--usable", type=float, help="emulate a small card with so many GiB for this program")
    parser.add_argument("--native", action="store_true", help="PyTorch's allocator, as ComfyUI's --disable-cuda-malloc")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ultragen_core.host.speed.command import main

    with small_card(options.usable):
        main()


def card_name() -> str:
    """The card's name in docs/data: H100 for NVIDIA H100 80GB HBM3."""
    return re.sub(r" \d+GB.*", "", torch.cuda.get_device_name().removeprefix("NVIDIA "))


@contextmanager
def small_card(usable: float | None) -> Iterator[None]:
    """Leave `usable` GiB of the card to this process; None leaves all."""
    if usable is None:
        yield
        return
    command = [sys.executable, "-c", HOLDER, str(usable)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        free, _ = torch.cuda.mem_get_info()
        print(f"emulated card: {free / GIB:.2f} GiB free after this program's own context")
        yield
    finally:
        holder.terminate()


def dynamic_vram() -> None:
    """Switch dynamic VRAM on as ComfyUI's main.py does. __main__.py does the part before PyTorch is imported."""
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.control

    device = comfy.model_management.get_torch_device()
    assert comfy_aimdo.control.init_devices([(device.index, 0)]), "no working comfy-aimdo"
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
