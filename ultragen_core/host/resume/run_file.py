"""The state file of one sampling run, in ComfyUI's output folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...storage.states import NODE, State, StateFolder
from ..server import RunningNode
from .fingerprint import RESULT, STATE, FindFiles, fingerprint
from .prompt_files import PROMPT_FILES, PromptFiles, warn_on_failure

FOLDER = "ultragen_resume"  # inside ComfyUI's output folder
GB = 10**9
DEFAULT_GB = 20
RESULTS_KEY = "ultragen_results"  # of the wrapper that saves finished runs (results.py)

log = logging.getLogger(__name__)


def default_folder() -> StateFolder:
    return StateFolder(Path(folder_paths.get_output_directory()) / FOLDER)


def saves_results(model) -> bool:
    """Whether finished runs of this ModelPatcher are saved."""
    return any(wrapper.__self__.limit for wrapper in model.get_wrappers(WrappersMP.OUTER_SAMPLE, RESULTS_KEY))


def identify(
    kind: str,
    node: RunningNode,
    device: torch.device,
    values: Callable[[], Mapping[str, object]],
    find_files: FindFiles,
) -> dict[str, str] | None:
    """Return the run's fingerprint, or None where it cannot be told from others; the run is then sampled unsaved."""
    try:
        return fingerprint(kind, node, device, values(), find_files)
    except Exception as error:  # objects of other packs may raise anything when they are read
        log.warning("UltraGen: this sampling will not be kept (%s: %s).", type(error).__name__, error)
        return None


@dataclass(frozen=True)
class RunFile:
    """The file of one sampling run.

    fingerprint: what the run computes. prompt_id: the prompt that it runs for. limit: bytes that files which no prompt
    needs may take in the folder.
    """

    folder: StateFolder
    fingerprint: Mapping[str, str]
    prompt_id: str | None
    limit: int
    prompts: PromptFiles = PROMPT_FILES

    def load(self, like: Tensor, steps: range) -> State | None:
        """Read the state, if it is finite, has the shape and dtype of `like`, and its step is in `steps`."""
        found = self.folder.load(self.fingerprint)
        if found is None:
            return None
        x, expected = found.x, (tuple(like.shape), like.dtype)
        if (tuple(x.shape), x.dtype) != expected or found.step not in steps or not torch.isfinite(x).all():
            log.warning("UltraGen: starting over; the state after step %d does not belong to this run.", found.step)
            return None
        self.prompts.hold(self.prompt_id, self.folder, self.fingerprint)
        return found

    def save(self, state: State) -> bool:
        """Write the state and evict files that no prompt needs; return whether it was written.

        A state that is not finite is not written. A failing disk is logged, not raised.
        """
        written = False
        with warn_on_failure(f"after step {state.step} could not be written"):
            # On the CPU: a full device may be the reason for this write.
            state = replace(state, x=state.x.detach().cpu())
            if torch.isfinite(state.x).all():
                self.folder.save(self.fingerprint, state)
                written = True
                self.prompts.wrote(self.fingerprint)
                self.prompts.hold(self.prompt_id, self.folder, self.fingerprint)
                self.folder.evict(self.limit, self.prompts.is_needed)
            else:
                log.warning("UltraGen: the latent after step %d is not finite; it is not kept.", state.step)
        return written

    def remove_states(self) -> None:
        """Remove the states that led to this result: those of the same prompt, node and list position."""
        self.prompts.remove(self.prompt_id, self.fingerprint[NODE].replace(RESULT, STATE, 1))
