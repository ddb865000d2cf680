"""Published checkpoints in every wrapping, extras-only files, and the sentences for files that are none of them."""

from __future__ import annotations

import os
import pickle

import pytest
import safetensors.torch
import torch
from helpers.support import DATA
from safetensors.torch import load_file

from ultragen_core.weights.extras_file import extract, read_extras, save_extras
from ultragen_core.weights.files import WeightsError, read_metadata, read_state_dict
from ultragen_core.weights.published import published_items, same_base, split

FLAT = load_file(DATA / "tiny_ultragen.safetensors")


def prefixed(prefix):
    return {prefix + key: value for key, value in FLAT.items()}


WRAPPINGS = {
    "flat": FLAT,
    "state_dict": {"state_dict": FLAT, "epoch": 3},
    "module": {"module": FLAT},
    "module next to others": {"module": FLAT, "optimizer": {"lr": 1e-4}},
    "model": {"model": FLAT},
    "model.": prefixed("model."),
    "model.diffusion_model.": {**prefixed("model.diffusion_model."), "first_stage_model.conv1.bias": torch.zeros(1)},
    "pipe.dit.": prefixed("pipe.dit."),
    "dit.": prefixed("dit."),
    "state_dict of module.": {"state_dict": prefixed("module.")},
    "nested": {"state_dict": {"model": prefixed("pipe.dit.")}},
}


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ending", ["ckpt", "pt", "any_name"])
@pytest.mark.parametrize("name", WRAPPINGS)
def test_pickled_wrappings(tmp_path, name, ending):
    path = tmp_path / f"file.{ending}"
    torch.save(WRAPPINGS[name], path)
    assert same_tensors(read_state_dict(path), FLAT)


def test_pickle_of_old_torch(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save(FLAT, path, _use_new_zipfile_serialization=False)
    assert same_tensors(read_state_dict(path), FLAT)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "pipe.dit."])
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_safetensors_under_any_name(tmp_path, prefix, ending):
    path = tmp_path / f"file.{ending}"
    safetensors.torch.save_file(prefixed(prefix), path)
    assert same_tensors(read_state_dict(path), FLAT)


def test_dense_blocks_are_found_from_the_keys():
    base, extras = split(FLAT, "tiny")
    assert list(extras.blocks) == list(extras.gates) == [1, 2]
    assert (extras.shape.channels, extras.shape.rank) == (256, 8)
    assert (extras.shape.global_ratio, extras.shape.hierarchical_ratio) == (4, 2)
    assert not any("lora" in key or "alpha" in key or "sample_conv" in key for key in base)
    assert base.keys() | {key for key, _ in published_items(extras)} == FLAT.keys()


def test_another_compression_than_the_1080p_one_is_read_off():
    bigger = {
        k: v.repeat_interleave(2, -1).repeat_interleave(2, -2) if k.endswith("downsample_conv.weight") else v
        for k, v in FLAT.items()
    }
    assert split(bigger, "4k")[1].shape.global_ratio == 8


def test_extras_file_round_trip_is_exact(tmp_path):
    _, extras = split(FLAT, "tiny")
    path = tmp_path / "extras.safetensors"
    save_extras(extras, path)
    again = read_extras(path)
    assert same_tensors(dict(published_items(again)), dict(published_items(extras)))
    assert again.shape == extras.shape and again.fingerprint == extras.fingerprint
    metadata = read_metadata(path)
    assert {
        "format": "ultragen-extras",
        "format_version": "1",
        "rank": "8",
        "blocks": "[1, 2]",
    }.items() <= metadata.items()
    assert path.stat().st_size < 0.5 * (DATA / "tiny_ultragen.safetensors").stat().st_size


def test_extras_of_a_newer_format_are_refused(tmp_path):
    path = tmp_path / "new.safetensors"
    safetensors.torch.save_file(
        dict(published_items(split(FLAT, "tiny")[1])), path, {"format": "ultragen-extras", "format_version": "2"}
    )
    with pytest.raises(WeightsError, match="format version 2, but this pack reads version 1. Update the pack"):
        read_extras(path)


