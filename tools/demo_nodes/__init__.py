"""Stand-ins for models that are too large for the demo: UMT5-XXL, Wan 2.2's VAE. Linked into the demo's folder only."""

from __future__ import annotations

import hashlib
from unittest.mock import patch

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.ldm.wan import vae2_2
from comfy_api.latest import ComfyExtension, io

TOKENS, CHANNELS = 512, 4096


class UltraGenDemoText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenDemoText",
            display_name="Demo text (stand-in for UMT5)",
            category="UltraGen/demo",
            description="One fixed random vector a word, then zeros, as after the end of a UMT5 prompt.",
            inputs=[io.String.Input("text", multiline=True)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text):
        return io.NodeOutput([[word_vectors(text)[None], {}]])


def word_vectors(text: str) -> torch.Tensor:
    """(512, 4096)."""
    tokens = torch.zeros(TOKENS, CHANNELS)
    for position, word in enumerate(text.lower().split()[:TOKENS]):
        tokens[position] = torch.randn(CHANNELS, generator=torch.Generator().manual_seed(_seed(word)))
    return tokens


class UltraGenDemoVAE22(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenDemoVAE22",
            display_name="Demo VAE (stand-in for Wan 2.2's)",
            category="UltraGen/demo",
            description="ComfyUI's own class of Wan 2.2's VAE, as narrow as the file.",
            inputs=[io.Combo.Input("vae_name", options=folder_paths.get_filename_list("vae"))],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae_name):
        weights = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("vae", vae_name))
        width, made = weights["decoder.head.0.gamma"].shape[0], vae2_2.WanVAE
        with patch.object(vae2_2, "WanVAE", lambda **config: made(**config | {"dim": width, "dec_dim": width})):
            return io.NodeOutput(comfy.sd.VAE(sd=weights))


def _seed(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")


class DemoExtension(ComfyExtension):
    async def get_node_list(self):
        return [UltraGenDemoText, UltraGenDemoVAE22]


async def comfy_entrypoint():
    return DemoExtension()
