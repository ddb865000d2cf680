"""What the index of a checkpoint written by torch.save is made of: tables, and tensors without data.

No name in the file is looked up, and no memory or time is taken that the size of the index does not justify.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from ..storage.safetensors_file import MAX_AXES, DamagedFile
from .errors import unsafe_pickle

MAX_VIEW_BYTES = 2**30
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


class _TensorEntry(_Placeholder):
    """Describes a tensor. No tensor itself: the file could take it for a list of as many tensors as it has values."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...]):
        self.dtype, self.shape = dtype, shape

    def __setstate__(self, state):
        raise DamagedFile("its index sets a tensor anew")


class _Table(dict):
    """A dictionary, and an OrderedDict, with names that are hashed in a moment: pairs of pairs may take years."""

    def __init__(self, items: Iterable[tuple] = ()):
        for key, value in items:
            self[key] = value

    def __setitem__(self, key, value):
        if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
            raise DamagedFile("its index has a name of nested parts")
        super().__setitem__(key, value)

    def __setstate__(self, state):
        pass


def _with_tensors(content: object) -> object:
    """Put tensors without data in place of their descriptions, in tables within tables."""
    whole, seen = {None: content}, set()
    waiting = [whole]
    while waiting:
        table = waiting.pop()
        if id(table) in seen:  # a pickle can contain itself
            continue
        seen.add(id(table))
        for key, value in table.items():
            if isinstance(value, _TensorEntry):
                dict.__setitem__(table, key, torch.empty(value.shape, dtype=value.dtype, device="meta"))
            elif isinstance(value, dict):
                waiting.append(value)
    return whole[None]


class IndexUnpickler(pickle._Unpickler):
    """Builds nothing but dictionaries and descriptions of tensors: no name in the file is looked up.

    The pure Python unpickler, because the C one allocates as many memo slots as a file asks for.
    """

    # torch.load refuses what is left out too. All of it hashes, as dictionaries do.
    dispatch = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in {opcode[0] for opcode in (pickle.DICT, pickle.ADDITEMS, pickle.FROZENSET)}
    } | {pickle.EMPTY_DICT[0]: lambda self: self.append(_Table())}

    def __init__(self, path: Path, file: BinaryIO, **options):
        super().__init__(file, **options)
        self._path = path
        self.storages: dict[str, _Storage] = {}

    def load(self) -> object:
        return _with_tensors(super().load())

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
        if not isinstance(dtype, torch.dtype) or type(key) is not str or type(length) is not int or length < 0:
            raise DamagedFile("its index describes no possible tensor")
        storage = self.storages[key] = _Storage(dtype, length)
        return storage


def _tensor(storage: object, offset: int, size: tuple[int, ...], stride: object, *rest: object) -> _TensorEntry:
    dtype = next((each for each in rest if isinstance(each, torch.dtype)), None) or storage.dtype
    possible = len(size) <= MAX_AXES and all(type(length) is int and length >= 0 for length in size)
    if not possible or not isinstance(storage, _Storage):
        raise DamagedFile("its index describes no possible tensor")
    # A view with stride 0 takes more bytes than its storage once it is copied.
    nbytes, most = math.prod(max(length, 1) for length in size) * dtype.itemsize, max(storage.nbytes, MAX_VIEW_BYTES)
    if nbytes > most or (stride and all(stride) and nbytes > storage.nbytes and 0 not in size):
        raise DamagedFile(f"its index describes a tensor of {tuple(size)} in {storage.nbytes:,} bytes")
    return _TensorEntry(dtype, tuple(size))


def _first(value: object, *rest: object) -> object:
    return value


def _of_type(build: object, kind: object, args: tuple, state: object) -> object:
    return build(*args)


_BUILT = {
    ("collections", "OrderedDict"): _Table,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
}