def test_a_base_is_recognised_in_any_precision_and_told_from_another():
    fingerprint = split(FLAT, "tiny")[1].fingerprint
    rounded = {key: value.to(torch.bfloat16) for key, value in FLAT.items()}
    other = {key: value * 1.1 for key, value in FLAT.items()}
    assert same_base(fingerprint, split(rounded, "bf16")[1].fingerprint)
    assert not same_base(fingerprint, split(other, "other")[1].fingerprint)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        rounded = {key: value.to(dtype) for key, value in FLAT.items()}
        assert same_base(split(rounded, "fp8")[1].fingerprint, fingerprint, dtype)
        assert not same_base(split(rounded, "fp8")[1].fingerprint, fingerprint)
        twice = {key: 2 * value for key, value in FLAT.items()}
        assert not same_base(split(twice, "other")[1].fingerprint, fingerprint, dtype)


def broken(key_part):
    return {key: value for key, value in FLAT.items() if key_part not in key}


def mixed():
    return {
        key: value[:128] if "blocks.2.self_attn.downsample_conv.weight" in key else value for key, value in FLAT.items()
    }


REFUSED = {
    "a LoRA": (
        {"lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.zeros(2)},
        "looks like a LoRA .*Expected an UltraGen checkpoint",
    ),
    "a LoRA of peft": (
        {"base_model.model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2)},
        "looks like a LoRA .*Expected an UltraGen checkpoint",
    ),
    "a VAE": ({"decoder.conv1.weight": torch.zeros(2)}, "looks like a VAE .*Expected an UltraGen checkpoint"),
    "plain Wan": (split(FLAT, "tiny")[0], "is a Wan model without UltraGen's extras"),
    "something else": ({"emb.weight": torch.zeros(2)}, r"is an unknown file \(1 tensors, the first 'emb.weight'\)"),
    "a missing tensor": (
        broken("blocks.2.self_attn.upsample_conv.weight"),
        r"not a complete UltraGen checkpoint: blocks.2.self_attn.upsample_conv.weight should be \(256, 1, 3, 3, 3\)",
    ),
    "missing gates": (broken("alpha_time"), "not a complete UltraGen checkpoint"),
    "mixed sizes": (
        mixed(),
        r"blocks.2.self_attn.downsample_conv.weight should be \(256, 1, 4, 4\), found \(128, 1, 4, 4\)",
    ),
    "another base": (
        {k: v[:128] if "blocks.0.self_attn.q.weight" in k else v for k, v in FLAT.items()},
        "mixes two models: its extras are for 256 channels, its base for 128",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_files_are_refused_with_a_sentence(name):
    content, sentence = REFUSED[name]
    with pytest.raises(WeightsError, match=sentence) as error:
        split(content, "wrong.safetensors")
    assert str(error.value).startswith("wrong.safetensors ") and "huggingface.co/JTUplayer/Ultragen" in str(error.value)


def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path):
    path, proof = tmp_path / "bad.ckpt", tmp_path / "was_here"

    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {proof}",)

    for content in ({"state_dict": Touch()}, Touch()):
        torch.save(content, path)
        with pytest.raises(WeightsError, match="holds Python objects other than tensors and was not opened"):
            read_state_dict(path)
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(WeightsError, match="was not opened|is damaged"):
            read_state_dict(path)
    assert not proof.exists()


def test_a_file_that_holds_itself_is_refused(tmp_path):
    content = {0: torch.zeros(1), "scalar": torch.tensor(1.0)}
    content["state_dict"] = content
    torch.save(content, tmp_path / "ring.ckpt")
    with pytest.raises(WeightsError, match="is an unknown file"):
        split(read_state_dict(tmp_path / "ring.ckpt"), "ring.ckpt")


def test_a_scalar_in_place_of_a_convolution_is_refused():
    key = "blocks.1.self_attn.downsample_conv.weight"
    with pytest.raises(WeightsError, match="not a complete UltraGen checkpoint"):
        split(FLAT | {key: torch.tensor(1.0)}, "scalar.ckpt")


def test_replacing_an_extras_file_leaves_what_was_read_from_it(tmp_path):
    path = tmp_path / "extras.safetensors"
    _, extras = split(FLAT, "tiny")
    save_extras(extras, path)
    before = read_extras(path)
    other = {key: value + 1 for key, value in FLAT.items()}
    save_extras(split(other, "other")[1], path)
    assert same_tensors(dict(published_items(before)), dict(published_items(extras)))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 1000, -1000])
def test_a_truncated_file_is_refused(tmp_path, ending, keep):
    path = tmp_path / f"half.{ending}"
    torch.save(FLAT, path) if ending == "ckpt" else safetensors.torch.save_file(FLAT, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="is damaged, incomplete or not a weights file|was not opened"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<!DOCTYPE html><html>Access denied</html>", "it is a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "it is a git-lfs pointer"),
        ("Repository not found", 'it is a text that begins "Repository not found"'),
        ("\x00\x01\x02notes", "it is in none of these formats"),
        ("GIF89a", "it is a picture"),
        ("", "it is empty"),
        ("GGUF\x03\x00", "it is a GGUF file: load it with a GGUF loader"),
    ],
)
def test_a_text_file_is_refused_and_named(tmp_path, text, what):
    path = tmp_path / "page.ckpt"
    path.write_text(text)
    message = rf"page.ckpt \({len(text)} bytes\) is damaged, incomplete or not a weights file: {what}"
    with pytest.raises(WeightsError, match=message) as refused:
        read_state_dict(path)
    assert "weights_only" not in str(refused.value), "no advice to switch the protection off"


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "ultragen.safetensors"
    safetensors.torch.save_file(FLAT, path)
    return path


