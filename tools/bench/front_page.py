"""README.md's table of measurements."""

from __future__ import annotations

from .cells import seconds, table, times
from .measured import evaluation_row, row


def readme() -> str:
    dense, ours = (row("sampling", method=method) for method in ("comfyui", "ours"))
    step = f"**{seconds(ours['seconds'])} s** {times(dense['seconds'], ours['seconds'])}"
    return table(
        ["81 frames unless noted", "ComfyUI 0.30.0", "this pack"],
        [
            _fp8("ours", "one evaluation at 1920x1088, UltraGen (H200)"),
            _fp8("fp8", "the same with fp8 attention (H200)"),
            ["one sampling step with CFG at 1920x1088, UltraGen (H200)", f"{seconds(dense['seconds'])} s", step],
            _evaluation("4K x 81", "ours", "one evaluation at 3840x2176, UltraGen (H200)"),
            _evaluation("4K x 81", "t3", "one evaluation at 3840x2176, T3-Video (H200)"),
            _decode("3840x2160x81", "tiled", "tiled, not exact", "VAE decode at 3840x2160 (H100)"),
            _decode("3840x2160x29", "full", "whole frame", "VAE decode at 3840x2160, 29 frames (H100)"),
        ],
    )


def _fp8(method: str, name: str) -> list[str]:
    dense, ours = (row("fp8", card="H200", size="1080P x 81", method=each)["seconds"] for each in ("comfyui", method))
    return [name, f"{seconds(dense)} s", f"**{seconds(ours)} s** {times(dense, ours)}"]


def _evaluation(size: str, method: str, name: str) -> list[str]:
    dense, ours = (evaluation_row("1.3b", size, each) for each in ("comfyui", method))
    note = " (extrapolated)" if dense["extrapolated"] == "True" else ""
    ratio = times(dense["seconds"], ours["seconds"])
    return [name, f"{seconds(dense['seconds'])} s{note}", f"**{seconds(ours['seconds'])} s** {ratio}"]


def _decode(video: str, method: str, note: str, name: str) -> list[str]:
    theirs, ours = (row("decodes", video=video, method=each) for each in (method, "512"))
    return [
        name,
        f"{theirs['seconds']} s, {theirs['device_gib']} GiB, {note}",
        f"**{ours['seconds']} s**, {ours['device_gib']} GiB, exact",
    ]
