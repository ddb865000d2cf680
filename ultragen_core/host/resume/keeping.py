"""What sampling keeps on disk until the prompt that it belongs to has succeeded."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import folder_paths
import torch
from torch import Tensor

from ...storage.states import DAY, FAMILY, PLACE, Entry, State, StateFolder, identity
from ..server import Graph, RunningNode, graphs_in_progress, when_ended
from .fingerprint import RESULT, STATE, FindFiles, fingerprint
from .graph_digest import GraphDigest

FOLDER = "ultragen_resume"  # inside ComfyUI's output folder
GB = 10**9
DEFAULT_GB = 20

log = logging.getLogger(__name__)

# What each prompt that runs has written or taken, {prompt id: {identity: (folder, fingerprint)}}, and all identities
# that this process has written.
_held: dict[str, dict[str, tuple[StateFolder, Mapping[str, str]]]] = {}
_written: set[str] = set()
_families_known: dict[str, set[str]] = {}


def default_folder() -> StateFolder:
    return StateFolder(Path(folder_paths.get_output_directory()) / FOLDER)


def identify(
    kind: str,
    node: RunningNode,
    device: torch.device,
    values: Callable[[], Mapping[str, object]],
    find_files: FindFiles,
) -> dict[str, str] | None:
    """See `fingerprint`; None where a run cannot be told from others, which is no reason not to sample."""
    try:
        return fingerprint(kind, node, device, values(), find_files)
    except Exception as error:  # objects of other packs may raise anything when they are looked at
        log.warning("UltraGen: nothing of this sampling is kept: %s: %s", type(error).__name__, error)
        return None


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
            log.warning("UltraGen: starting over; the state after step %d does not belong to this run.", found.step)
            return None
        self._hold()
        return found

    def save(self, state: State) -> bool:
        """Write the state, unless the disk or its values forbid it, and make room among what nobody needs."""
        written = False
        with spared(f"after step {state.step} could not be written"):
            # On the CPU: the device may be full, which is why this is written.
            state = replace(state, x=state.x.detach().cpu())
            if torch.isfinite(state.x).all():
                self.states.save(self.run, state)
                written = True
                _written.add(identity(self.run))
                self._hold()
                self.states.evict(self.limit, _needed())
            else:
                log.warning("UltraGen: the latent after step %d is not finite; it is not kept.", state.step)
        return written

    def drop_states(self) -> None:
        """Remove the states that led to this result: what the prompt has kept of the same node and list position."""
        held, place = _held.get(self.prompt_id, {}), self.run[PLACE].replace(RESULT, STATE, 1)
        for key, (states, run) in list(held.items()):
            if run[PLACE] == place:
                with spared("could not be removed"):
                    states.remove(run)
                    del held[key]

    def _hold(self) -> None:
        if self.prompt_id is not None:
            _hold(self.prompt_id, self.states, self.run)


def _hold(prompt_id: str, states: StateFolder, run: Mapping[str, str]) -> None:
    if prompt_id not in _held:
        _held[prompt_id] = {}
        when_ended(prompt_id, functools.partial(_release, prompt_id))
    _held[prompt_id][identity(run)] = states, run


def _release(prompt_id: str, succeeded: bool) -> None:
    """Remove what a prompt has kept when it succeeded, unless another one has it, too, or may want it."""
    for key, (states, run) in _held.pop(prompt_id, {}).items():
        if not succeeded or any(key in files for files in _held.values()):
            continue
        heir = next((other for other, family in _families().items() if run.get(FAMILY) in family), None)
        if heir is not None:
            _hold(heir, states, run)
            continue
        with spared("could not be removed"):
            states.remove(run)


def _families() -> dict[str, set[str]]:
    """The families of all nodes of the graphs that run or wait, by prompt id."""
    graphs = graphs_in_progress()
    for prompt_id in _families_known.keys() - graphs:
        del _families_known[prompt_id]
    for prompt_id in graphs.keys() - _families_known:
        _families_known[prompt_id] = _families_of(graphs[prompt_id])
    return _families_known


def _families_of(graph: Graph) -> set[str]:
    digests = GraphDigest(graph, None)
    return {digests.of(node_id) for node_id in (*graph, "made while running")}


def _needed() -> Callable[[Entry], bool]:
    """Whether a file belongs to a prompt that runs or waits here, or may belong to one of another server."""
    held = {key for files in _held.values() for key in files}
    families = functools.cache(lambda: set().union(*_families().values()))

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
    except (OSError, RuntimeError, MemoryError) as error:
        log.warning("UltraGen: the state %s: %s", failure, error)
