"""Reading a state dict from disk, whatever its wrapping, without ever running code from the file."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

SOURCE = "huggingface.co/JTUplayer/Ultragen (ultragen_1080p.ckpt)"

StateDict = dict[str, Tensor]

# Prefixes that trainers and exporters put before Wan's own key names, longest first.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "pipe.dit.", "module.", "model.", "dit.")
CONTAINERS = ("state_dict", "module", "model")
# A file can hold itself.
DEEPEST_NESTING = 4


class WeightsError(ValueError):
    """A weights file that cannot be used: the sentence says what was expected, what was found and where to get the
    right one.
    """


def read_state_dict(path: str | Path) -> StateDict:
    """Every tensor of a .safetensors, .ckpt or .pt file under Wan's own key names, on the CPU.

    The format is read from the file's content, not from its name. Raises `WeightsError`.
    """
    path = Path(path)
    return unwrap(_read_safetensors(path) if _is_safetensors(path) else _read_pickle(path), path.name)


def read_outline(path: str | Path) -> StateDict:
    """As `read_state_dict`, for names and sizes alone: of a safetensors file no more than its header is read."""
    path = Path(path)
    return unwrap(_read_header(path) if _is_safetensors(path) else _read_pickle(path), path.name)


def _is_safetensors(path: Path) -> bool:
    """Such a file starts with the length of its JSON header, then the header's brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for any other format."""
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError:
        return {}


def _read_safetensors(path: Path) -> StateDict:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(_damaged(path, error)) from error


def _read_header(path: Path) -> StateDict:
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise WeightsError(_damaged(path, error)) from error


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if re.search(r"Unsupported (global|class)|GLOBAL", str(error)):
            raise WeightsError(
                f"{path.name} holds Python objects other than tensors and was not opened, because unpickling them can"
                f" run code. Expected a checkpoint of tensors only, such as {SOURCE}."
            ) from error
        # torch's own words advise to switch the protection off.
        raise WeightsError(_damaged(path, _what_it_is(path))) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsError(_damaged(path, error)) from error


def _what_it_is(path: Path) -> str:
    """Of a file that is no checkpoint, from its first bytes."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "it is the pointer that git-lfs leaves where the file was not fetched"
    return "it is a web page" if start.startswith(b"<") else "it is in none of these formats"


def _damaged(path: Path, error: Exception | str) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{path.name} ({path.stat().st_size:,} bytes) is damaged, incomplete or not a weights file: {reason}. Expected"
        f" .safetensors or a torch checkpoint; download it again from where it came, or get UltraGen's from {SOURCE}."
    )


def unwrap(content: object, name: str) -> StateDict:
    """Take containers (`state_dict`, `model`, ...) and key prefixes off: nested mapping -> {Wan's key: tensor}."""
    for _ in range(DEEPEST_NESTING):
        if isinstance(content, Mapping):
            content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{name} holds no state dict: expected named tensors, found {type(content).__name__}. Get the right one"
            f" from {SOURCE}."
        )
    while prefix := _common_prefix(tensors):
        # What lies outside the prefix belongs to another model of the same bundle (a VAE, a text encoder).
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors


def _common_prefix(tensors: StateDict) -> str | None:
    """The wrapper's prefix under which this state dict keeps its transformer blocks, if any."""
    return next((p for p in PREFIXES if any(key.startswith(p + "blocks.") for key in tensors)), None) or next(
        (p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None
    )