def test_extracting_never_replaces_a_file(checkpoint, tmp_path):
    folder = tmp_path / "new" / "folder"
    first = extract(checkpoint, folder, "extras")
    assert first == (folder / "extras.safetensors", 2, True)
    assert extract(checkpoint, folder, "extras") == (first.path, 2, False), "the same weights are there already"
    other = tmp_path / "other.ckpt"
    torch.save({key: value + 1 for key, value in FLAT.items()}, other)
    assert extract(other, folder, "extras") == (folder / "extras_2.safetensors", 2, True)
    (folder / "page.safetensors").write_bytes(b"<html>")
    (folder / "page_2.safetensors").symlink_to(folder / "nowhere")
    assert extract(checkpoint, folder, "page").path == folder / "page_3.safetensors"
    assert (folder / "page.safetensors").read_bytes() == b"<html>"
    assert same_tensors(dict(published_items(read_extras(first.path))), dict(published_items(split(FLAT, "")[1])))


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a ",
        "a.",
        ".a",
        "..",
        "a/b",
        "a\\b",
        "a:b",
        "a\x00b",
        "a\nb",
        "a\x7f",
        "\udcf6",
        "con",
        "NUL.x",
        "a" * 201,
    ]
    + ["湖" * 67, "a?", 'a"'],
)
def test_a_name_that_some_system_refuses_is_refused(checkpoint, tmp_path, name):
    with pytest.raises(ValueError, match="file_name must be a plain name") as error:
        extract(checkpoint, tmp_path / "out", name)
    assert str(error.value).encode() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("stored", ["[]", "{", '{"a": [1]}', '{"1": [null]}', '{"1": 3}', "[" * 10_000, '{"1": ["x"]}'])
def test_damaged_metadata_are_refused(tmp_path, stored):
    path = tmp_path / "extras.safetensors"
    metadata = {"format": "ultragen-extras", "format_version": "1", "base_fingerprint": stored}
    safetensors.torch.save_file(dict(published_items(split(FLAT, "tiny")[1])), path, metadata)
    with pytest.raises(WeightsError, match="extras.safetensors has damaged metadata"):
        read_extras(path)
