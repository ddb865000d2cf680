"""UltraGen Model Sampling and UltraGen Empty Latent."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..ultragen_core.host.sampling import empty_latent, with_shift
from ..ultragen_core.sampling import PUBLISHED_SHIFT, flow_sigmas, shift_for_size
from ..ultragen_core.sizes import PRESETS, VideoSize, pixels_of
from .base import Node

CUSTOM = "custom"
DEFAULT_PRESET = next(iter(PRESETS))
SIDE = "In pixels, for preset = custom. Rounded up to a multiple of 16 (32 with Wan 2.2 5B's VAE)."


class UltraGenModelSampling(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenModelSampling",
            display_name="UltraGen Model Sampling",
            category="UltraGen",
            description=(
                "Sets the model's flow shift and outputs the published noise levels, which ComfyUI's schedulers only"
                " approximate."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, patched or not. The order of the nodes does not matter."),
                io.Float.Input(
                    "shift",
                    default=PUBLISHED_SHIFT,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip=(
                        "Flow shift: how much of the run is spent at high noise. UltraGen and T3-Video: 5. Higher: more"
                        " coherent layout, less detail."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=30,
                    min=1,
                    max=1000,
                    tooltip=("Number of steps. UltraGen: 30; T3-Video: 50. Use fewer only with a distillation LoRA."),
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip=(
                        "Connect the empty latent to scale the shift with its size: shift then applies to 1920x1088 and"
                        " grows with the square root of the number of pixels."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the shift set."),
                io.Sigmas.Output(
                    tooltip="steps + 1 noise levels from 1 to 0, for SamplerCustom or SamplerCustomAdvanced."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, shift, steps, latent=None) -> io.NodeOutput:
        if latent is not None:
            shift = shift_for_size(*pixels_of(latent["samples"].shape), shift)
        return io.NodeOutput(with_shift(model, shift), flow_sigmas(steps, shift))


class UltraGenEmptyLatent(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenEmptyLatent",
            display_name="UltraGen Empty Latent",
            category="UltraGen",
            description=(
                "Creates an empty video latent in a size that Wan supports. Other sizes are rounded up, and the node"
                " shows the result."
            ),
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=DEFAULT_PRESET,
                    tooltip=(
                        "Size and number of frames. UltraGen's published weights are for 1080P x 81. custom: use the"
                        " three values below."
                    ),
                ),
                io.Int.Input("width", default=1920, min=16, max=16384, step=16, tooltip=SIDE),
                io.Int.Input("height", default=1088, min=16, max=16384, step=16, tooltip=SIDE),
                io.Int.Input(
                    "frames",
                    default=81,
                    min=1,
                    max=4097,
                    tooltip="For preset = custom: 4n + 1 frames. Wan was trained on 81; 1 makes an image.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Videos sampled at once. Memory grows with it; leave 1 unless memory is ample.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "Sets the latent's channels and compression. Default: Wan 2.1 (16 channels, 8x). Wan 2.2 5B"
                        " needs its VAE here."
                    ),
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The empty video latent.")],
        )

    @classmethod
    def wanted(cls, preset=DEFAULT_PRESET, width=1920, height=1088, frames=81, **_) -> VideoSize:
        """Return the requested size, before rounding."""
        return PRESETS.get(preset, VideoSize(width, height, frames))

    @classmethod
    def execute(cls, preset, width, height, frames, batch_size, vae=None) -> io.NodeOutput:
        wanted = cls.wanted(preset, width, height, frames)
        latent, size = empty_latent(wanted, batch_size, vae)
        shown = str(size) if size == wanted else f"{size} (rounded up from {wanted})"
        return io.NodeOutput(latent, ui=ui.PreviewText(shown))


NODES = [UltraGenModelSampling, UltraGenEmptyLatent]
