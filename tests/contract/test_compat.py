"""host/compat.py: every difference is one on some version that is tested, and every function works on all."""

from __future__ import annotations

from fractions import Fraction

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfyui_version
import numpy as np
import pytest
import torch
from comfy.k_diffusion import sampling
from comfy_api.latest import InputImpl
from helpers.vae_models import toy_vae

from tools import comfyui
from ultragen_core.host import compat
from ultragen_core.video.codecs import CODECS
from ultragen_core.video.encoder import VideoWriter

OLDEST = comfyui_version.__version__ == comfyui.OLDEST.version
CPU = torch.device("cpu")
# What the oldest version lacks, by the function that stands in for it.
NEW = {
    "patcher_class": (comfy.model_patcher, "CoreModelPatcher"),
    "is_dynamic": (comfy.model_patcher.ModelPatcher, "is_dynamic"),
    "free_memory": (comfy.model_patcher.ModelPatcher, "get_free_memory"),
    "is_oom": (mm, "is_oom"),
    "vae_output_dtype": (comfy.sd.VAE, "vae_output_dtype"),
    "trim_window": (InputImpl.VideoFromFile, "get_active_trim_window"),
    "sampler_functions": (sampling, "sample_exp_heun_2_x0"),
}


@pytest.mark.parametrize("name", NEW)
def test_the_oldest_version_lacks_it_and_no_other_does(name):
    """Where the oldest has it, compat.py's function can go."""
    owner, attribute = NEW[name]
    assert callable(getattr(compat, name)) and hasattr(owner, attribute) is not OLDEST


def test_patcher_classes(wan):
    assert issubclass(compat.patcher_class(), comfy.model_patcher.ModelPatcher)
    assert compat.patcher_class(dynamic=False) is comfy.model_patcher.ModelPatcher
    assert compat.is_dynamic(wan) is False


def test_free_memory(wan):
    assert 0 < compat.free_memory(wan, CPU) <= mm.get_total_memory(CPU)


def test_out_of_memory():
    assert compat.is_oom(mm.OOM_EXCEPTION("too much")) and not compat.is_oom(RuntimeError("something else"))


def test_values_of_a_vae_and_a_video():
    assert compat.vae_output_dtype(toy_vae()) == torch.float32
    assert compat.trim_window(InputImpl.VideoFromFile("a.mp4")) == (0.0, 0.0)


def test_sampler_functions_by_name():
    found = compat.sampler_functions(["euler", "no such sampler"])
    assert found == {sampling.sample_euler: "euler"}


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_cast_patched_and_safe_to_keep(bias):
    linear = comfy.ops.manual_cast.Linear(2, 3, bias=bias)
    torch.nn.init.ones_(linear.weight)  # ComfyUI leaves it uninitialised, and NaN equals nothing
    assert compat.cast_parameters(linear, torch.float32, CPU) == (linear.weight, linear.bias)
    linear.weight_function = [lambda weight: weight + 1]
    weight, cast_bias = compat.cast_parameters(linear, torch.float64, CPU)
    assert torch.equal(weight, linear.weight.double() + 1)
    assert (cast_bias is None) is not bias and weight.dtype == torch.float64


def test_frames_are_counted_where_the_container_does_not_store_their_number(tmp_path):
    path = tmp_path / "video.mkv"
    with VideoWriter(path, CODECS["FFV1 lossless RGB"], (64, 48), Fraction(10), 17, 7) as writer:
        for _ in range(7):
            writer.write(np.zeros((48, 64, 3), np.uint8))
        writer.finish(lambda: None)
    assert compat.frame_count(InputImpl.VideoFromFile(str(path))) == 7
