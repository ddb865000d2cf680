"""Reads checkpoints written by torch.save: their index alone, or their tensors.

Runs no code from the file, and takes no more memory than the file's size justifies.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..storage.safetensors_file import DamagedFile, open_regular
from .errors import unsafe_pickle

# The index of a Wan checkpoint has 150 KiB; training states have some MiB.
MAX_INDEX_BYTES = 32 * 2**20
MAX_VIEW_BYTES = 2**30
OLD_FORMAT = 0x1950A86A20F9469CFC6C  # the first pickle of such a file; a version and the writing system follow
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}
# Modules whose plain values torch.load takes besides tensors, such as the numbers of a training state.
_HARMLESS = {"torch", "collections", "numpy", "_codecs", "pytorch_lightning"}
_HARMLESS_BUILTINS = {"set", "bytearray", "complex", "slice"}


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
                f"its archive of {size:,} bytes unpacks to {unpacked:,}, PyTorch's are not compressed; write it again"
                " with torch.save"
            )
        index = next((entry for entry in archive.infolist() if entry.filename.split("/")[1:] == ["data.pkl"]), None)
        if index is None:
            raise DamagedFile("its archive is not PyTorch's: it has no data.pkl")
        if index.file_size > MAX_INDEX_BYTES:
            raise DamagedFile(f"its index data.pkl has {index.file_size:,} bytes, at most {MAX_INDEX_BYTES:,} are read")
        unpickler = _IndexUnpickler(path, io.BytesIO(archive.read(index)), encoding="utf-8")
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
    if index.getvalue()[:1] != b"\x80" or _IndexUnpickler(path, index).load() != OLD_FORMAT:
        raise ValueError
    for _ in ("version", "system"):
        _IndexUnpickler(path, index).load()
    unpickler = _IndexUnpickler(path, index, encoding="utf-8")
    content = unpickler.load()
    _IndexUnpickler(path, index).load()  # the order of the storages that follow, each with its length in 8 bytes
    whole = index.tell() + sum(8 + storage.nbytes for storage in unpickler.storages.values())
    if whole > (size := path.stat().st_size):
        raise DamagedFile(f"it should have {whole:,} bytes by its index, it has {size:,}")
    return content


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    length: int

    @property
    def nbytes(self) -> int:
        return self.length * self.dtype.itemsize


class _Placeholder:
    """Takes the place of anything but tensors and containers."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass


class _IndexUnpickler(pickle._Unpickler):
    """Builds nothing but dictionaries and tensors without data: no name in the file is looked up.

    The pure Python unpickler, because the C one allocates as many memo slots as a file asks for.
    """

    def __init__(self, path: Path, file: BinaryIO, **options):
        super().__init__(file, **options)
        self._path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> object:
        if module in ("torch", "torch.storage"):
            dtype = _STORAGES.get(name.removesuffix("Storage")) or getattr(torch, name, None)
            if isinstance(dtype, torch.dtype):
                return dtype
        if known := _BUILT.get((module, name)):
            return known
        if module.split(".")[0] in _HARMLESS or (module == "builtins" and name in _HARMLESS_BUILTINS):
            return _Placeholder
        raise unsafe_pickle(self._path)

    def persistent_load(self, found: object) -> object:
        kind, *rest = found
        if kind != "storage":
            return _Placeholder
        dtype, key, _, length = rest[:4]
        if not isinstance(dtype, torch.dtype) or type(length) is not int or length < 0:
            raise DamagedFile("its index describes no possible tensor")
        storage = self.storages[str(key)] = _Storage(dtype, length)
        return storage


def _tensor(storage: object, offset: int, size: tuple[int, ...], stride: object, *rest: object) -> Tensor:
    dtype = next((each for each in rest if isinstance(each, torch.dtype)), None) or storage.dtype
    if any(type(length) is not int or length < 0 for length in size) or not isinstance(storage, _Storage):
        raise DamagedFile("its index describes no possible tensor")
    # A view with stride 0 takes more bytes than its storage once it is copied.
    nbytes, most = math.prod(max(length, 1) for length in size) * dtype.itemsize, max(storage.nbytes, MAX_VIEW_BYTES)
    if nbytes > most or (stride and all(stride) and nbytes > storage.nbytes and 0 not in size):
        raise DamagedFile(f"its index describes a tensor of {tuple(size)} in {storage.nbytes:,} bytes")
    return torch.empty(tuple(size), dtype=dtype, device="meta")


def _first(value: object, *rest: object) -> object:
    return value


def _of_type(build: object, kind: object, args: tuple, state: object) -> object:
    return build(*args)


_BUILT = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
}
