"""The node UltraGen Resume: sampling that survives a crash."""

from __future__ import annotations

from comfy_api.latest import io

from ..ultragen_core.host.resume.fingerprint import model_files
from ..ultragen_core.host.resume.run_file import DEFAULT_GB, FOLDER, GB, default_folder
from ..ultragen_core.host.resume.stepwise import MINUTES, STEPS, ResumeOptions, resumable
from .base import Node


def keep_gb_input(smallest: int = 0) -> io.Int.Input:
    return io.Int.Input(
        "keep_gb",
        optional=True,
        default=DEFAULT_GB,
        min=smallest,
        max=100_000,
        tooltip=(
            f"GB of disk that output/{FOLDER} may take for samplings whose prompt has not succeeded. Beyond it the"
            " oldest are removed, but never those of queued prompts. A finished 4K sampling of 81 frames takes 360 MB."
            " Lower it if the disk is small." + ("" if smallest else " 0: keep none.")
        ),
    )


class UltraGenResume(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenResume",
            display_name="UltraGen Resume",
            category="UltraGen",
            description=(
                "Saves the state of an unfinished sampling in output/ultragen_resume. After a crash, an interrupt or an"
                " out-of-memory error, run the same workflow again: it continues from there to the same video. The file"
                " is removed when its prompt has succeeded."
            ),
            inputs=[
                io.Sampler.Input(
                    "sampler",
                    tooltip=(
                        "A single-step sampler such as euler, whose only state is the latent. Others are refused, with"
                        " a list of those that work."
                    ),
                ),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip=(
                        "Minutes or steps between two saves: what a crash may cost. Raise it if the disk is slow. An"
                        " interrupt or an out-of-memory error costs only the step that it stops."
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
                keep_gb_input(smallest=1),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, sampler, every, unit, keep_gb=DEFAULT_GB) -> io.NodeOutput:
        options = ResumeOptions(default_folder(), every, unit, model_files, keep_gb * GB)
        return io.NodeOutput(resumable(sampler, options))


NODES = [UltraGenResume]
