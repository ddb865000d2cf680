"""Nodes that stand in for the text encoder, and for the loaders of Wan 2.2's VAE and of SeedVR2."""

from __future__ import annotations

from unittest.mock import patch

import comfy.sd
import comfy.utils
import folder_paths
from comfy.ldm.wan import vae2_2
from comfy_api.latest import ComfyExtension, io

from tools import tiny_seedvr2
from training.miniature.scenes import understood
from training.miniature.text import word_vectors


class UltraGenDemoText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenDemoText",
            display_name="Demo text (stand-in for UMT5)",
            category="UltraGen/demo",
            description="Understands the words of painted landscapes, such as 'a foggy lake at dusk, sun left'."
            " What a prompt leaves open is chosen by its text; a prompt without any of them is an empty one.",
            inputs=[io.String.Input("text", multiline=True)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text):
        meant = understood(text)
        return io.NodeOutput([[word_vectors(meant.caption if meant else "")[None], {}]])


class UltraGenDemoVAE22(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenDemoVAE22",
            display_name="Demo VAE (stand-in for Wan 2.2's)",
            category="UltraGen/demo",
            description="ComfyUI's class for Wan 2.2's VAE, as narrow as the file.",
            inputs=[io.Combo.Input("vae_name", options=folder_paths.get_filename_list("vae"))],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae_name):
        weights = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("vae", vae_name))
        width, wan_vae = weights["decoder.head.0.gamma"].shape[0], vae2_2.WanVAE
        with patch.object(vae2_2, "WanVAE", lambda **config: wan_vae(**config | {"dim": width, "dec_dim": width})):
            return io.NodeOutput(comfy.sd.VAE(sd=weights))


class UltraGenDemoSeedVR2(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenDemoSeedVR2",
            display_name="Demo SeedVR2 (stand-in for its loader)",
            category="UltraGen/demo",
            description="ComfyUI's class for SeedVR2's model, tiny and random.",
            inputs=[io.Combo.Input("unet_name", options=folder_paths.get_filename_list("diffusion_models"))],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, unet_name):
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        return io.NodeOutput(tiny_seedvr2.load_model(path))


class UltraGenDemoSeedVR2VAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenDemoSeedVR2VAE",
            display_name="Demo VAE (stand-in for the loader of SeedVR2's)",
            category="UltraGen/demo",
            description="ComfyUI's class for SeedVR2's VAE, tiny and random.",
            inputs=[io.Combo.Input("vae_name", options=folder_paths.get_filename_list("vae"))],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae_name):
        return io.NodeOutput(tiny_seedvr2.load_vae(folder_paths.get_full_path_or_raise("vae", vae_name)))


class DemoExtension(ComfyExtension):
    async def get_node_list(self):
        return [UltraGenDemoText, UltraGenDemoVAE22, UltraGenDemoSeedVR2, UltraGenDemoSeedVR2VAE]
