"""What a kernel of another package offers, and what all of them share."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from ...rules.choice import COMFYUI

INSTEAD = f"set attention_kernel to {COMFYUI}"


class Kernel(Protocol):
    """An attention kernel of another package.

    name: for the log. max_head_dim: most channels of a head. fewest_keys: attention to fewer is slower than without the
    kernel. held_maps: memory that it holds in dense self-attention besides keys and values, in maps of all tokens.
    """

    name: str
    max_head_dim: int
    fewest_keys: int
    held_maps: int

    def require_device(self, device: torch.device) -> None:
        """Raise ValueError where the kernel cannot run on this device."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (b, heads, tokens, head_dim), k and v alike -> the shape of q."""

    def attention_(self, operands: list[Tensor]) -> Tensor:
        """The same for [q, k, v]. Empties the list, and frees the tensors as early as it can."""


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(b, tokens, c) -> (b, heads, tokens, head_dim), a view."""
    b, tokens, c = x.shape
    return x.view(b, tokens, heads, c // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """The inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def import_package(module: str, refusal: Callable[[str], ValueError]) -> ModuleType:
    """Import a module of another package. Raises refusal(what was found instead) where that fails."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise refusal("it is not installed") from None
    except Exception as error:  # imports may fail in many ways, such as Triton's without a driver, or cuDNN's
        raise refusal(f"its import fails ({type(error).__name__}: {error})") from error


def version_of(package: str) -> str:
    """The installed version of a package, for messages."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "an older version"


def describe_device(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, {'.'.join(map(str, torch.cuda.get_device_capability(device)))}"
