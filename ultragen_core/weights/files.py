"""Reads state dicts from disk, in any wrapping, without running code from the file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..printable import printable
from ..storage.safetensors_file import is_safetensors, read_header, read_tensors
from .errors import SOURCE, WeightsError, as_weights_errors
from .pickle_file import read_index, read_pickle
from .shards import shards_of

StateDict = dict[str, Tensor]

# Prefixes that trainers and exporters put before Wan's own key names, longest first.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "pipe.dit.", "module.", "model.", "dit.")
CONTAINERS = ("state_dict", "module", "model")
# A pickle can contain itself.
MAX_NESTING = 4


def read_state_dict(path: str | Path, mapped: bool = False) -> StateDict:
    """Return all tensors of a .safetensors, .ckpt or .pt file under Wan's own key names, on the CPU.

    The format is read from the file's content, not from its name. Any shard of a sharded model stands for all of them.
    mapped: leave the tensors in the file, for models that fit into RAM only once. If the file is then overwritten while
        they are in use, the process dies. Unmapped tensors are independent of the file.
    Raises WeightsError.
    """
    return _state_dict(Path(path), lambda file: _content(file, mapped))


def read_shapes(path: str | Path) -> StateDict:
    """Return what read_state_dict does as tensors without data (device meta): only headers are read."""
    return _state_dict(Path(path), _index)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for any other format. Raises WeightsError."""
    with as_weights_errors(Path(path)):
        return dict(read_header(Path(path)).metadata) if is_safetensors(Path(path)) else {}


def file_bytes(path: str | Path) -> int:
    """Return the bytes that a model takes on disk, with all its shards. Raises WeightsError."""
    files = shards_of(Path(path))
    with as_weights_errors(Path(path)):
        return sum(file.stat().st_size for file in files)


def content_digest(state: StateDict) -> str:
    """Hash a state dict by names, dtypes, shapes and the first eight values of each tensor."""
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
        with as_weights_errors(file):
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
    entries = read_header(path).entries
    return {key: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for key, entry in entries.items()}


def unwrap(content: object, name: str) -> StateDict:
    """Remove containers (`state_dict`, `model`, ...) and key prefixes: nested mapping -> {Wan's key: tensor}.

    Raises WeightsError where there are no named tensors.
    """
    for _ in range(MAX_NESTING):
        if isinstance(content, Mapping):
            content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {key: value for key, value in items if isinstance(key, str) and _usable(value)}
    if not tensors:
        raise WeightsError(
            f"{name} holds no state dict: expected named tensors, found {type(content).__name__}. Get UltraGen's"
            f" weights from {SOURCE}."
        )
    while prefix := _common_prefix(tensors):
        # Keys without the prefix belong to another model of the same bundle (a VAE, a text encoder).
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors


def _usable(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _common_prefix(tensors: StateDict) -> str | None:
    """Return the prefix of the keys of the transformer blocks, or of all keys; None without one."""
    return next((p for p in PREFIXES if any(key.startswith(p + "blocks.") for key in tensors)), None) or next(
        (p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None
    )
