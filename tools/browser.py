"""What the browser tests need besides ComfyUI: Chromium, and ComfyUI's frontends in folders of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools import comfyui, overlays
from tools.console import say
from tools.environment import cache_folder, locked
from tools.venv import Venv

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DEBIAN_PACKAGES = ("chromium", "fonts-noto-cjk")  # without the font, Chinese text is boxes

FRONTEND = "comfyui-frontend-package"
# The newest that the tests have passed on. Pinned: a frontend released tomorrow must not fail the tests of today.
TESTED = f"{FRONTEND}==1.58.1"
NEWEST = "newest"


def install_frontends(cache: Path) -> None:
    """Fetch the frontend of each ComfyUI version and the newest one that is TESTED."""
    with locked(cache):
        venv = Venv(cache / "venv")
        for release in comfyui.RELEASES:
            tree = comfyui.tree_of(release, cache)
            lines = (tree / "requirements.txt").read_text().splitlines()
            requirement = next(line for line in lines if line.startswith(FRONTEND))
            overlays.fetch(venv, requirement, _package_folder(tree.name))
    install_newest_frontend(cache, TESTED)


def install_newest_frontend(cache: Path, requirement: str = FRONTEND) -> Path:
    """Fetch the newest frontend that `requirement` allows. Returns the folder of its package."""
    folder = _package_folder(NEWEST)
    with locked(cache):
        overlays.fetch(Venv(Path(sys.prefix)), requirement, folder)
    return folder


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def install_chromium() -> None:
    """Install Debian's package unless a browser is there. If that fails, the browser tests say what is missing."""
    if chromium() is not None:
        return
    apt = shutil.which("apt-get")
    root = [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["sudo", "--non-interactive"]
    if apt is None or (root and shutil.which("sudo") is None):
        say("Chromium is missing and cannot be installed from here: the browser tests will be skipped.")
        return
    say("Installing Chromium ...")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *DEBIAN_PACKAGES]):
        done = subprocess.run([*root, apt, *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            say(f"Chromium could not be installed, so the browser tests will be skipped. {done.stderr.strip()}")
            return


def frontend_folder(name: str) -> Path:
    """Return the folder with the frontend for a ComfyUI tree, by the tree's name, or with NEWEST."""
    return _package_folder(name) / "comfyui_frontend_package" / "static"


def _package_folder(name: str) -> Path:
    return cache_folder() / "frontends" / name
