"""Loading through ComfyUI: files that are not whole, that are replaced, and memory that stays ours."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import comfy.cli_args
import comfy.model_management
import pytest
import torch
from helpers.support import DATA
from helpers.wan_models import KINDS
from helpers.wan_models import load as load_kind
from safetensors.torch import load_file, save_file

from ultragen_core.host.attention import load as loading
from ultragen_core.host.attention.load import load_extras_file, load_model
from ultragen_core.weights.complete import check_complete
from ultragen_core.weights.files import WeightsError

TINY = DATA / "tiny_ultragen.safetensors"


def files_in_memory(name: str) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(name)]


@pytest.fixture
def checkpoint(tmp_path):
    def write(ending="safetensors", change=lambda state: state):
        path, state = tmp_path / f"ultragen_1080p.{ending}", change(load_file(TINY))
        torch.save(state, path) if ending == "ckpt" else save_file(state, path)
        return path

    return write


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells which files are mapped")
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("rule", ["auto", "t3", "dense"])
def test_a_loaded_model_leaves_the_file_alone(checkpoint, ending, rule):
    path = checkpoint(ending)
    model = load_model(path, rule)
    assert not files_in_memory(path.name)
    path.open("wb").close()  # what cp and wget -O do first
    assert all(torch.isfinite(value).all() for value in model.model.state_dict().values())
    for patcher in model.get_nested_additional_models():
        assert all(torch.isfinite(value).all() for value in patcher.model.state_dict().values())


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_a_file_larger_than_memory_is_left_on_the_disk(checkpoint, ending, monkeypatch, caplog):
    path, read = checkpoint(ending), []
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 1.9 * path.stat().st_size)
    state_dict = loading.read_state_dict
    monkeypatch.setattr(loading, "read_state_dict", lambda *args: read.append(args[1]) or state_dict(*args))
    model = load_model(path)
    assert read == [True] and "is large for this computer's RAM" in caplog.text
    gates = [gate for patch in model.get_nested_additional_models() for gate in patch.model.parameters()]
    assert gates and all(torch.isfinite(gate).all() for gate in gates)
    if Path("/proc/self/maps").exists() and not getattr(model, "is_dynamic", bool)():
        gc.collect()
        assert not files_in_memory(path.name), "ComfyUI has copied the base, and the extras are ours"


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_counts_as_whole(name):
    module = load_kind(KINDS[name]).model.diffusion_model
    check_complete(module.state_dict(), name)
    loading._check_filled(module, frozenset(module.state_dict()), name)


@pytest.mark.parametrize("rule", ["auto", "ultragen", "t3", "dense"])
@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("blocks.0.", "found blocks 1-3, but 0 is missing"),
        ("blocks.2.ffn.0.weight", "blocks.2.ffn.0.weight is missing"),
        ("head.modulation", "head.modulation is missing"),
        ("text_embedding", "text_embedding.0.weight and 3 more are missing"),
    ],
)
def test_part_of_a_model_is_refused_by_every_rule(checkpoint, rule, part, found):
    path = checkpoint(change=lambda state: {key: v for key, v in state.items() if not key.startswith(part)})
    with pytest.raises(WeightsError, match=f"ultragen_1080p.safetensors holds only part of a Wan model: .*{found}"):
        load_model(path, rule)


def test_what_a_variant_needs_beside_its_blocks_is_missed(checkpoint):
    """ref_conv.weight makes it a model with a reference frame, whose bias is not there."""
    path = checkpoint(change=lambda state: state | {"ref_conv.weight": torch.zeros(256, 16, 2, 2)})
    with pytest.raises(WeightsError, match=r"lacks 1 of the tensors .*\(WanModel\).*; the first is ref_conv.bias"):
        load_model(path)


def test_what_comfyui_cannot_build_is_a_sentence(checkpoint):
    path = checkpoint(change=lambda state: state | {"text_embedding.2.weight": torch.zeros(3, 5)})
    with pytest.raises(WeightsError, match="ComfyUI cannot build a model from ultragen_1080p.* .*size mismatch"):
        load_model(path)


def test_an_option_that_no_wan_model_can_be_built_with_is_not_the_files_fault(checkpoint, monkeypatch):
    monkeypatch.setattr(comfy.cli_args.args, "force_channels_last", True)
    with pytest.raises(WeightsError, match="Start ComfyUI without --force-channels-last") as refused:
        load_model(checkpoint())
    assert "Download" not in str(refused.value)


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_reading_again_takes_the_same_weights_and_no_others(checkpoint, ending):
    path = checkpoint(ending)
    model = load_model(path, "dense")
    extras = load_extras_file(path).patcher
    os.utime(path, ns=(0, 0))
    for build, arguments in (model.cached_patcher_init, extras.cached_patcher_init):
        assert build(*arguments)
    checkpoint(ending, lambda state: {key: value + 1 for key, value in state.items()})
    for build, arguments in (model.cached_patcher_init, extras.cached_patcher_init):
        with pytest.raises(WeightsError, match="has changed since it was loaded"):
            build(*arguments)
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        model.cached_patcher_init[0](*model.cached_patcher_init[1])


def test_names_that_no_log_can_write_are_escaped(tmp_path, caplog):
    path = tmp_path / os.fsdecode(b"gr\xf6\xdfe\n.ckpt")
    torch.save(load_file(TINY), path)
    load_model(path, "t3")
    assert r"gr\xf6\xdfe\n.ckpt was trained for the ultragen rule" in caplog.text
    path.write_bytes(b"<html>")
    with pytest.raises(WeightsError) as error:
        load_model(path)
    assert str(error.value).startswith(r"gr\xf6\xdfe\n.ckpt (6 bytes) is damaged") and str(error.value).encode()
