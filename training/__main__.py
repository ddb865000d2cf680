"""Train on your own videos (training/README.md): `COMFYUI_PATH=/path/to/ComfyUI python3 -m training --help`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tools.console import Trouble
from ultragen_core.weights.files import WeightsError


def find_comfyui() -> None:
    """Put ComfyUI on sys.path, and let it use the CPU if there is no GPU."""
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui or not (Path(comfyui) / "comfy").is_dir():
        raise Trouble("Training uses ComfyUI's classes. Set COMFYUI_PATH to ComfyUI's folder.")
    sys.path.insert(0, comfyui)
    import comfy.cli_args
    import torch

    comfy.cli_args.args.cpu = not torch.cuda.is_available()


def parser() -> argparse.ArgumentParser:
    from training import commands
    from training.miniature import commands as miniature

    top = argparse.ArgumentParser(
        prog="python3 -m training", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    choices = top.add_subparsers(required=True)
    commands.add_to(choices)
    miniature.add_to(choices)
    return top


def main() -> None:
    # ComfyUI parses sys.argv on import: remove our arguments first.
    arguments, sys.argv = sys.argv[1:], sys.argv[:1]
    find_comfyui()
    options = parser().parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    try:
        main()
    except (Trouble, WeightsError) as trouble:
        sys.exit(str(trouble))
