"""Safetensors files by plain reads into memory of our own.

The library's reader maps the file, and a mapped file that is written to or cut off ends the process (SIGBUS). It also
refuses bytes after the last tensor, which ComfyUI's loader takes.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..printable import printable

LENGTH_BYTES = 8
# Headers of real files have some hundred KiB; a workflow kept in the metadata may add a few MiB.
LONGEST_HEADER = 32 * 2**20
MOST_AXES = 16
# Offsets and counts beyond this overflow somewhere below.
LARGEST = 2**62

_DTYPE_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
# Older PyTorch lacks some.
DTYPES = {key: getattr(torch, name) for key, name in _DTYPE_NAMES.items() if hasattr(torch, name)}


class DamagedFile(ValueError):
    """What is wrong with a file: the end of a sentence that starts with its name."""


@dataclass(frozen=True)
class Slot:
    """Where a file keeps a tensor: `start` and `nbytes` in bytes from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    slots: Mapping[str, Slot]
    metadata: Mapping[str, str]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for unbuffered reads. Raises DamagedFile for folders, pipes and devices, which may never answer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedFile("it is a folder" if path.is_dir() else "it is a pipe or a device, not a file")
    return path.open("rb", buffering=0)


def is_safetensors(path: Path) -> bool:
    """Whether the content, whatever the name, begins as such a file does: header length, then the header's brace."""
    with open_regular(path) as file:
        start = file.read(LENGTH_BYTES + 1)
    return start[LENGTH_BYTES:] == b"{" and int.from_bytes(start[:LENGTH_BYTES], "little") < 2**40


def read_header(path: Path) -> Header:
    """Read and check the header alone: names, dtypes, shapes, places and metadata. Raises DamagedFile, OSError."""
    with open_regular(path) as file:
        return _header(file)


def read_tensors(path: Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, on the CPU, and the metadata. Raises DamagedFile, OSError, MemoryError.

    mapped: leave the tensors in the file, where they cost no memory, for files that memory does not hold; the process
        then ends if the file is overwritten while they are in use.
    """
    with open_regular(path) as file:
        before = _state(file)
        header = _header(file)
        data = _mapped(path, before[0]) if mapped else None
        in_order = sorted(header.slots.items(), key=lambda item: item[1].start)
        tensors = {
            name: _tensor(_read(file, slot) if data is None else data[slot.start : slot.start + slot.nbytes], slot)
            for name, slot in in_order
        }
        if _state(file) != before:
            raise DamagedFile("it was written to while it was read; try again when the copy is complete")
    return tensors, dict(header.metadata)


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _header(file: BinaryIO) -> Header:
    size = _state(file)[0]
    length = int.from_bytes(_exactly(file, LENGTH_BYTES), "little")
    if length > min(LONGEST_HEADER, size - LENGTH_BYTES):
        raise DamagedFile(f"its header should be {length:,} bytes long, the file has {size:,}")
    try:
        content = json.loads(_exactly(file, length))
    except (ValueError, RecursionError) as error:
        raise DamagedFile("its header is no JSON") from error
    if not isinstance(content, dict):
        raise DamagedFile("its header is no table of tensors")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedFile("its metadata are no table of texts")
    slots = {name: _slot(name, entry, LENGTH_BYTES + length) for name, entry in content.items()}
    _check_places(slots, size)
    return Header(slots, metadata)


def _slot(name: str, entry: object, data_start: int) -> Slot:
    shown = repr(printable(name, 100))
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
        plain = all(type(number) is int and 0 <= number < LARGEST for number in numbers)
    except (TypeError, KeyError, ValueError) as error:
        raise DamagedFile(f"its header gives no dtype, shape and place for the tensor {shown}") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DamagedFile(
            f"{shown} is of the type {printable(dtype, 100)!r}, which PyTorch {torch.__version__} here does not know"
        )
    if not plain or len(shape) > MOST_AXES or math.prod(max(length, 1) for length in shape) >= LARGEST:
        raise DamagedFile(f"its header gives no possible size for the tensor {shown}")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - start != nbytes:
        given = f"its header gives it {end - start:,}"
        raise DamagedFile(f"{shown} of shape {tuple(shape)} takes {nbytes:,} bytes, {given}")
    return Slot(DTYPES[dtype], tuple(shape), data_start + start, nbytes)


def _check_places(slots: Mapping[str, Slot], size: int) -> None:
    end, last = 0, None
    for name, slot in sorted(((n, s) for n, s in slots.items() if s.nbytes), key=lambda item: item[1].start):
        if slot.start < end:
            raise DamagedFile(f"the tensors {printable(last, 100)!r} and {printable(name, 100)!r} overlap")
        end, last = slot.start + slot.nbytes, name
    if end > size:
        raise DamagedFile(f"it should have {end:,} bytes by its header; the download or copy is not complete")


def _exactly(file: BinaryIO, length: int) -> bytearray:
    buffer = bytearray(length)
    _fill(file, memoryview(buffer))
    return buffer


def _read(file: BinaryIO, slot: Slot) -> Tensor:
    data = torch.empty(slot.nbytes, dtype=torch.uint8)
    file.seek(slot.start)
    _fill(file, memoryview(data.numpy()))
    return data


def _fill(file: BinaryIO, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise DamagedFile("it ends early; it may still be downloading, or be copied at this moment")
        view = view[count:]


def _mapped(path: Path, size: int) -> Tensor:
    storage = torch.UntypedStorage.from_file(os.fspath(path), shared=False, nbytes=size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _tensor(data: Tensor, slot: Slot) -> Tensor:
    # A view needs its start aligned; only a mapped tensor of an odd file is not.
    aligned = data if data.storage_offset() % slot.dtype.itemsize == 0 else data.clone()
    return aligned.view(slot.dtype).view(slot.shape) if slot.nbytes else torch.empty(slot.shape, dtype=slot.dtype)
