"""Our own format: UltraGen's added weights alone, as safetensors under their published keys, with metadata that says
what they fit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import safetensors.torch

from ..files import finished_file
from .files import WeightsError, read_metadata, read_state_dict
from .published import Extras, published_items, split

FORMAT = "ultragen-extras"
VERSION = "1"


def save_extras(extras: Extras, path: str | Path) -> None:
    """Write an extras-only file. Tensors keep their dtype, so that it gives the checkpoint's results bit for bit."""
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "channels": str(extras.shape.channels),
        "rank": str(extras.shape.rank),
        "blocks": json.dumps(list(extras.blocks)),
        "base_fingerprint": json.dumps(extras.fingerprint),
    }
    # Views into a memory-mapped checkpoint are copied: safetensors stores each tensor contiguous and alone. A file of
    # this name that a loaded model still maps keeps its old content.
    tensors = {key: tensor.clone() for key, tensor in published_items(extras)}
    with finished_file(Path(path)) as part:
        safetensors.torch.save_file(tensors, part, metadata)


def read_extras(path: str | Path) -> Extras:
    """The extras of an extras-only file or of a whole checkpoint. Raises `WeightsError`."""
    path = Path(path)
    metadata = read_metadata(path)
    version = metadata.get("format_version") if metadata.get("format") == FORMAT else None
    if version not in (None, VERSION):
        raise WeightsError(
            f"{path.name} has format version {version}, this pack reads version {VERSION}: update the pack, or extract"
            " the file again."
        )
    _, extras = split(read_state_dict(path), path.name)
    if not extras.fingerprint and "base_fingerprint" in metadata:
        stored = json.loads(metadata["base_fingerprint"])
        extras = replace(extras, fingerprint={int(index): values for index, values in stored.items()})
    return extras


def extract(checkpoint: str | Path, folder: str | Path, name: str) -> tuple[Path, int]:
    """Write the extras of a checkpoint to `folder`/`name`.safetensors: that path, and how many blocks have extras.

    Raises `WeightsError`, and ValueError where `name` is more than a plain name.
    """
    if not name.strip() or Path(name).name != name or name.startswith(".") or "\\" in name:
        raise ValueError(f"file_name must be a plain name without folders, got {name!r}.")
    extras = read_extras(checkpoint)
    path = Path(folder) / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_extras(extras, path)
    return path, len(extras.blocks)
