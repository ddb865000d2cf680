"""The whole path through ComfyUI's BaseModel.apply_model against the published model's velocities."""

from __future__ import annotations

import pytest
import torch
from helpers.comfy_run import velocity
from helpers.support import DATA, relative_error
from safetensors.torch import load_file

from ultragen_core.attention.config import LocalConfig
from ultragen_core.host.attention.patch import Settings, apply


@pytest.fixture(scope="module")
def golden():
    return load_file(DATA / "model_io.safetensors"), load_file(DATA / "no_antialias.safetensors")


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("t", [431, 999])
@pytest.mark.parametrize("case", [0, 1])
def test_velocity(tiny, golden, case, t, antialias):
    golden, plain = golden
    model = apply(tiny, Settings(LocalConfig(antialias=antialias)))
    key = f"case{case}.t{t}.velocity"
    expected = golden[key] if antialias else plain.get(key, golden[key])
    result = velocity(model, golden[f"case{case}.latent"], golden[f"case{case}.context"].float(), t / 1000)
    assert relative_error(result, expected) < 5e-6


def test_dense_velocity_is_the_reference_of_core(dense, golden):
    golden, _ = golden
    result = velocity(dense, golden["case0.latent"], golden["case0.context"].float(), 0.431)
    assert relative_error(result, golden["case0.t431.velocity_full_attention"]) < 5e-6
    assert torch.isfinite(result).all()
