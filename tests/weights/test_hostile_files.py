"""Files that are no weights, lie about themselves or change while they are read: one kind of error, and no memory."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import zipfile
from collections import OrderedDict

import pytest
import torch
from helpers.support import DATA

from ultragen_core.weights.complete import check_complete
from ultragen_core.weights.extras_file import read_extras
from ultragen_core.weights.files import WeightsError, read_metadata, read_shapes, read_state_dict

SMALL = OrderedDict(
    (f"blocks.{block}.self_attn.q.{kind}", torch.zeros(shape, dtype=dtype))
    for block in range(2)
    for kind, shape, dtype in (("weight", (3, 2), torch.float16), ("bias", (3,), torch.float32))
)


def saved(content=SMALL, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


ZIP, OLD = saved(), saved(_use_new_zipfile_serialization=False)


def outcome(path):
    """Nothing but WeightsError leaves, from reading or from the checks, and every message can be printed."""
    errors = []
    for use in (read_shapes, read_state_dict, read_metadata, read_extras):
        try:
            result = use(path)
            if use in (read_shapes, read_state_dict):
                check_complete(result, "mutated")
        except WeightsError as error:
            errors.append(str(error))
            assert str(error).encode() and len(str(error)) < 2000
    return errors


def mutations(whole: bytes, count: int):
    draw = random.Random(1)
    for _ in range(count):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.choice((0, 0x2E, 0x80, 0xFF, draw.randrange(256)))
        yield bytes(content[: draw.choice((len(content), draw.randrange(len(content))))])


@pytest.mark.parametrize("whole", [ZIP, OLD], ids=["archive", "old format"])
def test_mutated_checkpoints_are_read_or_refused(tmp_path, whole):
    path = tmp_path / "mutated.ckpt"
    refused = 0
    for content in mutations(whole, 150):
        path.write_bytes(content)
        refused += bool(outcome(path))
    assert refused > 100


@pytest.mark.parametrize("cut", [1, 30, 100, 200, 300, 400, -1])  # the length differs between processes
def test_an_old_file_that_is_cut_off_is_refused_by_its_index_too(tmp_path, cut):
    (tmp_path / "old.pth").write_bytes(OLD[:cut])
    for read in (read_shapes, read_state_dict):
        with pytest.raises(WeightsError, match="old.pth .* is damaged, incomplete or not a weights file"):
            read(tmp_path / "old.pth")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_the_index_tells_what_reading_gives(tmp_path, options):
    parts = {"weight": torch.nn.Parameter(torch.zeros(2, 3).T), "half": torch.zeros(4, dtype=torch.bfloat16)[1:3]}
    parts |= {"scalar": torch.tensor(1)} | ({} if options else {"fp8": torch.zeros(3).to(torch.float8_e4m3fn)})
    path = tmp_path / "all.pt"
    path.write_bytes(saved({"state_dict": parts, "epoch": 3, "size": torch.Size([1])}, **options))
    index, read = read_shapes(path), read_state_dict(path)
    assert index.keys() == read.keys() == parts.keys()
    for key, tensor in read.items():
        assert index[key].is_meta and (index[key].dtype, index[key].shape) == (tensor.dtype, tensor.shape)


def test_the_index_reads_no_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("read whole"))
    for content in (ZIP, OLD):
        (tmp_path / "file.ckpt").write_bytes(content)
        assert read_shapes(tmp_path / "file.ckpt").keys() == SMALL.keys()


def archive(path, index: bytes, compression=zipfile.ZIP_STORED, **parts):
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as written:
        for name, content in {"data.pkl": index, "version": b"3\n", "byteorder": b"little", **parts}.items():
            written.writestr(f"archive/{name}", content)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_index_that_unpacks_to_much_is_not_unpacked(tmp_path, compression):
    path, mib = tmp_path / "bomb.ckpt", 50
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as written:
        with written.open("archive/data.pkl", "w") as index:
            index.write(b"\x80\x02X" + (mib * 2**20).to_bytes(4, "little"))
            for _ in range(mib):
                index.write(b"a" * 2**20)
            index.write(b"0}.")
    before = peak()
    for read in (read_shapes, read_state_dict):
        with pytest.raises(WeightsError, match="unpacks to|its index data.pkl has 52,428"):
            read(path)
    assert peak() - before < mib / 2


def test_a_memo_of_billions_takes_no_memory(tmp_path):
    """The C unpickler would make room for every number up to the one that is asked for."""
    before = peak()
    archive(tmp_path / "memo.ckpt", b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(WeightsError):
        read_shapes(tmp_path / "memo.ckpt")
    assert peak() - before < 25


def rebuilt(size, stride, length):
    class Claim:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Stored(), 0, size, stride, False, OrderedDict())

    class Stored:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", length) if isinstance(value, Stored) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"weight": Claim()})
    return buffer.getvalue()


def test_a_view_that_repeats_a_value_is_read(tmp_path):
    (tmp_path / "view.ckpt").write_bytes(saved({"weight": torch.zeros(1).expand(3, 2)}))
    assert read_shapes(tmp_path / "view.ckpt")["weight"].shape == (3, 2)
    assert read_state_dict(tmp_path / "view.ckpt")["weight"].shape == (3, 2)


@pytest.mark.parametrize(
    ("size", "stride", "length"),
    [((2**40,), (0,), 1), ((2**63,), (1,), 1), ((2**40, 2**40, 0), (1, 1, 1), 1), ((4,), (1,), 4), ((-1,), (1,), 1)]
    + [((1,), (1,), -1), ((1,), (1,), 2**62), (("x",), (1,), 1)],
)
def test_an_index_that_claims_more_than_the_file_holds_is_refused(tmp_path, size, stride, length):
    archive(tmp_path / "claims.ckpt", rebuilt(size, stride, length), **{"data/0": bytes(4)})
    for read in (read_shapes, read_state_dict):
        with pytest.raises(WeightsError, match="is damaged, incomplete"):
            read(tmp_path / "claims.ckpt")


def test_the_index_looks_up_no_name_of_the_file(tmp_path):
    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'was_here'}",)

    archive(tmp_path / "bad.ckpt", pickle.dumps({"weight": Touch()}, 2))
    with pytest.raises(WeightsError, match="holds Python objects other than tensors"):
        read_shapes(tmp_path / "bad.ckpt")
    assert not (tmp_path / "was_here").exists()


def test_what_is_no_file_or_must_not_be_read(tmp_path):
    (tmp_path / "folder.ckpt").mkdir()
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "loop.ckpt").symlink_to(tmp_path / "loop.ckpt")
    for name, found in {
        "folder.ckpt": "it is a folder",
        "pipe.ckpt": "it is a pipe or a device",
        "loop.ckpt": "cannot be read: Too many levels",
        "gone.ckpt": "cannot be read: No such file",
        "n" * 300: "cannot be read: File name too long",
    }.items():
        for read in (read_shapes, read_state_dict, read_metadata):
            with pytest.raises(WeightsError, match=found):
                read(tmp_path / name)


def test_memory_that_runs_out_is_no_damage(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    (tmp_path / "large.ckpt").write_bytes(ZIP)
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(WeightsError, match="large.ckpt does not fit into memory"):
        read_state_dict(tmp_path / "large.ckpt")


def test_bytes_after_the_last_tensor_are_no_damage(tmp_path):
    path = tmp_path / "longer.safetensors"
    path.write_bytes((DATA / "tiny_ultragen.safetensors").read_bytes() + bytes(100))
    assert read_state_dict(path).keys() == read_shapes(path).keys()
    assert read_extras(path).gates


MANY = b"\x8a\x08" + (2**20).to_bytes(8, "little") + b"\x85"
# By protocol 2's opcodes: a tensor of MANY values that are one byte, and a pair of twice a pair of twice a pair ...
VALUES = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nByteStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\0"
    + MANY
    + b"K\0\x85\x89}tR"
)
PAIRS = b")" + 60 * b"2\x86"
BOMBS = {
    "values as a size": b"ctorch\nSize\n" + VALUES + b"\x85R",
    "values as a table": b"ccollections\nOrderedDict\n" + VALUES + b"\x85R",
    "values as arguments": b"ctorch\nSize\n" + VALUES + b"R",
    "values as a storage": VALUES + b"Q",
    "values as a tensor's size": VALUES.replace(MANY, VALUES),
    "values as a tensor's state": VALUES + b")b",
    "pairs as a name": b"}" + PAIRS + b"K\0s",
    "pairs as a name in a table": b"ccollections\nOrderedDict\n]](" + PAIRS + b"K\0ea\x85R",
    "pairs as a storage": VALUES.replace(b"X\x01\0\0\x000", PAIRS),
    "pairs in a set": b"\x8f(" + PAIRS + b"\x90",
    "pairs in a frozen set": b"(" + PAIRS + b"\x91",
    "pairs in a table of protocol 0": b"(" + PAIRS + b"K\0d",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_few_bytes_that_mean_very_much_are_refused(tmp_path, bomb):
    """Each of the values would become a tensor, and a name is hashed part by part: both take hours or all memory."""
    archive(tmp_path / "bomb.ckpt", b"\x80\x02}X\x01\0\0\0a" + BOMBS[bomb] + b"s.", **{"data/0": bytes(4)})
    before = peak()
    for read in (read_shapes, read_state_dict):
        with pytest.raises(WeightsError, match="bomb.ckpt .* is damaged, incomplete"):
            read(tmp_path / "bomb.ckpt")
    assert peak() - before < 25
