"""Reads safetensors files into newly allocated memory.

The library's reader maps the file, and a mapped file that is overwritten or truncated kills the process (SIGBUS). It
also refuses bytes after the last tensor, which ComfyUI's loader accepts.
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
# The library's own limit. Headers of real files have some hundred KiB; pictures in a prompt add their size.
MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 16
# Larger offsets and counts would overflow.
MAX_NUMBER = 2**62

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
# Older versions of PyTorch lack some.
DTYPES = {key: getattr(torch, name) for key, name in _DTYPE_NAMES.items() if hasattr(torch, name)}


class DamagedFile(ValueError):
    """A file that cannot be read. The message is the end of a sentence that starts with the file's name."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a file: `start` in bytes from the beginning of the file, `nbytes` from there."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for unbuffered reads. Raises DamagedFile for folders, pipes and devices: reading them may block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedFile("it is a folder" if path.is_dir() else "it is a pipe or a device, not a file")
    return path.open("rb", buffering=0)


def is_safetensors(path: Path) -> bool:
    """Whether the content begins like a safetensors file, whatever its name: header length, then a brace."""
    with open_regular(path) as file:
        start = file.read(LENGTH_BYTES + 1)
    return start[LENGTH_BYTES:] == b"{" and int.from_bytes(start[:LENGTH_BYTES], "little") < 2**40


def read_header(path: Path) -> Header:
    """Read and check the header: names, dtypes, shapes, offsets and metadata. Raises DamagedFile, OSError."""
    with open_regular(path) as file:
        return _header(file)


def read_tensors(path: Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors, on the CPU, and the metadata. Raises DamagedFile, OSError, MemoryError.

    mapped: leave the tensors in the file, for files that do not fit into RAM. If the file is then overwritten while
        they are in use, the process dies.
    """
    with open_regular(path) as file:
        before = _state(file)
        header = _header(file)
        data = _mapped(path, before[0]) if mapped else None
        in_order = sorted(header.entries.items(), key=lambda item: item[1].start)
        tensors = {
            name: _tensor(_read(file, entry) if data is None else data[entry.start : entry.start + entry.nbytes], entry)
            for name, entry in in_order
        }
        if _state(file) != before:
            raise DamagedFile("it was overwritten while it was read; try again when the copy is complete")
    return tensors, dict(header.metadata)


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _header(file: BinaryIO) -> Header:
    size = _state(file)[0]
    length = int.from_bytes(_exactly(file, LENGTH_BYTES), "little")
    if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
        raise DamagedFile(f"its header should be {length:,} bytes long, but the file has {size:,}")
    try:
        content = json.loads(_exactly(file, length))
    except (ValueError, RecursionError) as error:
        raise DamagedFile("its header is not JSON") from error
    if not isinstance(content, dict):
        raise DamagedFile("its header is not a table of tensors")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedFile("its metadata is not a table of texts")
    entries = {name: _entry(name, found, LENGTH_BYTES + length) for name, found in content.items()}
    _check_offsets(entries, size)
    return Header(entries, metadata)


def _entry(name: str, entry: object, data_start: int) -> TensorEntry:
    shown = repr(printable(name, 100))
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
        plain = all(type(number) is int and 0 <= number < MAX_NUMBER for number in numbers)
    except (TypeError, KeyError, ValueError) as error:
        raise DamagedFile(f"its header gives no dtype, shape and offsets for the tensor {shown}") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DamagedFile(
            f"{shown} has the dtype {printable(dtype, 100)!r}, which PyTorch {torch.__version__} does not know"
        )
    if not plain or len(shape) > MAX_AXES or math.prod(max(length, 1) for length in shape) >= MAX_NUMBER:
        raise DamagedFile(f"its header gives an impossible size for the tensor {shown}")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - start != nbytes:
        given = f"its header gives it {end - start:,}"
        raise DamagedFile(f"{shown} of shape {tuple(shape)} takes {nbytes:,} bytes, {given}")
    return TensorEntry(DTYPES[dtype], tuple(shape), data_start + start, nbytes)


def _check_offsets(entries: Mapping[str, TensorEntry], size: int) -> None:
    end, last = 0, None
    for name, entry in sorted(((n, e) for n, e in entries.items() if e.nbytes), key=lambda item: item[1].start):
        if entry.start < end:
            raise DamagedFile(f"the tensors {printable(last, 100)!r} and {printable(name, 100)!r} overlap")
        end, last = entry.start + entry.nbytes, name
    if end > size:
        raise DamagedFile(f"by its header it should have {end:,} bytes; the download or copy is not complete")


def _exactly(file: BinaryIO, length: int) -> bytearray:
    buffer = bytearray(length)
    _fill(file, memoryview(buffer))
    return buffer


def _read(file: BinaryIO, entry: TensorEntry) -> Tensor:
    data = torch.empty(entry.nbytes, dtype=torch.uint8)
    file.seek(entry.start)
    _fill(file, memoryview(data.numpy()))
    return data


def _fill(file: BinaryIO, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise DamagedFile("it ends early; it may still be downloading or being copied")
        view = view[count:]


def _mapped(path: Path, size: int) -> Tensor:
    storage = torch.UntypedStorage.from_file(os.fspath(path), shared=False, nbytes=size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _tensor(data: Tensor, entry: TensorEntry) -> Tensor:
    # A view needs an aligned start, which a mapped tensor may lack.
    aligned = data if data.storage_offset() % entry.dtype.itemsize == 0 else data.clone()
    return aligned.view(entry.dtype).view(entry.shape) if entry.nbytes else torch.empty(entry.shape, dtype=entry.dtype)
