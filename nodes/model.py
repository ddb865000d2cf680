"""UltraGen Load Model and UltraGen Apply."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..ultragen_core.host.attention.kernels import KERNELS
from ..ultragen_core.host.attention.load import CHECKPOINT_RULES, WEIGHT_DTYPES, load_extras_file, load_model
from ..ultragen_core.host.attention.patch import apply
from ..ultragen_core.host.resume.results import save_results_
from ..ultragen_core.host.resume.run_file import DEFAULT_GB
from ..ultragen_core.rules.choice import COMFYUI, RULES, Settings
from .base import Node
from .config import GlobalConfigType, LocalConfigType
from .resume import keep_gb_input

NONE = "none"


def attention_kernel_input() -> io.Combo.Input:
    return io.Combo.Input(
        "attention_kernel",
        optional=True,
        options=list(KERNELS),
        default=COMFYUI,
        tooltip=(
            "Computes self-attention, in windows and in dense blocks. comfyui: what ComfyUI, another node or the"
            " checkpoint chooses; cuDNN where it is faster. int8 and fp8 are less exact, and replace the choice of"
            " other nodes, except in cross-attention. int8: comfy-kitchen's. It needs ComfyUI 0.33.0 or newer, and an"
            " RTX 20 series GPU or newer, or AMD RDNA 3. On an H100 it is slower than cuDNN; its speed on RTX GPUs and"
            " the quality of its videos are unmeasured. fp8: cuDNN's, where a window has 4,096 tokens or more. It needs"
            " an H100, H200 or B200 (not run on a B200 yet) and the package nvidia-cudnn-frontend, which you install"
            " with pip. On an H200 an evaluation with UltraGen's rule at 1080P takes 2.7 s instead of 3.4 s; a small"
            " model's loss rose by 7%. Use it where speed matters more than the last detail."
        ),
    )


def settings_of(
    attention_rule,
    start_percent,
    end_percent,
    bounded_memory,
    attention_kernel=COMFYUI,
    local_config=None,
    global_config=None,
) -> Settings:
    """Return the settings of UltraGen Apply's widgets and configs. Raises ValueError."""
    configs = {"local": local_config, "global_": global_config}
    return Settings(
        start_percent=start_percent,
        end_percent=end_percent,
        rule=attention_rule,
        bounded_memory=bounded_memory,
        attention_kernel=attention_kernel,
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
                "Loads an UltraGen or T3-Video checkpoint, or a plain Wan model, and applies the attention that it was"
                " trained with."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip=(
                        "A file in models/diffusion_models. 1080P: ultragen_1080p.ckpt, under any name, .ckpt or"
                        " .safetensors. 4K: T3-Video-Wan2.1-T2V-1.3B or T3-Video-Wan2.2-T2V-5B. If a model consists of"
                        " several files (-00001-of-00003), choose any. For GGUF use its own loader, then UltraGen"
                        " Apply."
                    ),
                ),
                io.Combo.Input(
                    "attention_rule",
                    options=list(CHECKPOINT_RULES),
                    default="auto",
                    tooltip=(
                        "auto: the rule that the weights were trained with; an error for other files. (UltraGen is"
                        " recognised by its keys, T3-Video by its file name.) t3: the file is T3-Video under another"
                        " name. ultragen: also accept a plain Wan model (experimental, measured on a small model only)."
                        " dense: ComfyUI's full attention, for comparison."
                    ),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip=(
                        "Precision of the base weights in memory. default: as in the file. fp8 halves their memory and"
                        " costs some quality. fp8_e4m3fn_fast also multiplies matrices in fp8. It is not recommended"
                        " for speed: on an H200 blocks take 11% less time, but a small model's loss rose by 20%."
                        " UltraGen's extras keep their precision."
                    ),
                ),
                attention_kernel_input(),
                keep_gb_input(),
            ],
            outputs=[io.Model.Output(tooltip="The patched model. Add UltraGen Apply to change the settings.")],
        )

    @classmethod
    def execute(
        cls, checkpoint, attention_rule, weight_dtype, attention_kernel=COMFYUI, keep_gb=DEFAULT_GB
    ) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", checkpoint)
        model = load_model(path, attention_rule, WEIGHT_DTYPES[weight_dtype], attention_kernel)
        return io.NodeOutput(save_results_(model, keep_gb))


class UltraGenApply(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenApply",
            display_name="UltraGen Apply",
            category="UltraGen",
            description=(
                "Applies UltraGen's or T3-Video's attention to a Wan model from any loader. On a model that is patched"
                " already, it replaces the settings and keeps the extras."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Wan 2.1 or 2.2 model, in any precision."),
                io.Combo.Input(
                    "attention_rule",
                    options=list(RULES),
                    default="auto",
                    tooltip=(
                        "auto: the rule of the patched model or of the extras; an error if there is neither. t3: for"
                        " T3-Video's weights from any loader (other weights give a broken picture). ultragen: also"
                        " without extras (experimental: average pooling; on a small model it got 76% of what captions"
                        " ask for right, full attention 60%)."
                    ),
                ),
                io.Combo.Input(
                    "extras",
                    options=[NONE, *folder_paths.get_filename_list("model_patches")],
                    default=NONE,
                    tooltip=(
                        "UltraGen's extras: the weights that it adds to Wan, in a file in models/model_patches made by"
                        " UltraGen Extract Weights. none: keep the model's extras, if it has any."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Fraction of the sampling run at which UltraGen's attention starts; before it attention is"
                        " dense. Raise it to run the first steps, which decide the layout, with full attention at full"
                        " cost."
                    ),
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Fraction of the sampling run after which attention is dense again. Leave it at 1 for trained"
                        " weights."
                    ),
                ),
                io.Boolean.Input(
                    "bounded_memory",
                    default=True,
                    tooltip=(
                        "On a GPU too small for all tokens at once, process chunks of tokens: the same result, a few"
                        " percent slower. Switch it off for comparison, or for another pack that replaces the same"
                        " layers."
                    ),
                ),
                attention_kernel_input(),
                keep_gb_input(),
                LocalConfigType.Input(
                    "local_config",
                    optional=True,
                    tooltip=(
                        "Windows and hierarchical branch. Default: as published; without trained weights, chosen by"
                        " experiment."
                    ),
                ),
                GlobalConfigType.Input(
                    "global_config",
                    optional=True,
                    tooltip=(
                        "Global branch and dense blocks. Default: as published; without trained weights, chosen by"
                        " experiment."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The patched model.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        attention_rule,
        extras,
        start_percent,
        end_percent,
        bounded_memory,
        attention_kernel=COMFYUI,
        keep_gb=DEFAULT_GB,
        local_config=None,
        global_config=None,
    ) -> io.NodeOutput:
        settings = settings_of(
            attention_rule, start_percent, end_percent, bounded_memory, attention_kernel, local_config, global_config
        )
        loaded = (
            None if extras == NONE else load_extras_file(folder_paths.get_full_path_or_raise("model_patches", extras))
        )
        return io.NodeOutput(save_results_(apply(model, settings, loaded), keep_gb))


NODES = [UltraGenLoadModel, UltraGenApply]
