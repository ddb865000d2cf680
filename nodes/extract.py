"""UltraGen Extract Weights."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io, ui

from ..ultragen_core.printable import printable
from ..ultragen_core.weights.extras_file import extract
from .base import Node


class UltraGenExtractWeights(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenExtractWeights",
            display_name="UltraGen Extract Weights",
            category="UltraGen",
            description=(
                "Writes UltraGen's extras, the weights that it adds to Wan, to a small safetensors file for UltraGen"
                " Apply."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A complete UltraGen checkpoint in models/diffusion_models.",
                ),
                io.String.Input(
                    "file_name",
                    default="ultragen_extras",
                    tooltip=(
                        "Name of the file in models/model_patches, without extension. No file is replaced: if the name"
                        " is taken, a number is added."
                    ),
                ),
            ],
            outputs=[io.String.Output("path", tooltip="The path of the file.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, checkpoint, file_name) -> io.NodeOutput:
        source = folder_paths.get_full_path_or_raise("diffusion_models", checkpoint)
        path, blocks, written = extract(source, folder_paths.get_folder_paths("model_patches")[0], file_name)
        there = "" if written else "exists already, unchanged: "
        shown = f"{there}{blocks} blocks, {path.stat().st_size / 2**20:.1f} MiB: {printable(path)}"
        return io.NodeOutput(str(path), ui=ui.PreviewText(shown))


NODES = [UltraGenExtractWeights]
