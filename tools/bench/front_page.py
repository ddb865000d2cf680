"""README.md's table of measurements."""

from __future__ import annotations

from .cells import seconds, table, times
from .measured import evaluation_row, row


def readme() -> str:
    """The front page's table."""

    def evaluation(size: str, method: str, name: str) -> list[str]:
        dense, ours = (evaluation_row("1.3b", size, each) for each in ("comfyui", method))
        note = " (extrapolated)" if dense["extrapolated"] == "True" else ""
        return [
            name,
            f"{seconds(dense['seconds'])} s{note}",
            f"**{seconds(ours['seconds'])} s** {times(dense['seconds'], ours['seconds'])}",
        ]

    dense, ours = (row("sampling", method=method) for method in ("comfyui", "ours"))
    step = times(dense["seconds"], ours["seconds"])
    tiled, whole, long, short = (
        row("decodes", card="H100", video=video, method=method)
        for video, method in (
            ("3840x2160x81", "tiled"),
            ("3840x2160x29", "full"),
            ("3840x2160x81", "512"),
            ("3840x2160x29", "512"),
        )
    )
    return table(
        ["81 frames unless noted", "ComfyUI 0.30.0", "this pack"],
        [
            evaluation("1080P x 81", "ours", "one evaluation at 1920x1088, UltraGen (H200)"),
            [
                "one sampling step with CFG at 1920x1088, UltraGen (H200)",
                f"{seconds(dense['seconds'])} s",
                f"**{seconds(ours['seconds'])} s** {step}",
            ],
            evaluation("4K x 81", "ours", "one evaluation at 3840x2176, UltraGen (H200)"),
            evaluation("4K x 81", "t3", "one evaluation at 3840x2176, T3-Video (H200)"),
            [
                "VAE decode at 3840x2160 (H100)",
                f"{tiled['seconds']} s, {tiled['device_gib']} GiB, tiled, not exact",
                f"**{long['seconds']} s**, {long['device_gib']} GiB, exact",
            ],
            [
                "VAE decode at 3840x2160, 29 frames (H100)",
                f"{whole['seconds']} s, {whole['device_gib']} GiB, whole frame",
                f"**{short['seconds']} s**, {short['device_gib']} GiB, exact",
            ],
        ],
    )
