"""comfy.model_management, comfy.ops, comfy.sd, comfy.utils: memory, interruption, layers, loaders, progress."""

from __future__ import annotations

import inspect

import comfy.cli_args
import comfy.clip_vision
import comfy.model_management as mm
import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import torch
from helpers.signatures import lacking, parameters


def test_functions_for_memory():
    assert not lacking(mm, "get_free_memory", "free_memory", "soft_empty_cache", "load_models_gpu")
    assert not lacking(mm, "get_torch_device", "unet_offload_device", "intermediate_device", "extra_reserved_memory")
    assert {"memory_required", "force_full_load"} <= set(parameters(mm.load_models_gpu))
    assert parameters(mm.free_memory)[:2] == ["memory_required", "device"]
    assert mm.get_free_memory(torch.device("cpu")) > 0


def test_an_interruption_is_an_exception_that_is_raised_when_asked():
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        mm.throw_exception_if_processing_interrupted()
    mm.throw_exception_if_processing_interrupted()  # once


def test_an_interruption_is_no_runtime_error():
    assert not issubclass(mm.InterruptProcessingException, (RuntimeError, ValueError, OSError))


def test_layers_are_made_by_a_class_of_operations():
    layers = comfy.ops.manual_cast
    assert not lacking(layers, "Linear", "Conv2d", "Conv3d", "RMSNorm", "LayerNorm")


def test_casts_return_weight_bias_and_what_gives_them_back():
    linear = comfy.ops.manual_cast.Linear(2, 3, dtype=torch.bfloat16)
    cast = comfy.ops.cast_bias_weight(
        linear, dtype=torch.float32, device=torch.device("cpu"), bias_dtype=torch.float32, offloadable=True
    )
    weight, bias, stream = cast
    assert weight.dtype == bias.dtype == torch.float32 and weight.shape == (3, 2)
    comfy.ops.uncast_bias_weight(linear, weight, bias, stream)


def test_a_resident_weight_is_not_copied():
    linear = comfy.ops.manual_cast.Linear(2, 3)
    weight, bias, _ = comfy.ops.cast_bias_weight(
        linear, dtype=torch.float32, device=torch.device("cpu"), bias_dtype=torch.float32, offloadable=True
    )
    assert weight is linear.weight and bias is linear.bias


def test_comfyui_tells_of_the_cudnn_versions_that_it_works_around():
    assert isinstance(comfy.ops.NVIDIA_MEMORY_CONV_BUG_WORKAROUND, bool)


def test_loaders():
    assert parameters(comfy.sd.load_diffusion_model_state_dict)[:3] == ["sd", "model_options", "metadata"]
    assert not lacking(comfy.clip_vision, "load_clipvision_from_sd")
    assert not lacking(comfy.sd, "load_text_encoder_state_dicts") and not lacking(comfy.sd.CLIPType, "STABLE_DIFFUSION")
    assert comfy.utils.weight_dtype({"a": torch.zeros(1, dtype=torch.bfloat16)}) == torch.bfloat16


def test_loaders_are_read_again_with_disable_dynamic_by_name(wan):
    """ComfyUI calls cached_patcher_init[0](*[1], disable_dynamic=True) for torch.compile and other GPUs."""
    source = inspect.getsource(type(wan))
    if "cached_patcher_init" in source:
        assert "self.cached_patcher_init[0](*self.cached_patcher_init[1], disable_dynamic=True)" in source


def test_names_of_options():
    assert not lacking(comfy.cli_args.args, "cpu", "disable_pinned_memory", "disable_metadata", "fast", "bf16_unet")


def test_bars_of_progress():
    assert parameters(comfy.utils.ProgressBar.__init__)[0] == "total"
    assert parameters(comfy.utils.ProgressBar.update_absolute)[:3] == ["value", "total", "preview"]
    assert not lacking(comfy.utils.ProgressBar, "update")
