"""Settings of UltraGen's attention, for UltraGen Apply."""

from __future__ import annotations

from comfy_api.latest import io

from ..ultragen_core.attention.config import GlobalConfig, LocalConfig
from ..ultragen_core.attention.gate import UNTRAINED_GLOBAL, UNTRAINED_HIERARCHICAL, GateLine
from ..ultragen_core.rules.blocks import parse_blocks
from ..ultragen_core.rules.ultragen import TRAINED_WINDOWS
from .base import Node

LocalConfigType = io.Custom("ULTRAGEN_LOCAL")
GlobalConfigType = io.Custom("ULTRAGEN_GLOBAL")
ENABLED = {"auto": None, "on": True, "off": False}


def gate_inputs(fine: str, coarse: str, untrained: GateLine) -> list:
    """Inputs of a gate: the trained one, or a line over the sampling run. untrained: without trained weights."""
    share = f"With gate = schedule: share of {fine} against {coarse}, 0 to 1,"
    return [
        io.Combo.Input(
            "gate",
            options=["trained", "schedule"],
            default="trained",
            tooltip=(
                f"Balance of {fine} and {coarse}. trained: the checkpoint's gates (without trained weights: from"
                f" {untrained.at_noise:g} to {untrained.at_end:g}). schedule: the two values below, for experiments."
            ),
        ),
        io.Float.Input(
            "gate_at_noise",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=f"{share} at pure noise. Lower it for a more coherent layout.",
        ),
        io.Float.Input(
            "gate_at_end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=f"{share} at the finished video; linear in sigma between. Raise it for detail.",
        ),
    ]


def gate_line(gate: str, gate_at_noise: float, gate_at_end: float) -> GateLine | None:
    return GateLine(gate_at_noise, gate_at_end) if gate == "schedule" else None


def windows_inputs(branch: str, prefix: str, trained: tuple[int, int], untrained: str) -> list[io.Int.Input]:
    return [
        io.Int.Input(
            f"{prefix}windows_{parity}",
            default=0,
            min=0,
            max=16,
            tooltip=(
                f"Windows per axis of {branch} in {parity} blocks. More windows are faster, but each covers less of"
                f" the frame. Set even and odd together; one alone is an error. 0 in both: as trained ({count});"
                f" without trained weights, {untrained}."
            ),
        )
        for parity, count in zip(("even", "odd"), trained, strict=True)
    ]


def lora_strength_input(name: str, branch: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=1.0,
        min=0.0,
        max=2.0,
        step=0.01,
        tooltip=f"Factor on the trained low-rank deltas of {branch}. Lower it for experiments; 0 switches them off.",
    )


def window_counts(name: str, even: int, odd: int) -> tuple[int, int] | None:
    if bool(even) != bool(odd):
        raise ValueError(f"{name} must be set for even and odd blocks or for neither, got {even} and {odd}.")
    return (even, odd) if even else None


