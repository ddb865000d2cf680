"""The exact tiled VAE: for ComfyUI's nodes, and as a decode node."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..ultragen_core.host.vae.exact import check_tile, decode
from ..ultragen_core.host.vae.patch import exact_vae
from ..ultragen_core.host.vae.support import fallback_reason
from ..ultragen_core.host.vae.tile_size import SMALLEST_TILE
from .base import Node


def tile_input() -> io.Int.Input:
    return io.Int.Input(
        "tile",
        default=0,
        min=0,
        max=4096,
        step=32,
        tooltip=f"Side of a tile in pixels, at least {SMALLEST_TILE}. 0 (automatic): the largest up to 512 that fits"
        " into free memory. The result is the same. Lower it only to leave memory for other programs.",
    )


def gpus_input(more: str = "") -> io.Int.Input:
    return io.Int.Input(
        "gpus",
        default=1,
        min=0,
        max=64,
        optional=True,
        tooltip="Number of GPUs that decode tiles at the same time. 0: all that ComfyUI sees. With several, an"
        " automatic tile is up to 1024 pixels; with a tile size that you set, cards of one type give the same pixels as"
        " one GPU. More than one needs ComfyUI 0.30.0 or newer, and 2 GB more RAM for 81 frames of 4K." + more,
    )


def _fallback_text(vae) -> ui.PreviewText | None:
    """Show in the node, not only in the log, why the VAE does not run in exact tiles."""
    reason = fallback_reason(vae)
    return ui.PreviewText(f"Left to ComfyUI's own decode and encode. {reason}") if reason else None


class UltraGenVAETiling(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UltraGenVAETiling",
            display_name="UltraGen Exact VAE Tiling",
            category="UltraGen",
            description="Makes every ComfyUI node decode and encode with this Wan VAE in tiles, without seams: the "
            "result equals that of the whole frame, in a fraction of the memory.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of Wan 2.1 or Wan 2.2 5B."),
                tile_input(),
                gpus_input(" Encoding uses one GPU."),
            ],
            outputs=[io.Vae.Output(tooltip="The VAE with exact tiles, for any ComfyUI node.")],
        )

    @classmethod
    def validate_inputs(cls, tile: int | None) -> bool:
        check_tile(tile or None)  # a linked value is None here
        return True

    @classmethod
    def execute(cls, vae, tile: int, gpus: int = 1) -> io.NodeOutput:
        return io.NodeOutput(exact_vae(vae, tile or None, gpus), ui=_fallback_text(vae))


class UltraGenVAEDecode(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UltraGenVAEDecode",
            display_name="UltraGen Exact VAE Decode",
            category="UltraGen",
            description="Decodes a video in tiles whose result equals the decode of the whole frame. For long 4K "
            "videos prefer UltraGen Save Video: images of 81 4K frames take 8 GB of memory.",
            inputs=[
                io.Latent.Input("samples", tooltip="The latent of a video or an image, from a sampler."),
                io.Vae.Input("vae", tooltip="The model's VAE: Wan 2.1's, or Wan 2.2's for the 5B model."),
                tile_input(),
                gpus_input(),
            ],
            outputs=[io.Image.Output(tooltip="All frames.")],
        )

    @classmethod
    def validate_inputs(cls, tile: int | None) -> bool:
        check_tile(tile or None)  # a linked value is None here
        return True

    @classmethod
    def execute(cls, samples, vae, tile: int, gpus: int = 1) -> io.NodeOutput:
        images = decode(vae, samples["samples"], tile or None, gpus)
        # As ComfyUI's node: a batch of videos becomes one list of frames.
        return io.NodeOutput(images.flatten(0, 1) if images.ndim == 5 else images, ui=_fallback_text(vae))


NODES = [UltraGenVAETiling, UltraGenVAEDecode]
