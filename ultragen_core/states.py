"""How far a sampling run has come, on disk: one file for each unfinished run, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import UNFINISHED, finished_file

# What runs that were never taken up again may leave behind.
KEPT = 4

_SUFFIX = ".safetensors"
_OURS = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}({re.escape(UNFINISHED)})?")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """The latent `x`, of any shape, after `step` steps; `draws` counts the noise drawn in them."""

    x: Tensor
    step: int
    draws: int = 0


class StateFolder:
    """Files named after the fingerprint of their run: {what it is of: its digest}. Equal in every entry, the same run.

    Only files with such names are ever removed: those of the run that ended, and all but the newest `KEPT`.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def load(self, fingerprint: Mapping[str, str]) -> State | None:
        """The state of this run, on the CPU; None where there is none, or its file is damaged."""
        path = self._path(fingerprint)
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata()
                # A copy: Windows cannot replace a file that is mapped into memory.
                return State(file.get_tensor("x").clone(), int(facts["step"]), int(facts["draws"]))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("UltraGen: starting anew; %s cannot be read: %s", path, error)
            return None

    def save(self, fingerprint: Mapping[str, str], state: State) -> None:
        """Take the place of the run's former state; on OSError that one stays."""
        self._folder.mkdir(parents=True, exist_ok=True)
        facts = {"step": str(state.step), "draws": str(state.draws), "fingerprint": json.dumps(dict(fingerprint))}
        with finished_file(self._path(fingerprint)) as part:
            # safetensors' own save_file leaves a file under a name that nobody knows when it is killed.
            part.write_bytes(save({"x": state.x.detach().cpu().contiguous()}, metadata=facts))
        for path in self._newest_first()[KEPT:]:
            path.unlink(missing_ok=True)

    def remove(self, fingerprint: Mapping[str, str]) -> None:
        path = self._path(fingerprint)
        path.unlink(missing_ok=True)
        path.with_name(path.name + UNFINISHED).unlink(missing_ok=True)  # of a process killed while it wrote

    def changes(self, fingerprint: Mapping[str, str], same: str) -> tuple[str, list[str]] | None:
        """(step, entries that differ) of the newest state that agrees with this run in the entry `same`."""
        for path in self._newest_first():
            try:
                with safe_open(path, framework="pt") as file:
                    facts = file.metadata()
            except (OSError, SafetensorError):  # a part of a file, or a damaged one
                continue
            other = json.loads(facts["fingerprint"])
            if other.get(same) == fingerprint[same]:
                return facts["step"], [name for name in fingerprint if other.get(name) != fingerprint[name]]
        return None

    def _path(self, fingerprint: Mapping[str, str]) -> Path:
        text = json.dumps(dict(fingerprint), sort_keys=True)
        return self._folder / (hashlib.sha256(text.encode()).hexdigest() + _SUFFIX)

    def _newest_first(self) -> list[Path]:
        ours = [path for path in self._folder.glob("*") if _OURS.fullmatch(path.name)]
        return sorted(ours, key=lambda path: path.stat().st_mtime, reverse=True)
