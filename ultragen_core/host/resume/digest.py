"""Digests of values by content: equal digests mean equal inputs of two sampling runs."""

from __future__ import annotations

import functools
import hashlib
import inspect
import uuid
from collections.abc import Iterator, Mapping
from enum import Enum

import comfy.model_patcher
import torch
from torch import Tensor, nn

# A value that holds more objects than this never equals another.
MAX_OBJECTS = 100_000


def digest(value) -> str:
    """Return the SHA-256 of nested values by content: tensors, texts, numbers, lists, dicts, attributes of objects.

    Models, functions, random ids and objects without readable attributes count by type or name alone.
    """
    sha = hashlib.sha256()
    for piece in _Encoder().encode(value):
        sha.update(piece)
    return sha.hexdigest()


class _Encoder:
    """Encodes a value as bytes, each object in it once."""

    def __init__(self):
        self._seen: dict[int, int] = {}

    def encode(self, value) -> Iterator[bytes]:
        yield type(value).__qualname__.encode() + b"\0"
        if isinstance(value, Tensor):
            yield f"{value.dtype} {tuple(value.shape)}\0".encode()
            yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        elif isinstance(value, Mapping):
            yield from self.encode([[key, value[key]] for key in sorted(value, key=str)])
        elif isinstance(value, (list, tuple)):
            yield f"{len(value)}\0".encode()
            for each in value:
                yield from self.encode(each)
        elif isinstance(value, (set, frozenset)):
            yield from self.encode(sorted(map(digest, value)))
        elif isinstance(value, (str, bytes, int, float, complex, torch.dtype)):
            yield repr(value).encode() + b"\0"
        elif isinstance(value, Enum):
            yield value.name.encode() + b"\0"
        elif isinstance(value, (nn.Module, comfy.model_patcher.ModelPatcher, torch.device, uuid.UUID)):
            return
        elif isinstance(value, functools.partial):
            yield from self.encode([value.func, value.args, value.keywords])
        elif inspect.isroutine(value) or isinstance(value, type):
            yield value.__qualname__.encode() + b"\0"
        else:
            yield from self._object(value)

    def _object(self, value) -> Iterator[bytes]:
        """Encode the attributes of ControlNets, hooks and the like."""
        if id(value) in self._seen:
            yield f"object {self._seen[id(value)]}\0".encode()
            return
        self._seen[id(value)] = len(self._seen)
        if len(self._seen) > MAX_OBJECTS:
            yield uuid.uuid4().bytes
            return
        if hasattr(value, "tobytes"):  # arrays and images
            yield f"{getattr(value, 'shape', '')} {getattr(value, 'size', '')}\0".encode() + value.tobytes()
            return
        held = getattr(value, "__dict__", None) or {
            name: getattr(value, name) for name in getattr(type(value), "__slots__", ()) if hasattr(value, name)
        }
        yield from self.encode(held)
