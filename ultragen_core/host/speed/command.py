"""The command of measure.py: measures the card, prints one line, and keeps it for UltraGen Plan."""

from __future__ import annotations

import sys

import comfy.model_management as mm
import torch

from ...plan.report import GIB
from .measure import Workload, measure
from .records import records_file, write_speed

FREE_SHARE = 0.85  # of the card's memory; with less another program is using it


def main() -> None:
    """Run the command. Raises SystemExit, with the reason, where there is no GPU, or the user interrupts."""
    device = mm.get_torch_device()
    if device.type == "cpu":
        raise SystemExit(
            "This command measures a GPU, and ComfyUI uses none here. Run it with the Python that starts your ComfyUI, "
            "without --cpu."
        )
    try:
        measure_and_keep(device, Workload())
    except KeyboardInterrupt:
        raise SystemExit("Interrupted: nothing was written.") from None


def measure_and_keep(device: torch.device, workload: Workload) -> None:
    """Print progress to the standard error, and the line to the standard output even if no file can be written."""
    free, total = mm.get_free_memory(device), mm.get_total_memory(device)
    if free < FREE_SHARE * total:
        _say(
            f"Other programs hold {(total - free) / GIB:.1f} of {total / GIB:.1f} GiB. Close ComfyUI and games, and run"
            " this again, for times that hold for a free card."
        )
    made = measure(device, workload, lambda text: _say(f"Measuring {text} ..."))
    try:
        write_speed(records_file(), made.setup, made.speed)
        _say(f"Kept in {records_file()} for UltraGen Plan.")
    except OSError as error:
        _say(f"{records_file()} could not be written ({error}), so UltraGen Plan will show no times.")
    print(made.line(), flush=True)


def _say(text: str) -> None:
    """Keep the standard output for the line itself."""
    print(text, file=sys.stderr, flush=True)