class UltraGenLocalConfig(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenLocalConfig",
            display_name="UltraGen Local Config",
            category="UltraGen",
            description=(
                "The fine side of UltraGen's attention. The defaults are those of the published weights; without"
                " trained weights they were chosen by experiment."
            ),
            inputs=[
                *windows_inputs(
                    "the local branch",
                    "",
                    TRAINED_WINDOWS.local,
                    "windows no larger than the frames that the base model was trained on",
                ),
                io.Combo.Input(
                    "cross_window",
                    options=["paper", "off", "swin"],
                    default="paper",
                    tooltip=(
                        "How borders between windows are bridged. paper: odd blocks have different windows from even"
                        " blocks. off: the same windows in all blocks (seams). swin: odd blocks shift the windows by"
                        " half a window. Keep paper, except to reproduce the ablation."
                    ),
                ),
                io.Combo.Input(
                    "uneven",
                    options=["auto", "resize", "balanced"],
                    default="auto",
                    tooltip=(
                        "What happens to a frame that does not divide into windows. resize: features are resized until"
                        " it divides, as the published weights expect. balanced: windows differ in size by one token."
                        " auto: resize with trained weights, balanced without. Keep auto."
                    ),
                ),
                io.Boolean.Input(
                    "antialias",
                    default=False,
                    tooltip=(
                        "Resize features with antialiasing. Changes features in the third significant digit. Leave it"
                        " off for the published weights."
                    ),
                ),
                io.Boolean.Input(
                    "hierarchical",
                    default=True,
                    tooltip="The branch at half resolution, between local and global. Switch it off for experiments.",
                ),
                *windows_inputs(
                    "the hierarchical branch",
                    "hierarchical_",
                    TRAINED_WINDOWS.hierarchical,
                    "the whole frame up to 1080P, above it windows about as large as the frames that the base model was"
                    " trained on",
                ),
                lora_strength_input("hierarchical_lora_strength", "the hierarchical branch"),
                *gate_inputs("the local branch", "the hierarchical branch", UNTRAINED_HIERARCHICAL),
            ],
            outputs=[LocalConfigType.Output("local_config", tooltip="For local_config of UltraGen Apply.")],
        )

    @classmethod
    def execute(
        cls,
        windows_even,
        windows_odd,
        cross_window,
        uneven,
        antialias,
        hierarchical,
        hierarchical_windows_even,
        hierarchical_windows_odd,
        hierarchical_lora_strength,
        gate,
        gate_at_noise,
        gate_at_end,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            LocalConfig(
                windows=window_counts("windows", windows_even, windows_odd),
                cross_window=cross_window,
                uneven=uneven,
                antialias=antialias,
                hierarchical=hierarchical,
                hierarchical_windows=window_counts(
                    "hierarchical_windows", hierarchical_windows_even, hierarchical_windows_odd
                ),
                hierarchical_lora_strength=hierarchical_lora_strength,
                gate=gate_line(gate, gate_at_noise, gate_at_end),
            )
        )


class UltraGenGlobalConfig(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenGlobalConfig",
            display_name="UltraGen Global Config",
            category="UltraGen",
            description=(
                "The coarse side of UltraGen's attention. The defaults are those of the published weights; without"
                " trained weights they were chosen by experiment."
            ),
            inputs=[
                io.Combo.Input(
                    "enabled",
                    options=list(ENABLED),
                    default="auto",
                    tooltip=(
                        "The global branch: attention over the whole frame at low resolution. auto: on with trained"
                        " weights; without them, off where the hierarchical branch sees the whole frame and"
                        " compress_ratio is 0. Where neither branch sees it, windows do not match each other. Keep auto"
                        " with trained weights."
                    ),
                ),
                io.Int.Input(
                    "compress_ratio",
                    default=0,
                    min=0,
                    max=16,
                    tooltip=(
                        "Tokens per axis that the global branch joins into one. Keep 0 with trained weights; any value"
                        " other than theirs is an error. Without trained weights 0 means 4; higher is faster and"
                        " coarser."
                    ),
                ),
                lora_strength_input("lora_strength", "the global branch"),
                *gate_inputs("local and hierarchical together", "the global branch", UNTRAINED_GLOBAL),
                lora_strength_input("ffn_lora_strength", "the feed-forward part (the published weights have none)"),
                io.String.Input(
                    "dense_blocks",
                    default="auto",
                    tooltip=(
                        "Blocks that keep full attention, such as 0-2, 27-29. auto: those without extras in the"
                        " checkpoint; without trained weights the first and the last tenth. More dense blocks are"
                        " slower and more coherent. Empty: only the blocks without extras."
                    ),
                ),
            ],
            outputs=[GlobalConfigType.Output("global_config", tooltip="For global_config of UltraGen Apply.")],
        )

    @classmethod
    def execute(
        cls, enabled, compress_ratio, lora_strength, gate, gate_at_noise, gate_at_end, ffn_lora_strength, dense_blocks
    ) -> io.NodeOutput:
        return io.NodeOutput(
            GlobalConfig(
                enabled=ENABLED[enabled],
                compress_ratio=compress_ratio or None,
                lora_strength=lora_strength,
                gate=gate_line(gate, gate_at_noise, gate_at_end),
                ffn_lora_strength=ffn_lora_strength,
                dense_blocks=parse_blocks(dense_blocks),
            )
        )


NODES = [UltraGenLocalConfig, UltraGenGlobalConfig]
