"""The node UltraGen MultiGPU: one video on several GPUs."""

from __future__ import annotations

from comfy_api.latest import io

from ..ultragen_core.host.multigpu.patch import use_gpus
from .base import Node

SPLITS = ["auto", "prompts", "video"]


class UltraGenMultiGPU(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenMultiGPU",
            display_name="UltraGen MultiGPU",
            category="UltraGen",
            description=(
                "Samples one video on several GPUs of this computer, even with CFG 1. Each GPU holds the whole model"
                " and computes a rectangle of every frame; the result is that of one GPU, except for rounding. Needs"
                " ComfyUI 0.30.0 or newer."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "A Wan model, patched or not. Put UltraGen Apply and LoRA nodes before or after; a"
                        " torch.compile node keeps each prompt on one GPU."
                    ),
                ),
                io.Int.Input(
                    "gpus",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Number of GPUs, the model's own included. 0: all of them.",
                ),
                io.Combo.Input(
                    "split",
                    options=SPLITS,
                    default="auto",
                    tooltip=(
                        "auto: prompts first (CFG above 1 has two), then the GPUs that are left share a prompt."
                        " prompts: one GPU per prompt; choose it for GPUs with slow links. video: all GPUs share every"
                        " prompt."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, sampled by these GPUs with any sampler node.")],
        )

    @classmethod
    def execute(cls, model, gpus, split) -> io.NodeOutput:
        return io.NodeOutput(use_gpus(model, gpus, split))


NODES = [UltraGenMultiGPU]
