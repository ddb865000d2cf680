"""The demo's stand-in for text conditioning: UMT5-XXL is a download of 6 GB. Linked into the demo's folder only."""

from __future__ import annotations

import hashlib

import torch
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


def _seed(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")


class DemoExtension(ComfyExtension):
    async def get_node_list(self):
        return [UltraGenDemoText]


async def comfy_entrypoint():
    return DemoExtension()
