"""Safetensors by plain reads: the library's numbers, files that change under the reader, headers that lie."""

from __future__ import annotations

import json
import os
import random

import pytest
import safetensors.torch
import torch
from helpers.support import DATA

from ultragen_core.storage.safetensors_file import (
    DTYPES,
    DamagedFile,
    is_safetensors,
    read_header,
    read_tensors,
)

TINY = DATA / "tiny_ultragen.safetensors"


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape=(1,), start=0, end=4, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("mapped", [False, True])
def test_reads_what_the_library_reads(mapped):
    tensors, metadata = read_tensors(TINY, mapped)
    expected = safetensors.torch.load_file(TINY)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert all(tensors[key].dtype == expected[key].dtype for key in expected)
    with safetensors.safe_open(TINY, "pt") as file:
        assert metadata == (file.metadata() or {})
    assert {name: entry.shape for name, entry in read_header(TINY).entries.items()} == {
        key: tuple(value.shape) for key, value in expected.items()
    }


def test_every_dtype_scalars_empty_tensors_and_metadata(tmp_path):
    path = tmp_path / "all.anything"
    written = {name: torch.arange(6).view(2, 3).to(dtype) for name, dtype in DTYPES.items() if name != "F8_E8M0"}
    written |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    safetensors.torch.save_file(written, path, {"prompt": "湖"})
    tensors, metadata = read_tensors(path)
    assert is_safetensors(path) and metadata == {"prompt": "湖"}
    for name, value in written.items():
        assert tensors[name].dtype == value.dtype and tensors[name].shape == value.shape
        assert torch.equal(tensors[name].to(torch.complex64), value.to(torch.complex64))


def test_bytes_after_the_last_tensor_are_left(tmp_path):
    path = tmp_path / "longer.safetensors"
    path.write_bytes(TINY.read_bytes() + b"signature")
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(path)
    assert read_tensors(path)[0].keys() == safetensors.torch.load_file(TINY).keys()


def test_what_was_read_stays_when_the_file_is_overwritten(tmp_path):
    path = tmp_path / "copied.safetensors"
    path.write_bytes(TINY.read_bytes())
    tensors, _ = read_tensors(path)
    with path.open("wb"):  # what cp and wget -O do first
        assert torch.equal(tensors["head.modulation"], safetensors.torch.load_file(TINY)["head.modulation"])


def test_a_file_that_is_written_to_meanwhile_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "copied.safetensors"
    path.write_bytes(TINY.read_bytes())
    from ultragen_core.storage import safetensors_file

    read = safetensors_file._read

    def slowly(file, slot):
        os.utime(path, ns=(0, slot.start))
        return read(file, slot)

    monkeypatch.setattr(safetensors_file, "_read", slowly)
    with pytest.raises(DamagedFile, match="was overwritten while it was read"):
        read_tensors(path)

    def cut_off(file, slot):
        os.truncate(path, slot.start)
        return read(file, slot)

    monkeypatch.setattr(safetensors_file, "_read", cut_off)
    with pytest.raises(DamagedFile, match="it ends early"):
        read_tensors(path)


DAMAGED = {
    "nothing": (b"", "ends early"),
    "a length alone": (file_of(b"", length=9), "header should be 9 bytes long, but the file has 8"),
    "a huge length": (file_of({}, length=2**63), "header should be 9,223,372,036,854,775,808 bytes"),
    "no JSON": (file_of(b"{nothing}"), "header is not JSON"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "header is not JSON"),
    "deep JSON": (file_of(b'{"a":' + b"[" * 100_000), "header is not JSON"),
    "a list": (file_of([]), "not a table of tensors"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "metadata is not a table of texts"),
    "no entry": (file_of({"a": None}), "no dtype, shape and offsets for the tensor 'a'"),
    "one offset": (file_of({"a": entry() | {"data_offsets": [0]}}), "no dtype, shape and offsets"),
    "an unknown dtype": (file_of({"a": entry(dtype="F3")}, b"1234"), "'a' has the dtype 'F3'"),
    "a dtype that is a list": (file_of({"a": entry(dtype=["F32"])}, b"1234"), "'a' has the dtype"),
    "2**63 rows": (file_of({"a": entry([2**63, 0], 0, 0)}), "an impossible size"),
    "overflowing strides": (file_of({"a": entry([2**40, 2**40, 0], 0, 0)}), "an impossible size"),
    "negative sizes": (file_of({"a": entry([-1, -1])}, b"1234"), "an impossible size"),
    "a fraction": (file_of({"a": entry([1.0])}, b"1234"), "an impossible size"),
    "true": (file_of({"a": entry([True])}, b"1234"), "an impossible size"),
    "a negative place": (file_of({"a": entry(start=-4, end=0)}, b"1234"), "an impossible size"),
    "many axes": (file_of({"a": entry([1] * 1000)}, b"1234"), "an impossible size"),
    "another size": (file_of({"a": entry([2])}, b"1234"), r"\(2,\) takes 8 bytes, its header gives it 4"),
    "beyond the end": (file_of({"a": entry()}, b"123"), r"by its header it should have \d+ bytes"),
    "overlap": (file_of({"a": entry(), "b": entry(start=2, end=6)}, b"123456"), "'a' and 'b' overlap"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("read", [read_header, read_tensors])
def test_a_wrong_header_is_refused(tmp_path, name, read):
    content, sentence = DAMAGED[name]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=sentence):
        read(path)


def test_folders_and_pipes_are_refused_at_once(tmp_path):
    with pytest.raises(DamagedFile, match="is a folder"):
        read_header(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DamagedFile, match="is a pipe or a device"):
            read_header(tmp_path / "pipe")


def test_mutated_files_are_read_or_refused(tmp_path):
    """Any byte of the header may be anything: nothing but DamagedFile ever leaves."""
    draw, path = random.Random(0), tmp_path / "mutated.safetensors"
    whole = file_of(
        {"__metadata__": {"format": "pt"}, "a": entry((2, 3), 0, 24), "b": entry((4,), 24, 32, "F16")}, bytes(32)
    )
    refused = 0
    for _ in range(600):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(content))] = draw.choice((*b'0123456789-[]{}",:.eE ', draw.randrange(256)))
        path.write_bytes(content[: draw.choice((len(content), draw.randrange(len(content))))])
        try:
            read_tensors(path)
        except DamagedFile:
            refused += 1
    assert 200 < refused < 600
