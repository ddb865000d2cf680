"""Where sampling starts, and starts again: noise levels, the empty latent, prompts, the sampler's state."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..ultragen_core.host.resume import MINUTES, STEPS, Keeping, resumable
from ..ultragen_core.host.sampling import empty_latent, with_shift
from ..ultragen_core.prompts import parse_prompts, read_prompts
from ..ultragen_core.sampling import PUBLISHED_SHIFT, flow_sigmas, shift_for_size
from ..ultragen_core.sizes import PRESETS, VideoSize, pixels_of
from ..ultragen_core.states import StateFolder

CUSTOM = "custom"
DEFAULT_PRESET = next(iter(PRESETS))
NO_FILE = "none"
PROMPT_FILES = (".txt", ".json")
STATES = "ultragen_resume"


class UltraGenModelSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenModelSampling",
            display_name="UltraGen Model Sampling",
            category="UltraGen",
            description=(
                "Flow shift for the model, and the published noise levels, which ComfyUI's schedulers do not hit"
                " exactly."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, patched or not; the order does not matter."),
                io.Float.Input(
                    "shift",
                    default=PUBLISHED_SHIFT,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip=(
                        "How much of the run is spent at high noise. UltraGen and T3-Video: 5. Higher: steadier layout,"
                        " less detail."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=30,
                    min=1,
                    max=1000,
                    tooltip=(
                        "Evaluations of the model. UltraGen: 30; T3-Video: 50; fewer only with a distillation LoRA."
                    ),
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip=(
                        "Connect the empty latent to scale the shift by its size: `shift` is then meant for 1920x1088"
                        " and grows with the square root of the number of pixels."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Sigmas.Output(
                    tooltip="steps + 1 noise levels from 1 to 0, for SamplerCustom and SamplerCustomAdvanced."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, shift, steps, latent=None) -> io.NodeOutput:
        if latent is not None:
            shift = shift_for_size(*pixels_of(latent["samples"].shape), shift)
        return io.NodeOutput(with_shift(model, shift), flow_sigmas(steps, shift))


class UltraGenEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenEmptyLatent",
            display_name="UltraGen Empty Latent",
            category="UltraGen",
            description=(
                "An empty video latent in a size that Wan can hold; sizes are rounded up, and the node says so."
            ),
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=DEFAULT_PRESET,
                    tooltip=(
                        "Size and frames. UltraGen's published weights are for 1080P x 81. custom: the three values"
                        " below."
                    ),
                ),
                io.Int.Input("width", default=1920, min=16, max=16384, step=8, tooltip="Pixels, with preset = custom."),
                io.Int.Input(
                    "height", default=1088, min=16, max=16384, step=8, tooltip="Pixels, with preset = custom."
                ),
                io.Int.Input(
                    "frames",
                    default=81,
                    min=1,
                    max=4097,
                    tooltip="With preset = custom: 4n + 1 frames, 81 as Wan was trained; 1 makes an image.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Videos at once; memory grows with it."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "Sets the latent's channels and ratio. Without it: Wan 2.1's (16 channels, 8x). Wan 2.2 5B"
                        " needs its own VAE here."
                    ),
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def wanted(cls, preset=DEFAULT_PRESET, width=1920, height=1088, frames=81, **_) -> VideoSize:
        """What is asked for, before it is rounded."""
        return PRESETS.get(preset, VideoSize(width, height, frames))

    @classmethod
    def execute(cls, preset, width, height, frames, batch_size, vae=None) -> io.NodeOutput:
        wanted = cls.wanted(preset, width, height, frames)
        latent, size = empty_latent(wanted, batch_size, vae)
        said = str(size) if size == wanted else f"{size} (rounded up from {wanted})"
        return io.NodeOutput(latent, ui=ui.PreviewText(said))


class UltraGenPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenPrompts",
            display_name="UltraGen Prompts",
            category="UltraGen",
            description=(
                "A list of prompts; every node that follows runs once for each before the next node runs, so that the"
                " videos of a long list are saved at the end."
            ),
            inputs=[
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="One prompt a line; lines that start with # are comments. Or json: a list of strings.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *cls.prompt_files()],
                    default=NO_FILE,
                    tooltip="A .txt or .json file of the input folder, read instead of the text.",
                ),
            ],
            outputs=[io.String.Output("prompts", is_output_list=True)],
        )

    @classmethod
    def prompt_files(cls) -> list[str]:
        folder = Path(folder_paths.get_input_directory())
        return sorted(path.name for path in folder.glob("*") if path.suffix.lower() in PROMPT_FILES and path.is_file())

    @classmethod
    def fingerprint_inputs(cls, text, file):
        return text if file == NO_FILE else hashlib.sha256(cls.file_path(file).read_bytes()).hexdigest()

    @classmethod
    def file_path(cls, file: str) -> Path:
        return Path(folder_paths.get_input_directory()) / Path(file).name

    @classmethod
    def execute(cls, text, file) -> io.NodeOutput:
        if file == NO_FILE:
            return io.NodeOutput(parse_prompts(text))
        return io.NodeOutput(read_prompts(cls.file_path(file)))


class UltraGenResume(io.ComfyNode):
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


NODES = [UltraGenModelSampling, UltraGenEmptyLatent, UltraGenPrompts, UltraGenResume]
