"""Measures this computer's GPU with random weights, in about a minute, and prints one line.

    python custom_nodes/FOLDER/measure.py [--comfyui PATH] [ComfyUI's own options]

Run it with the Python that starts your ComfyUI, while ComfyUI is not running, and with the options that you start it
with. UltraGen Plan then shows times for this card.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).absolute().parent  # not resolved: the folder in custom_nodes may be a link


def find_comfyui(given: str | None) -> Path:
    """Return ComfyUI's folder: the given one, that of COMFYUI_PATH, or the one that this file is in."""
    folder = Path(given or os.environ.get("COMFYUI_PATH") or HERE.parent.parent).absolute()
    if not (folder / "comfy" / "options.py").is_file():
        sys.exit(f"{folder} is not a ComfyUI folder: it has no comfy/. Name it with --comfyui PATH.")
    return folder


def set_environment(args: argparse.Namespace) -> None:
    """Set what ComfyUI's main.py sets for its options before torch is imported: which GPUs are visible."""
    os.environ["TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"] = "1"
    visible = args.cuda_device
    if visible is None and args.default_device is not None:
        visible = ",".join(map(str, sorted(range(32), key=lambda number: number != args.default_device)))
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"):
        if visible is not None:
            os.environ[name] = str(visible)
    if args.oneapi_device_selector is not None:
        os.environ["ONEAPI_DEVICE_SELECTOR"] = args.oneapi_device_selector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", metavar="PATH", help="ComfyUI's folder, if this one is not in its custom_nodes")
    options, sys.argv[1:] = parser.parse_known_args()
    # ComfyUI first, this folder last: its nodes/ must not take the place of ComfyUI's nodes.py.
    sys.path = [str(find_comfyui(options.comfyui)), *(path for path in sys.path if path != str(HERE)), str(HERE)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import cuda_malloc  # noqa: F401 - chooses the memory allocator, before torch is imported
    import folder_paths
    from comfy.cli_args import args

    set_environment(args)
    if args.user_directory:
        folder_paths.set_user_directory(str(Path(args.user_directory).absolute()))
    try:
        from ultragen_core.host.speed.command import main as measure_card
    except (AssertionError, RuntimeError) as error:  # what PyTorch raises without a GPU
        sys.exit(f"ComfyUI finds no GPU to measure ({error}). Run this with the Python that starts your ComfyUI.")
    measure_card()


if __name__ == "__main__":
    main()
