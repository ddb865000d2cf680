"""WeightsError, and what it says about files that hold no weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..out_of_ram import is_host_out_of_memory
from ..printable import printable
from ..storage.safetensors_file import DamagedFile

SOURCE = "huggingface.co/JTUplayer/Ultragen (ultragen_1080p.ckpt)"

_BEGINNINGS = (
    (b"version https://git-lfs", "it is a git-lfs pointer: the file itself was not fetched"),
    (b"GGUF", "it is a GGUF file: load it with a GGUF loader (ComfyUI-GGUF) and connect UltraGen Apply after it"),
    (b"PK", "its archive is truncated or is not PyTorch's"),
    (b"<", "it is a web page"),
    (b"{", "it is JSON text"),
    (b"GIF8", "it is a picture"),
    (b"\x89PNG", "it is a picture"),
    (b"\xff\xd8\xff", "it is a picture"),
)
_TEXT = re.compile(rb"[\t\r\n\x20-\x7e]+")


class WeightsError(ValueError):
    """A weights file that cannot be used. The message says what was found, what was expected and what to do."""


@contextmanager
def as_weights_errors(path: Path) -> Iterator[None]:
    """Turn any exception of reading `path` into a WeightsError: parsers of hostile bytes can raise anything."""
    name = printable(path.name)
    try:
        yield
    except WeightsError:
        raise
    except DamagedFile as error:
        raise WeightsError(_damaged(path, str(error))) from error
    except OSError as error:
        raise WeightsError(
            f"{name} cannot be read: {printable(error.strerror or error)}. Check that the file is there, that ComfyUI's"
            " user may read it, and that its disk is connected."
        ) from error
    except Exception as error:
        if is_host_out_of_memory(error):
            raise too_large_for_ram(path) from error
        raise WeightsError(_damaged(path, describe_file(path, error))) from error


def too_large_for_ram(path: Path) -> WeightsError:
    return WeightsError(
        f"{printable(path.name)} does not fit into memory. Close other programs, or use a smaller or quantised file."
    )


def unsafe_pickle(path: Path) -> WeightsError:
    return WeightsError(
        f"{printable(path.name)} holds Python objects other than tensors and was not opened, because unpickling them"
        " can run code. Expected a checkpoint of tensors only: get the .safetensors of the same model."
    )


def describe_file(path: Path, error: Exception) -> str:
    """Say what a file is that is not a checkpoint, by its first bytes; where they are unknown, quote its parser."""
    try:
        with path.open("rb") as file:
            start = file.read(80)
    except OSError:
        return _first_line(error)
    if not start:
        return "it is empty"
    for beginning, what in _BEGINNINGS:
        if start.lstrip().startswith(beginning):
            return what
    if _TEXT.fullmatch(start):
        return f'it is a text that begins "{printable(start.decode().split(chr(10))[0].strip(), 60)}"'
    return _first_line(error)


def _damaged(path: Path, reason: str) -> str:
    try:
        size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
    except OSError:
        size = ""
    return (
        f"{printable(path.name)}{size} is damaged, incomplete or not a weights file: {reason}. Expected .safetensors or"
        " a PyTorch checkpoint. Download it again."
    )


def _first_line(error: Exception) -> str:
    # torch's message advises to switch the protection off.
    line = next(iter(str(error).strip().splitlines()), "")
    return printable(line.rstrip("."), 200) if line and "weights_only" not in line else "it is in none of these formats"
