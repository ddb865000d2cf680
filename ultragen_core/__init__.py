"""The core of UltraGen for ComfyUI. Only `host` knows ComfyUI; everything else is plain PyTorch."""

VERSION = "0.1.0"
