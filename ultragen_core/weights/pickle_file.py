"""Reads checkpoints written by torch.save: their index alone, or their tensors.

Runs no code from the file, and takes no more memory or time than the file's size justifies.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from ..storage.safetensors_file import DamagedFile, open_regular
from .errors import unsafe_pickle
from .pickle_index import IndexUnpickler

# The index of a Wan checkpoint has 150 KiB; training states have some MiB.
MAX_INDEX_BYTES = 32 * 2**20
OLD_FORMAT = 0x1950A86A20F9469CFC6C  # the first pickle of such a file; a version and the writing system follow


def read_index(path: Path) -> object:
    """Return the content of a checkpoint with tensors without data (device meta).

    Raises DamagedFile, WeightsError, and whatever the unpickler raises on hostile bytes.
    """
    with open_regular(path) as file:
        if zipfile.is_zipfile(file):
            return _archive_index(path, file)
        file.seek(0)
        return _old_format_index(path, file)


def read_pickle(path: Path, mapped: bool = False) -> object:
    """Return the content of a checkpoint, tensors on the CPU. Raises as read_index does.

    mapped: as for read_tensors; files in the old format are always read into memory.
    """
    read_index(path)  # limits what torch unpacks
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise unsafe_pickle(path) from error


def _archive_index(path: Path, file: BinaryIO) -> object:
    size = path.stat().st_size
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise DamagedFile(
                f"its archive of {size:,} bytes unpacks to {unpacked:,}, but PyTorch's are not compressed; write it"
                " again with torch.save"
            )
        index = next((entry for entry in archive.infolist() if entry.filename.split("/")[1:] == ["data.pkl"]), None)
        if index is None:
            raise DamagedFile("its archive is not PyTorch's: it has no data.pkl")
        if index.file_size > MAX_INDEX_BYTES:
            raise DamagedFile(f"its index data.pkl has {index.file_size:,} bytes; at most {MAX_INDEX_BYTES:,} are read")
        unpickler = IndexUnpickler(path, io.BytesIO(archive.read(index)), encoding="utf-8")
    content = unpickler.load()
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    folder = index.filename.split("/")[0]
    for key, storage in unpickler.storages.items():
        found = sizes.get(f"{folder}/data/{key}", 0)
        if found < storage.nbytes:
            raise DamagedFile(f"its part data/{key} should have {storage.nbytes:,} bytes, found {found:,}")
    return content


def _old_format_index(path: Path, file: BinaryIO) -> object:
    index = io.BytesIO(file.read(MAX_INDEX_BYTES))
    if index.getvalue()[:1] != b"\x80" or IndexUnpickler(path, index).load() != OLD_FORMAT:
        raise ValueError
    for _ in ("version", "system"):
        IndexUnpickler(path, index).load()
    unpickler = IndexUnpickler(path, index, encoding="utf-8")
    content = unpickler.load()
    IndexUnpickler(path, index).load()  # the order of the storages that follow, each with its length in 8 bytes
    whole = index.tell() + sum(8 + storage.nbytes for storage in unpickler.storages.values())
    if whole > (size := path.stat().st_size):
        raise DamagedFile(f"it should have {whole:,} bytes by its index, but it has {size:,}")
    return content
