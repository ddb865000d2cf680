"""Packages of ComfyUI's makers in the newest versions of the registry, in folders of their own: no pin is changed."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

from tools.console import Trouble, say
from tools.environment import locked
from tools.venv import Venv

KERNELS = ("comfy-kitchen", "comfy-aimdo")  # attention and quantised layers; dynamic VRAM


def install_kernels(cache: Path, venv: Venv) -> Path:
    """Fetch the newest KERNELS. Returns the folder that goes before all others on Python's path."""
    folder = cache / "newest"
    with locked(cache):
        for package in KERNELS:
            fetch(venv, package, folder)
    return folder


def versions(folder: Path) -> str:
    """Name what is in a folder from here: "comfy-aimdo 0.6.0, comfy-kitchen 0.2.40"."""
    return ", ".join(sorted(f"{each.name} {each.version}" for each in distributions(path=[str(folder)])))


def fetch(venv: Venv, requirement: str, folder: Path) -> None:
    """Fetch a package into a folder. Where the registry cannot be reached, what is there is used."""
    try:
        venv.fetch(requirement, folder)
    except Trouble:
        if not folder.is_dir():
            raise
        say(f"{requirement} could not be looked up; using the one that is there.")
