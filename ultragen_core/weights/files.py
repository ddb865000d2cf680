"""Reading a state dict from disk, whatever its wrapping, without ever running code from the file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..printable import printable
from ..storage.safetensors_file import is_safetensors, read_header, read_tensors
from .errors import SOURCE, WeightsError, sentences
from .pickle_file import read_index, read_pickle
from .shards import shards_of

StateDict = dict[str, Tensor]

# Prefixes that trainers and exporters put before Wan's own key names, longest first.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "pipe.dit.", "module.", "model.", "dit.")
CONTAINERS = ("state_dict", "module", "model")
# A file can hold itself.
DEEPEST_NESTING = 4


def read_state_dict(path: str | Path, mapped: bool = False) -> StateDict:
    """Every tensor of a .safetensors, .ckpt or .pt file under Wan's own key names, on the CPU.

    The format is read from the file's content, not from its name. Of a model in pieces any piece stands for all.
    mapped: leave the tensors in the file, for models that memory does not hold twice; the process then ends if the file
        is overwritten while they are in use. Otherwise nothing that happens to the file touches what was read.
    Raises `WeightsError`.
    """
    return _state_dict(Path(path), lambda file: _content(file, mapped))


def read_outline(path: str | Path) -> StateDict:
    """As `read_state_dict`, for names and sizes alone: only headers are read, the tensors have no data."""
    return _state_dict(Path(path), _index)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for any other format. Raises `WeightsError`."""
    with sentences(Path(path)):
        return dict(read_header(Path(path)).metadata) if is_safetensors(Path(path)) else {}


def file_bytes(path: str | Path) -> int:
    """Bytes on disk of a model, all its pieces together. Raises `WeightsError`."""
    files = shards_of(Path(path))
    with sentences(Path(path)):
        return sum(file.stat().st_size for file in files)


def contents_mark(state: StateDict) -> str:
    """A text that two state dicts share if they hold the same tensors, judged by names, sizes and a few values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key]
        few = tensor.flatten()[:8].contiguous().view(torch.uint8) if tensor.numel() else tensor
        digest.update(f"{key!r} {tensor.dtype} {tuple(tensor.shape)} {few.tolist()}".encode())
    return digest.hexdigest()


def _state_dict(path: Path, read: Callable[[Path], object]) -> StateDict:
    files = shards_of(path)
    contents = []
    for file in files:
        with sentences(file):
            contents.append(read(file))
    content = contents[0]
    if len(files) > 1:
        content = {key: value for part in contents if isinstance(part, Mapping) for key, value in part.items()}
    return unwrap(content, printable(path.name))


def _content(path: Path, mapped: bool) -> object:
    if is_safetensors(path):
        return read_tensors(path, mapped)[0]
    return read_pickle(path, mapped)


def _index(path: Path) -> object:
    if not is_safetensors(path):
        return read_index(path)
    slots = read_header(path).slots
    return {key: torch.empty(slot.shape, dtype=slot.dtype, device="meta") for key, slot in slots.items()}


def unwrap(content: object, name: str) -> StateDict:
    """Take containers (`state_dict`, `model`, ...) and key prefixes off: nested mapping -> {Wan's key: tensor}."""
    for _ in range(DEEPEST_NESTING):
        if isinstance(content, Mapping):
            content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {key: value for key, value in items if isinstance(key, str) and _usable(value)}
    if not tensors:
        raise WeightsError(
            f"{name} holds no state dict: expected named tensors, found {type(content).__name__}. Get the right one"
            f" from {SOURCE}."
        )
    while prefix := _common_prefix(tensors):
        # What lies outside the prefix belongs to another model of the same bundle (a VAE, a text encoder).
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors


def _usable(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _common_prefix(tensors: StateDict) -> str | None:
    """The wrapper's prefix under which this state dict keeps its transformer blocks, if any."""
    return next((p for p in PREFIXES if any(key.startswith(p + "blocks.") for key in tensors)), None) or next(
        (p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None
    )
