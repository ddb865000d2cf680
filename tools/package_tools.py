"""The command lines of ComfyUI Manager and ComfyUI, in a separate environment that can import ComfyUI's packages."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

from tools.environment import cache_folder, locked
from tools.venv import CONVERTER, Venv

PACKAGES = ["comfyui-manager==4.3", *CONVERTER]


def install(cache: Path) -> None:
    """Set up the environment. Call this in ComfyUI's environment."""
    with locked(cache):
        python = Venv(cache / "venv-tools").install(PACKAGES, torch="none")
        ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        packages = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
        (Path(packages) / "comfyui.pth").write_text(sysconfig.get_path("purelib"))


def tool(name: str) -> Path | None:
    """Return the path of "cm-cli" or "comfy", or None if it is not installed."""
    folder = cache_folder() / "venv-tools" / ("Scripts" if os.name == "nt" else "bin")
    return next(folder.glob(f"{name}*"), None)
