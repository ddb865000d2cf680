"""Sampling that survives a crash."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..ultragen_core.host.resume import MINUTES, STEPS, Keeping, resumable
from ..ultragen_core.states import StateFolder
from .base import Node

STATES = "ultragen_resume"


class UltraGenResume(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenResume",
            display_name="UltraGen Resume",
            category="UltraGen",
            description=(
                "Keeps what sampling has reached in output/ultragen_resume. The same prompt, queued again after a"
                " crash, an interrupt or an out-of-memory, goes on from there to the same video; a changed one starts"
                " anew. The file is removed when sampling is done; of runs never taken up again the newest four stay."
            ),
            inputs=[
                io.Sampler.Input(
                    "sampler",
                    tooltip=(
                        "euler or another one that needs nothing of earlier steps but the latent; others are refused,"
                        " with a list of those that work."
                    ),
                ),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip=(
                        "How many minutes or steps of work a crash may cost. An interrupt or an out-of-memory costs"
                        " none but the step that it falls into."
                    ),
                ),
                io.Combo.Input(
                    "unit",
                    options=[MINUTES, STEPS],
                    default=MINUTES,
                    tooltip=(
                        "Minutes suit every size: a state is as large as the latent (4K x 81 frames: 180 MB), and a"
                        " step takes from one second to minutes."
                    ),
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def model_files(cls, name: str) -> list[Path]:
        """The files of this name in ComfyUI's model folders."""
        path = Path(name)
        if path.anchor or path.suffix.lower() not in folder_paths.supported_pt_extensions | {".gguf"}:
            return []
        found = (folder_paths.get_full_path(folder, name) for folder in folder_paths.folder_names_and_paths)
        return [Path(file) for file in found if file]

    @classmethod
    def execute(cls, sampler, every, unit) -> io.NodeOutput:
        states = StateFolder(Path(folder_paths.get_output_directory()) / STATES)
        return io.NodeOutput(resumable(sampler, Keeping(states, every, unit, cls.model_files)))


NODES = [UltraGenResume]
