"""Loading a model, giving it UltraGen's attention, taking its extra weights out."""

from __future__ import annotations

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..ultragen_core.host.attention.load import RULES, load_extras_file, load_model
from ..ultragen_core.host.attention.patch import Settings, apply
from ..ultragen_core.host.resume.results import save_results_
from ..ultragen_core.host.resume.run_file import DEFAULT_GB
from ..ultragen_core.printable import printable
from ..ultragen_core.weights.extras_file import extract
from .base import Node
from .config import GlobalConfigType, LocalConfigType
from .resume import keep_gb_input

WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
NONE = "none"


def settings_of(
    attention_rule, start_percent, end_percent, bounded_memory, local_config=None, global_config=None
) -> Settings:
    """The settings that the widgets of UltraGen Apply and its configs stand for. Raises ValueError."""
    configs = {"local": local_config, "global_": global_config}
    return Settings(
        start_percent=start_percent,
        end_percent=end_percent,
        rule=attention_rule,
        bounded_memory=bounded_memory,
        **{name: config for name, config in configs.items() if config is not None},
    )


class UltraGenLoadModel(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenLoadModel",
            display_name="UltraGen Load Model",
            category="UltraGen",
            description=(
                "Loads a checkpoint of UltraGen or T3-Video (or a Wan model) and gives it the attention that it was"
                " trained for."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip=(
                        "A file of models/diffusion_models: ultragen_1080p.ckpt as published, under any name, .ckpt or"
                        " .safetensors, for 1080P; T3-Video-Wan2.1-T2V-1.3B or T3-Video-Wan2.2-T2V-5B for 4K. Of a"
                        " model in pieces (-00001-of-00003) any piece. GGUF: use its own loader, then UltraGen Apply."
                    ),
                ),
                io.Combo.Input(
                    "attention_rule",
                    options=list(RULES),
                    default="auto",
                    tooltip=(
                        "auto: the rule that the weights in the file were trained for (UltraGen is known by its keys,"
                        " T3-Video by its file name), and an error for other files. t3: this is T3-Video under another"
                        " name. ultragen: also take a Wan model without UltraGen's weights (experimental, quality"
                        " unmeasured). dense: core's full attention, for comparing."
                    ),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip=(
                        "Precision that the base weights are kept in. default: as in the file. fp8 halves their memory"
                        " and costs some quality; UltraGen's extra weights keep theirs."
                    ),
                ),
                keep_gb_input(),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, patched already. Chain UltraGen Apply to change the settings.")
            ],
        )

    @classmethod
    def execute(cls, checkpoint, attention_rule, weight_dtype, keep_gb=DEFAULT_GB) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", checkpoint)
        return io.NodeOutput(save_results_(load_model(path, attention_rule, WEIGHT_DTYPES[weight_dtype]), keep_gb))


class UltraGenApply(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenApply",
            display_name="UltraGen Apply",
            category="UltraGen",
            description=(
                "Gives a Wan model from any loader UltraGen's or T3-Video's attention. On a model that has it already,"
                " replaces the settings and keeps rule and extra weights."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Wan 2.1 or 2.2 model, in any precision."),
                io.Combo.Input(
                    "attention_rule",
                    options=[rule for rule in RULES if rule != "dense"],
                    default="auto",
                    tooltip=(
                        "auto: the rule that the model has already or its extra weights were trained for, and an error"
                        " if there are none. t3: for a model whose weights are T3-Video's, from any loader (with others"
                        " the picture falls apart). ultragen: also without extra weights (experimental: average"
                        " pooling, quality unmeasured)."
                    ),
                ),
                io.Combo.Input(
                    "extras",
                    options=[NONE, *folder_paths.get_filename_list("model_patches")],
                    default=NONE,
                    tooltip=(
                        "UltraGen's extra weights, a file of models/model_patches made by UltraGen Extract Weights."
                        " none: those that the model has already, if it has any."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Part of the sampling run (0.3 is its first 30 %) after which UltraGen's attention starts;"
                        " before it attention is dense. Raise it to let the first steps, which decide the layout, see"
                        " the whole frame at full cost."
                    ),
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Part of the sampling run (0 to 1) after which attention is dense again. Leave it at 1 for"
                        " trained weights."
                    ),
                ),
                io.Boolean.Input(
                    "bounded_memory",
                    default=True,
                    tooltip=(
                        "On a card too small for all tokens at once, work on some of them at a time: the same result, a"
                        " few per cent slower. Off: never, for comparing or for another pack that replaces the same"
                        " layers."
                    ),
                ),
                keep_gb_input(),
                LocalConfigType.Input(
                    "local_config", optional=True, tooltip="Windows and hierarchical branch; without it, as published."
                ),
                GlobalConfigType.Input(
                    "global_config", optional=True, tooltip="Global branch and dense blocks; without it, as published."
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def validate_inputs(cls, start_percent=None, end_percent=None):
        return True  # `Node` has held both to the schema; ComfyUI itself lets NaN pass

    @classmethod
    def execute(
        cls,
        model,
        attention_rule,
        extras,
        start_percent,
        end_percent,
        bounded_memory,
        keep_gb=DEFAULT_GB,
        local_config=None,
        global_config=None,
    ) -> io.NodeOutput:
        settings = settings_of(attention_rule, start_percent, end_percent, bounded_memory, local_config, global_config)
        loaded = (
            None if extras == NONE else load_extras_file(folder_paths.get_full_path_or_raise("model_patches", extras))
        )
        return io.NodeOutput(save_results_(apply(model, settings, loaded), keep_gb))


class UltraGenExtractWeights(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenExtractWeights",
            display_name="UltraGen Extract Weights",
            category="UltraGen",
            description=(
                "Writes the weights that UltraGen adds to Wan into a small safetensors file for UltraGen Apply."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A whole UltraGen checkpoint of models/diffusion_models.",
                ),
                io.String.Input(
                    "file_name",
                    default="ultragen_extras",
                    tooltip=(
                        "Name of the file in models/model_patches, without ending. Where another file has that name, a"
                        " number is added; nothing is replaced."
                    ),
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file lies.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, checkpoint, file_name) -> io.NodeOutput:
        source = folder_paths.get_full_path_or_raise("diffusion_models", checkpoint)
        path, blocks, written = extract(source, folder_paths.get_folder_paths("model_patches")[0], file_name)
        there = "" if written else "already there, unchanged: "
        shown = f"{there}{blocks} blocks, {path.stat().st_size / 2**20:.1f} MiB: {printable(path)}"
        return io.NodeOutput(str(path), ui=ui.PreviewText(shown))


NODES = [UltraGenLoadModel, UltraGenApply, UltraGenExtractWeights]
