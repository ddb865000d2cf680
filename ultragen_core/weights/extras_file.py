"""The extras-only file: UltraGen's extras under their published keys, with metadata on their base model."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

from ..printable import printable
from ..storage.files import WINDOWS_DEVICE, finished_file, new_file
from .errors import WeightsError
from .files import read_metadata, read_state_dict
from .published import Extras, published_items, split

FORMAT = "ultragen-extras"
VERSION = "1"
MAX_NAME_BYTES = 200  # file systems take 255, numbers and endings included


def save_extras(extras: Extras, path: str | Path) -> None:
    """Write an extras-only file, replacing one of that name. Tensors keep their dtype, so results are bit-identical."""
    with finished_file(Path(path)) as part:
        _write(extras, part)


def _write(extras: Extras, path: Path) -> None:
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "channels": str(extras.shape.channels),
        "rank": str(extras.shape.rank),
        "blocks": json.dumps(list(extras.blocks)),
        "base_fingerprint": json.dumps(extras.fingerprint),
    }
    # safetensors refuses tensors that share memory.
    tensors = {key: tensor.clone() for key, tensor in published_items(extras)}
    safetensors.torch.save_file(tensors, path, metadata)


def read_extras(path: str | Path) -> Extras:
    """Read the extras of an extras-only file or of a whole checkpoint. Raises WeightsError."""
    path = Path(path)
    name, metadata = printable(path.name), read_metadata(path)
    version = metadata.get("format_version") if metadata.get("format") == FORMAT else None
    if version not in (None, VERSION):
        raise WeightsError(
            f"{name} has format version {printable(version, 20)}, but this pack reads version {VERSION}. Update the"
            " pack, or extract the file again."
        )
    _, extras = split(read_state_dict(path), name)
    if not extras.fingerprint and "base_fingerprint" in metadata:
        extras = replace(extras, fingerprint=_fingerprint(metadata["base_fingerprint"], name))
    return extras


def _fingerprint(stored: str, name: str) -> dict[int, list[float]]:
    """Parse the base_fingerprint of an extras-only file. Raises WeightsError."""
    try:
        return {int(index): [float(value) for value in values][:4] for index, values in json.loads(stored).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{name} has damaged metadata (base_fingerprint). Extract the file again.") from error


class Extracted(NamedTuple):
    """A file of extras, the number of its blocks, and whether it is new; else it held the same extras already."""

    path: Path
    blocks: int
    written: bool


def extract(checkpoint: str | Path, folder: str | Path, name: str) -> Extracted:
    """Write the extras of a checkpoint to `folder`/`name`.safetensors, or to `name`_2, ... where that is taken.

    Raises WeightsError, and ValueError where `name` is not a plain file name.
    """
    _check_name(name)
    extras = read_extras(checkpoint)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in itertools.takewhile(os.path.lexists, _numbered(folder, name)):
        if _holds(path, extras):
            return Extracted(path, len(extras.blocks), False)
    with new_file(_numbered(folder, name)) as file:
        _write(extras, file.part)
    return Extracted(file.path, len(extras.blocks), True)


def _numbered(folder: Path, name: str) -> Iterator[Path]:
    yield folder / f"{name}.safetensors"
    for number in itertools.count(2):
        yield folder / f"{name}_{number}.safetensors"


def _check_name(name: str) -> None:
    odd = re.search(r'[<>:"/\\|?*]', name) or printable(name, len(name)) != name
    edges = name != name.strip() or name.startswith(".") or name.endswith(".") or not name
    if odd or edges or WINDOWS_DEVICE.match(name) or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise ValueError(
            f'file_name must be a plain name that every system accepts, without folders, the characters <>:"/\\|?* or a'
            f" dot or space at its ends, and at most {MAX_NAME_BYTES} bytes long; got {printable(name, 80)!r}."
        )


def _holds(path: Path, extras: Extras) -> bool:
    try:
        found = read_extras(path)
    except WeightsError:
        return False
    a, b = dict(published_items(found)), dict(published_items(extras))
    same = a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)
    return same and found.fingerprint == extras.fingerprint
