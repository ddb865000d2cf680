"""Packages in other versions than the environment's, in folders that go before it on Python's path."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

from tools.console import Trouble, say
from tools.environment import locked
from tools.venv import Venv

KERNELS = ("comfy-kitchen", "comfy-aimdo")  # attention and quantised layers; dynamic VRAM
OLDEST_PYAV = "av==14.2.0"  # the oldest that ComfyUI 0.3.75 asks for; older FFmpegs convert colours in other ways


def install_kernels(cache: Path, venv: Venv) -> Path:
    """Fetch the newest KERNELS. Returns their folder."""
    folder = cache / "newest"
    with locked(cache):
        for package in KERNELS:
            fetch(venv, package, folder)
    return folder


def install_oldest_pyav(cache: Path, venv: Venv) -> Path:
    """Fetch OLDEST_PYAV. Returns its folder."""
    folder = cache / OLDEST_PYAV.replace("==", "-")
    with locked(cache):
        fetch(venv, OLDEST_PYAV, folder)
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
