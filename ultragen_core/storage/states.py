"""Sampling runs on disk: how far an unfinished one has come, or what a finished one has made. One file a run, whole or
not there at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from .files import UNFINISHED, finished_file
from .safetensors_file import read_header, read_tensors

# Entries of a fingerprint that say where a run is: its node, and its graph whatever its lists hold. All others say what
# it computes.
PLACE, FAMILY = "node", "graph family"
DAY = 24 * 3600
SPARED = 10**9  # bytes of the disk that are left for what the sampling is for

_SUFFIX = ".safetensors"
_OURS = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}(.*{re.escape(UNFINISHED)})?")
_DAMAGED = (ValueError, LookupError, TypeError)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """The latent `x`, of any shape, after `step` steps; `draws` counts the noise drawn in them. `denoised`: what the
    last step's callback was given, where a finished run is kept.
    """

    x: Tensor
    step: int
    draws: int = 0
    denoised: Tensor | None = None


@dataclass(frozen=True)
class Entry:
    """A file of the folder. size: bytes. saved: seconds since 1970, by the clock of the machine that wrote it."""

    path: Path
    size: int
    saved: float
    step: int
    fingerprint: Mapping[str, str]


def computed(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """Drop the entries that say where a run is."""
    return {name: value for name, value in fingerprint.items() if name not in (PLACE, FAMILY)}


def identity(fingerprint: Mapping[str, str]) -> str:
    """Hash what a run computes, wherever it is: 64 hex digits."""
    return hashlib.sha256(json.dumps(computed(fingerprint), sort_keys=True).encode()).hexdigest()


class StateFolder:
    """Files named after the identity of their run. Other files are never touched, and damaged ones are no states."""

    def __init__(self, folder: Path):
        self._folder = folder

    def load(self, fingerprint: Mapping[str, str]) -> State | None:
        """Read the state of this run into memory of its own, on the CPU; None where there is none that can be read."""
        path = self._path(fingerprint)
        try:
            tensors, facts = read_tensors(path)
            return State(tensors["x"], int(facts["step"]), int(facts["draws"]), tensors.get("denoised"))
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, MemoryError, *_DAMAGED) as error:
            log.warning("UltraGen: starting over; %s cannot be read: %s", path, error)
            return None

    def save(self, fingerprint: Mapping[str, str], state: State) -> None:
        """Replace the former state of this run; on OSError that one stays."""
        self._folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "step": str(state.step),
            "draws": str(state.draws),
            "saved": str(time.time()),
            "fingerprint": json.dumps(dict(fingerprint)),
        }
        tensors = {"x": state.x} if state.denoised is None else {"x": state.x, "denoised": state.denoised}
        # Clones, because safetensors refuses tensors that share memory.
        content = save({name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}, facts)
        free = shutil.disk_usage(self._folder).free
        if 0 < free < len(content) + SPARED:  # 0 is what some network folders say
            raise OSError(errno.ENOSPC, f"{self._folder} has {free / 1e9:.1f} GB free, of which 1 GB stays for videos.")
        with finished_file(self._path(fingerprint)) as part:
            # safetensors' own save_file leaves a file under a name that nobody knows when it is killed.
            part.write_bytes(content)

    def remove(self, fingerprint: Mapping[str, str]) -> None:
        path = self._path(fingerprint)
        for file in (path, *self._folder.glob(f"{path.name}*{UNFINISHED}")):
            file.unlink(missing_ok=True)

    def changes(self, fingerprint: Mapping[str, str], same: str = PLACE) -> tuple[int, list[str]] | None:
        """(step, entries that differ) of the newest state that agrees with this run in the entry `same`."""
        alike = [each for each in self._entries() if each.fingerprint.get(same) == fingerprint[same]]
        if not alike:
            return None
        newest = max(alike, key=lambda entry: entry.saved)
        changed = [name for name, value in computed(fingerprint).items() if newest.fingerprint.get(name) != value]
        return newest.step, changed

    def evict(self, limit: int, is_needed: Callable[[Entry], bool]) -> None:
        """Remove files, those saved first before others, until they take `limit` bytes or all that is left is needed.

        What a killed process has left unfinished, and what cannot be read, goes after a day.
        """
        entries = sorted(self._entries(), key=lambda entry: entry.saved)
        for path in set(self._files()) - {entry.path for entry in entries}:
            if _age(path) > DAY and not path.is_dir():
                path.unlink(missing_ok=True)
        excess = sum(entry.size for entry in entries) - limit
        for entry in entries:
            if excess <= 0:
                return
            if not is_needed(entry):
                entry.path.unlink(missing_ok=True)
                excess -= entry.size

    def _path(self, fingerprint: Mapping[str, str]) -> Path:
        return self._folder / (identity(fingerprint) + _SUFFIX)

    def _files(self) -> list[Path]:
        return [path for path in self._folder.glob("*") if _OURS.fullmatch(path.name)]

    def _entries(self) -> Iterator[Entry]:
        for path in self._files():
            if path.name.endswith(UNFINISHED):
                continue
            try:
                facts = read_header(path).metadata
                fingerprint = dict(json.loads(facts["fingerprint"]))
                yield Entry(path, path.stat().st_size, float(facts["saved"]), int(facts["step"]), fingerprint)
            except (OSError, *_DAMAGED):  # damaged, or removed by another process meanwhile
                continue


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
