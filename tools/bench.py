"""Measurements on a GPU, one table per subject: `COMFYUI_PATH=/path/to/ComfyUI python3 tools/bench.py vae --help`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def as_comfyui_starts(dynamic_vram: bool, native: bool) -> None:
    """What ComfyUI's main.py does on an NVIDIA card before PyTorch is imported."""
    if not native:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "backend:cudaMallocAsync"
    if dynamic_vram:
        import comfy_aimdo.control

        comfy_aimdo.control.init()


def main() -> None:
    # ComfyUI reads the command line when it is imported: take ours away first.
    arguments, sys.argv = sys.argv[1:], sys.argv[:1]
    sys.path[:0] = [path for path in (os.environ.get("COMFYUI_PATH"), str(ROOT / "tools")) if path]
    sys.path.append(str(ROOT))
    as_comfyui_starts(dynamic_vram="--dynamic" in arguments, native="--native" in arguments)
    import bench_attention
    import bench_model
    import bench_plot
    import bench_training
    import bench_vae

    parser = argparse.ArgumentParser(description=__doc__)
    subjects = parser.add_subparsers(required=True)
    bench_vae.add_parser(subjects)
    bench_attention.add_parser(subjects)
    bench_model.add_parser(subjects)
    bench_plot.add_parser(subjects)
    bench_training.add_parser(subjects)
    chosen = parser.parse_args(arguments)
    chosen.run(chosen)


if __name__ == "__main__":
    main()
