"""The exact tiled VAE: for core's nodes, and as a node of its own."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..ultragen_core.host.vae import patch as host
from .base import Node

CATEGORY = "UltraGen"


def tile_input() -> io.Int.Input:
    return io.Int.Input(
        "tile",
        default=0,
        min=0,
        max=4096,
        step=32,
        tooltip="Side of a tile in pixels; 0 takes the largest up to 512 that fits into free memory. The result"
        f" is the same for every size, only memory and time differ. At least {host.SMALLEST_TILE}.",
    )


def check_tile(tile: int | None) -> bool | str:
    """ComfyUI hands None where the value comes through a link."""
    if tile and tile < host.SMALLEST_TILE:
        return f"tile must be 0 (auto) or at least {host.SMALLEST_TILE} pixels, got {tile}."
    return True


def _said(vae) -> ui.PreviewText | None:
    """A VAE that is left to core is said in the node, not only in the log."""
    refusal = host.refusal(vae)
    return ui.PreviewText(f"Left to ComfyUI's own decode and encode. {refusal}") if refusal else None


class UltraGenVAETiling(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UltraGenVAETiling",
            display_name="UltraGen Exact VAE Tiling",
            category=CATEGORY,
            description="Makes every core node decode and encode with this Wan VAE in tiles, without seams: the result "
            "equals that of the whole frame, in a fraction of the memory.",
            inputs=[io.Vae.Input("vae", tooltip="The VAE of Wan 2.1 or Wan 2.2 5B."), tile_input()],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def validate_inputs(cls, tile: int | None) -> bool | str:
        return check_tile(tile)

    @classmethod
    def execute(cls, vae, tile: int) -> io.NodeOutput:
        return io.NodeOutput(host.tiled(vae, tile or None), ui=_said(vae))


class UltraGenVAEDecode(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UltraGenVAEDecode",
            display_name="UltraGen Exact VAE Decode",
            category=CATEGORY,
            description="Decodes a video in tiles that equal the decode of the whole frame. For long 4K videos prefer "
            "UltraGen Save Video: images of 81 4K frames take 8 GB of memory.",
            inputs=[
                io.Latent.Input("samples", tooltip="The latent of a video or an image, from a sampler."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model: Wan 2.1's, or for the 5B model 2.2's."),
                tile_input(),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def validate_inputs(cls, tile: int | None) -> bool | str:
        return check_tile(tile)

    @classmethod
    def execute(cls, samples, vae, tile: int) -> io.NodeOutput:
        images = host.decode(vae, samples["samples"], tile or None)
        # As core's node: only videos have a dimension of their own.
        return io.NodeOutput(images.flatten(0, 1) if images.ndim == 5 else images, ui=_said(vae))


NODES = [UltraGenVAETiling, UltraGenVAEDecode]
