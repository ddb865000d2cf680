"""What sampling keeps on disk until the prompt that it belongs to has succeeded."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import torch
from torch import Tensor

from ..states import DAY, FAMILY, PLACE, Entry, State, StateFolder, identity
from .fingerprint import RESULT, STATE, GraphDigest
from .queue import graphs_in_progress, when_ended

FOLDER = "ultragen_resume"  # inside ComfyUI's output folder
GB = 10**9
DEFAULT_GB = 20

log = logging.getLogger(__name__)

# What each prompt that runs has written or taken, {prompt id: {identity: (folder, fingerprint)}}, and all identities
# that this process has written.
_held: dict[str, dict[str, tuple[StateFolder, Mapping[str, str]]]] = {}
_written: set[str] = set()


def default_folder() -> StateFolder:
    return StateFolder(Path(folder_paths.get_output_directory()) / FOLDER)


@dataclass(frozen=True)
class Kept:
    """The file of one sampling run: its folder, its fingerprint, the prompt that it runs for, and the bytes that
    files nobody needs may take.
    """

    states: StateFolder
    run: Mapping[str, str]
    prompt_id: str | None
    limit: int

    def load(self, like: Tensor, steps: range) -> State | None:
        """The state of this run, if it is finite, has the shape and type of `like`, and its step is in `steps`."""
        found = self.states.load(self.run)
        if found is None:
            return None
        x, wanted = found.x, (tuple(like.shape), like.dtype)
        if (tuple(x.shape), x.dtype) != wanted or found.step not in steps or not torch.isfinite(x).all():
            log.warning(
                "UltraGen: starting over; the state after step %d does not belong to this run.",
                found.step,
            )
            return None
        self._hold()
        return found

    def save(self, state: State) -> None:
        """Write the state, unless the disk or its values forbid it, and make room for it among what nobody needs."""
        if not torch.isfinite(state.x).all():
            log.warning("UltraGen: the latent after step %d is not finite; it is not kept.", state.step)
            return
        with spared(f"after step {state.step} could not be written"):
            self.states.save(self.run, state)
            _written.add(identity(self.run))
            self._hold()
            self.states.evict(self.limit, _needed())

    def drop_states(self) -> None:
        """Remove the states that led to this result: what the prompt has kept of the same node and list position."""
        held, place = _held.get(self.prompt_id, {}), self.run[PLACE].replace(RESULT, STATE, 1)
        for key, (states, run) in list(held.items()):
            if run[PLACE] == place:
                with spared("could not be removed"):
                    states.remove(run)
                    del held[key]

    def _hold(self) -> None:
        if self.prompt_id is None:
            return
        if self.prompt_id not in _held:
            _held[self.prompt_id] = {}
            when_ended(self.prompt_id, functools.partial(_release, self.prompt_id))
        _held[self.prompt_id][identity(self.run)] = self.states, self.run


def _release(prompt_id: str, succeeded: bool) -> None:
    for states, run in _held.pop(prompt_id, {}).values():
        if succeeded:
            with spared("could not be removed"):
                states.remove(run)


def _needed() -> Callable[[Entry], bool]:
    """Whether a file belongs to a prompt that runs or waits here, or may belong to one of another server."""
    held = {key for files in _held.values() for key in files}

    @functools.cache
    def families() -> set[str]:
        graphs = graphs_in_progress().values()
        return {GraphDigest(graph, None).of(node_id) for graph in graphs for node_id in graph}

    def is_needed(entry: Entry) -> bool:
        key = identity(entry.fingerprint)
        recent = entry.saved > time.time() - DAY
        return key in held or (recent and key not in _written) or entry.fingerprint.get(FAMILY) in families()

    return is_needed


@contextmanager
def spared(failure: str) -> Iterator[None]:
    """A disk or GPU that fails here costs the state, not the run, and does not hide what cut the run off."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        log.warning("UltraGen: the state %s: %s", failure, error)
