"""UltraGen Metrics: the metrics of UltraGen's paper."""

from __future__ import annotations

import json

import folder_paths
from comfy_api.latest import io, ui

from ..ultragen_core.host.metrics.measure import check, measure
from ..ultragen_core.metrics.report import numbers, picture, text
from ..ultragen_core.metrics.scores import METRICS
from .base import Node


class UltraGenMetrics(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenMetrics",
            display_name="UltraGen Metrics",
            category="UltraGen",
            description=(
                "Measures videos with the metrics of UltraGen's paper, frame by frame at full resolution. Lists are"
                " measured together. Files are streamed, so a long video needs little memory."
            ),
            inputs=[
                io.MultiType.Input(
                    "video",
                    types=[io.Video, io.Image],
                    tooltip="A video, or its frames as an image batch. Lists are measured together.",
                ),
                io.Boolean.Input(
                    "hd_mse",
                    default=True,
                    tooltip=(
                        "Detail lost when a frame is downscaled 8, 16 and 32 times: the sum of three mean squared"
                        " errors, in levels of 0-255. Higher: more detail, or more noise. Needs no file."
                    ),
                ),
                io.Boolean.Input(
                    "hd_lpips",
                    default=False,
                    tooltip=(
                        "The same with a perceptual distance (LPIPS). Higher: more detail. Needs"
                        " alexnet-owt-7be5be79.pth and alex.pth in models/classifiers."
                    ),
                ),
                io.Boolean.Input(
                    "hd_fvd",
                    default=False,
                    tooltip=(
                        "Frechet distance between 224x224 patches of the videos and of the reference videos. Lower:"
                        " more similar. Needs rgb_imagenet.pt in models/classifiers."
                    ),
                ),
                io.Boolean.Input(
                    "clip_score",
                    default=False,
                    tooltip=(
                        "Cosine similarity of frames and prompt in CLIP. Higher: the video matches the prompt better."
                        " Needs clip-vit-large-patch14.safetensors in models/clip_vision."
                    ),
                ),
                io.Boolean.Input(
                    "temporal_consistency",
                    default=False,
                    tooltip=(
                        "Similarity of each frame to the previous one and to the first, in CLIP. 1 is a still picture."
                        " Needs the same file as clip_score."
                    ),
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="For clip_score: the prompt of the video. A list holds one for each video.",
                ),
                io.MultiType.Input(
                    "reference",
                    types=[io.Video, io.Image],
                    optional=True,
                    tooltip="For hd_fvd: real videos of the same size and subject, one or a list. More are better.",
                ),
            ],
            outputs=[
                io.String.Output("numbers", tooltip="JSON: means over all videos, and the values of each."),
                io.String.Output("text", tooltip="The results as a readable table."),
                io.Image.Output("picture", tooltip="The table with a curve over the frames for each metric."),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def wanted(cls, switches: dict[str, list]) -> list[str]:
        """Return the metrics that are switched on. switches: lists, because ComfyUI passes every input as a list."""
        return [metric for metric in METRICS if switches[metric][0]]

    @classmethod
    def validate_inputs(
        cls, hd_mse, hd_lpips, hd_fvd, clip_score, temporal_consistency, prompt=(), reference=()
    ) -> bool:
        """Check the inputs when the prompt is queued, before any sampling. Linked inputs are None here."""
        values = [hd_mse, hd_lpips, hd_fvd, clip_score, temporal_consistency]
        if any(value[0] is None for value in values):
            return True
        wanted = cls.wanted(dict(zip(METRICS, values, strict=True)))
        check(wanted, folder_paths.get_full_path, reference, prompt)
        return True

    @classmethod
    def execute(cls, video, prompt, reference=(), **switches) -> io.NodeOutput:
        scores = measure(video, cls.wanted(switches), folder_paths.get_full_path, reference, prompt)
        table, image = text(scores), picture(scores)
        shown = {**ui.PreviewImage(image, cls=cls).as_dict(), **ui.PreviewText(table).as_dict()}
        return io.NodeOutput(json.dumps(numbers(scores), indent=2), table, image, ui=shown)


NODES = [UltraGenMetrics]
