"""What the template ultragen_compare_1080p takes for granted about ComfyUI's SeedVR2."""

from __future__ import annotations

from importlib import import_module

import torch
from helpers.signatures import needs

from tools import tiny_seedvr2

pytestmark = needs(tiny_seedvr2.exists(), "SeedVR2")


def test_nothing_is_padded_or_post_processed_at_sizes_of_a_multiple_of_16_and_4n_plus_1_frames():
    """So the template leaves the last node of ComfyUI's own template out, and no video has to be aligned."""
    nodes = import_module("comfy_extras.nodes_seedvr")
    images = torch.rand(5, 32, 48, 3)
    (padded,) = nodes.SeedVR2Preprocess.execute(images).args
    assert torch.equal(padded, images[None])
    (after,) = nodes.SeedVR2PostProcessing.execute(padded, images, "none").args
    assert torch.equal(after, padded)


def test_tiny_model_has_the_settings_that_are_detected_for_the_3b_model():
    """tools/tiny_seedvr2.py replaces them. The last three have defaults there."""
    detection = import_module("comfy.model_detection")
    detected = detection.detect_unet_config({"blocks.31.mlp.all.proj_in_gate.weight": torch.empty(0)}, "")
    same = {"image_model", "norm_eps", "mlp_type", "vid_out_norm"}
    assert list(tiny_seedvr2.CONFIG)[:-3] == [key for key in detected if key in tiny_seedvr2.CONFIG]
    assert detected.keys() <= tiny_seedvr2.CONFIG.keys()
    assert {key: tiny_seedvr2.CONFIG[key] for key in same} == {key: detected[key] for key in same}
