"""Which state files belong to which prompt, and when they can go: a file is removed when its prompt has succeeded."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ...storage.states import DAY, GRAPH_FAMILY, NODE, StateFile, StateFolder, identity
from ..server import Graph, graphs_in_progress, when_ended
from .graph_digest import GraphDigest

log = logging.getLogger(__name__)

Fingerprint = Mapping[str, str]


class PromptFiles:
    """The state files that prompts of this process have written or read.

    in_progress: returns the graphs of all prompts that run or wait, by prompt id. when_ended(prompt_id, act): calls
    act(succeeded) after that prompt, in the thread of the server; all else is called in the one that samples.
    """

    def __init__(
        self,
        in_progress: Callable[[], Mapping[str, Graph]] = graphs_in_progress,
        when_ended: Callable[[str, Callable[[bool], None]], None] = when_ended,
    ):
        self._in_progress, self._when_ended = in_progress, when_ended
        # {prompt id: {identity: (folder, fingerprint)}}
        self._held: dict[str, dict[str, tuple[StateFolder, Fingerprint]]] = {}
        self._written: set[str] = set()
        self._families_of_prompts: dict[str, set[str]] = {}
        self._lock = threading.RLock()

    def hold(self, prompt_id: str | None, folder: StateFolder, fingerprint: Fingerprint) -> None:
        """Keep a file for a prompt until it ends. None: a run without a prompt, which holds nothing."""
        if prompt_id is None:
            return
        with self._lock:
            if prompt_id not in self._held:
                self._held[prompt_id] = {}
                self._when_ended(prompt_id, functools.partial(self._release, prompt_id))
            self._held[prompt_id][identity(fingerprint)] = folder, fingerprint

    def wrote(self, fingerprint: Fingerprint) -> None:
        """Note that this process, not another server, has written a file."""
        self._written.add(identity(fingerprint))

    def remove(self, prompt_id: str | None, node: str) -> None:
        """Remove the files that a prompt holds for one node and list position."""
        with self._lock:
            held = self._held.get(prompt_id, {})
            for key, (folder, fingerprint) in list(held.items()):
                if fingerprint[NODE] == node:
                    with warn_on_failure("could not be removed"):
                        folder.remove(fingerprint)
                        del held[key]

    def is_needed(self, file: StateFile) -> bool:
        """Whether a file belongs to a prompt that runs or waits here, or may belong to one of another server."""
        key = identity(file.fingerprint)
        with self._lock:
            if any(key in files for files in self._held.values()):
                return True
            of_another_server = file.saved > time.time() - DAY and key not in self._written
            return of_another_server or self._waiting_prompt(file.fingerprint) is not None

    def _release(self, prompt_id: str, succeeded: bool) -> None:
        """Remove the files of a prompt that succeeded, unless another prompt holds them or may read them."""
        with self._lock:
            for key, (folder, fingerprint) in self._held.pop(prompt_id, {}).items():
                if not succeeded or any(key in files for files in self._held.values()):
                    continue
                waiting = self._waiting_prompt(fingerprint)
                if waiting is not None:
                    self.hold(waiting, folder, fingerprint)
                    continue
                with warn_on_failure("could not be removed"):
                    folder.remove(fingerprint)

    def _waiting_prompt(self, fingerprint: Fingerprint) -> str | None:
        """Find a prompt that runs or waits whose graph has a node of the same family."""
        graphs, known = self._in_progress(), self._families_of_prompts
        for prompt_id in known.keys() - graphs:
            del known[prompt_id]
        for prompt_id in graphs.keys() - known:
            known[prompt_id] = _families(graphs[prompt_id])
        return next((each for each, families in known.items() if fingerprint.get(GRAPH_FAMILY) in families), None)


PROMPT_FILES = PromptFiles()


def _families(graph: Graph) -> set[str]:
    digests = GraphDigest(graph, None)
    return {digests.of(node_id) for node_id in (*graph, "made while running")}


@contextmanager
def warn_on_failure(failure: str) -> Iterator[None]:
    """Log a disk or GPU error instead of raising it: it costs the state, not the run, and hides no other error."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        log.warning("UltraGen: the state %s: %s", failure, error)
