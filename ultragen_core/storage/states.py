"""Sampling runs on disk: the latest state of an unfinished run or the result of a finished one, one file each.

A file is complete or absent: it is written under another name first (files.py).
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

from .files import UNFINISHED, files_in, finished_file
from .safetensors_file import read_header, read_tensors

# Two entries of a fingerprint locate a run and do not identify it: its node with the position in ComfyUI's lists, and
# its graph with the contents of lists left out. All others tell what the run computes.
NODE, GRAPH_FAMILY = "node", "graph family"
DAY = 24 * 3600  # seconds
RESERVE = 10**9  # bytes of the disk that stay free for the video

_SUFFIX = ".safetensors"
_OURS = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}(.*{re.escape(UNFINISHED)})?")
_DAMAGED = (ValueError, LookupError, TypeError)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """A sampling run after `step` steps.

    x: the latent, of any shape. draws: how often noise was drawn so far. denoised: the latent that the last step's
    callback got; finished runs only.
    """

    x: Tensor
    step: int
    draws: int = 0
    denoised: Tensor | None = None


@dataclass(frozen=True)
class StateFile:
    """A file of the folder. size: bytes. saved: seconds since 1970, by the clock of the machine that wrote it."""

    path: Path
    size: int
    saved: float
    step: int
    fingerprint: Mapping[str, str]


def identifying(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """Return the entries that tell what a run computes."""
    return {name: value for name, value in fingerprint.items() if name not in (NODE, GRAPH_FAMILY)}


def identity(fingerprint: Mapping[str, str]) -> str:
    """Hash what a run computes, whatever its node: 64 hex digits."""
    return hashlib.sha256(json.dumps(identifying(fingerprint), sort_keys=True).encode()).hexdigest()


class StateFolder:
    """The state files in `folder`, named after the identity of their run.

    Other files are never touched. Damaged state files are ignored.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def load(self, fingerprint: Mapping[str, str]) -> State | None:
        """Read the state of this run to the CPU, without mapping the file; None where no file can be read."""
        path = self.path_of(fingerprint)
        try:
            tensors, facts = read_tensors(path)
            return State(tensors["x"], int(facts["step"]), int(facts["draws"]), tensors.get("denoised"))
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, MemoryError, *_DAMAGED) as error:
            log.warning("UltraGen: starting over; %s cannot be read: %s", path, error)
            return None

    def save(self, fingerprint: Mapping[str, str], state: State) -> None:
        """Write the state of this run in place of its former one. Raises OSError; the former one then stays."""
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
        if 0 < free < len(content) + RESERVE:  # some network folders report 0
            raise OSError(errno.ENOSPC, f"{self._folder} has {free / 1e9:.1f} GB free, of which 1 GB stays for videos.")
        with finished_file(self.path_of(fingerprint)) as part:
            # When it is killed, safetensors' own save_file leaves a file under an unknown name.
            part.write_bytes(content)

    def remove(self, fingerprint: Mapping[str, str]) -> None:
        """Remove the file of this run and what killed processes left of it. Raises OSError."""
        path = self.path_of(fingerprint)
        for file in (path, *self._folder.glob(f"{path.name}*{UNFINISHED}")):
            file.unlink(missing_ok=True)

    def changes(self, fingerprint: Mapping[str, str]) -> tuple[int, list[str]] | None:
        """Return step and differing entries of the newest state of the same node; None where it has no state."""
        of_node = [file for file in self._state_files() if file.fingerprint.get(NODE) == fingerprint[NODE]]
        if not of_node:
            return None
        newest = max(of_node, key=lambda file: file.saved)
        changed = [name for name, value in identifying(fingerprint).items() if newest.fingerprint.get(name) != value]
        return newest.step, changed

    def evict(self, limit: int, is_needed: Callable[[StateFile], bool]) -> None:
        """Remove files that are not needed, oldest first, until all take at most `limit` bytes. Raises OSError.

        Unfinished files of killed processes and unreadable files are removed after a day.
        """
        files = sorted(self._state_files(), key=lambda file: file.saved)
        for path in set(self._paths()) - {file.path for file in files}:
            if _age(path) > DAY:
                path.unlink(missing_ok=True)
        excess = sum(file.size for file in files) - limit
        for file in files:
            if excess <= 0:
                return
            if not is_needed(file):
                file.path.unlink(missing_ok=True)
                excess -= file.size

    def path_of(self, fingerprint: Mapping[str, str]) -> Path:
        """Return the file of this run, which need not exist."""
        return self._folder / (identity(fingerprint) + _SUFFIX)

    def _paths(self) -> list[Path]:
        return [path for path in files_in(self._folder) if _OURS.fullmatch(path.name)]

    def _state_files(self) -> Iterator[StateFile]:
        for path in self._paths():
            if path.name.endswith(UNFINISHED):
                continue
            try:
                facts = read_header(path).metadata
                fingerprint = dict(json.loads(facts["fingerprint"]))
                yield StateFile(path, path.stat().st_size, float(facts["saved"]), int(facts["step"]), fingerprint)
            except (OSError, *_DAMAGED):  # damaged, or just removed by another process
                continue


def _age(path: Path) -> float:
    """Return the seconds since a file was written; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
