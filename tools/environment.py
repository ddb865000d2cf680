"""The cache folder and its virtual environments. Standard library only: nothing is installed yet."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tools import comfyui
from tools.console import Trouble, say
from tools.venv import TORCH, Venv

TESTS = [
    "pytest==9.2.0",
    "pytest-xdist==3.8.0",
    "hypothesis==6.170.15",
    "ruff==0.17.6",
    "triton==3.6.0; sys_platform == 'linux'",
    "playwright==1.65.2",
    # Reference for LPIPS. The other references (scipy, torchvision, transformers) come with ComfyUI.
    "lpips==0.1.4",
    # For `python3 -m training`; all that they need is ComfyUI's own.
    "accelerate==1.15.0",
    "peft==0.21.2",
    # Builds the library's wheel. torch 2.11 asks for less than 82.
    "setuptools==80.10.2",
]
# Talks to a ComfyUI; and what CONVERTER in tools/venv.py imports.
CLIENT = ["pathspec", "typer", "pyyaml", "websocket-client", "av>=16.0.0", "Pillow", "numpy"]
RAY = "ray==2.60.0"  # for tools/cluster, in an environment of its own, and for its tests (80 MB)


def cache_folder() -> Path:
    folder = Path(os.environ.get("ULTRAGEN_CACHE") or "~/.cache/ultragen-comfyui").expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Trouble(
            f"The cache folder {folder} cannot be created: {error.strerror}. Name another one in ULTRAGEN_CACHE."
        ) from None
    return folder


def keep_bytecode(cache: Path) -> None:
    """Let the Pythons started from here keep compiled modules, which halves the time of ComfyUI's import.

    If PYTHONDONTWRITEBYTECODE forbids that next to the sources, compiled files go to the cache folder.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ["PYTHONPYCACHEPREFIX"] = str(cache / "bytecode")


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Keep two commands from building the same environment at once."""
    try:
        import fcntl
    except ImportError:  # Windows: the user runs one command at a time
        yield
        return
    with open(cache / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another tools/dev.py is setting up; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def with_comfyui(cache: Path, gpu: bool, ray: bool = False) -> Path:
    """Set up the environment of both ComfyUI versions, the tests and the demo. Returns its Python.

    ray: with Ray, which only the tests of tools/cluster need here.
    """
    with locked(cache):
        venv = Venv(cache / "venv")
        trees = [comfyui.install_tree(release, cache, venv.download) for release in comfyui.RELEASES]
        requirements = _union(tree / "requirements.txt" for tree in reversed(trees))
        return venv.install(
            [*requirements, *TESTS, *CLIENT], torch="default" if gpu else "cpu", optional=[RAY] if ray else []
        )


def with_tree(cache: Path, tree: Path) -> Path:
    """Set up an environment of the tests for another ComfyUI tree, with its own requirements. Returns its Python."""
    with locked(cache):
        requirements = _union([tree / "requirements.txt"])
        return Venv(cache / "venv-tree").install([*requirements, *TESTS, *CLIENT], torch="cpu")


def client_only(cache: Path) -> Path:
    """Set up a small environment without torch, to talk to a ComfyUI of the user's. Returns its Python."""
    with locked(cache):
        return Venv(cache / "venv-client").install(CLIENT, torch="none")


def with_ray(cache: Path, dashboard: bool = False) -> Path:
    """Set up the environment of tools/cluster, without torch, or another with Ray's dashboard. Returns its Python."""
    folder, ray = ("venv-dashboard", RAY.replace("ray", "ray[default]")) if dashboard else ("venv-cluster", RAY)
    with locked(cache):
        return Venv(cache / folder).install([*CLIENT, ray], torch="none")


def _union(files) -> list[str]:
    """Merge requirement files. If two name the same package, the first one counts."""
    wanted: dict[str, str] = {}
    for file in files:
        for line in file.read_text().splitlines():
            requirement = line.split("#")[0].strip()
            name = requirement
            for mark in "=<>~! ":
                name = name.split(mark)[0]
            if name and not any(name == pinned.split("==")[0] for pinned in TORCH):
                wanted.setdefault(name.lower(), requirement)
    return list(wanted.values())
