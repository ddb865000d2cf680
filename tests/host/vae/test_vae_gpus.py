"""A decode over several GPUs, with names of the CPU in their place: the bits of one, faults in every thread."""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import threading
import weakref
from collections import Counter

import comfy.model_management as mm
import pytest
import torch
from helpers.signatures import needs
from helpers.support import seeded
from helpers.vae_models import narrow, toy_vae
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.memory import NotEnoughMemory
from ultragen_core.host.multigpu import devices
from ultragen_core.host.vae import exact, gpus, run, tile_size
from ultragen_core.host.vae.patch import exact_vae
from ultragen_core.host.vae.support import fallback_reason, vae_support
from ultragen_core.vae.cached_conv import CachedConv
from ultragen_core.vae.feature_buffer import FeatureBuffer
from ultragen_core.vae.geometry import TileGrid

HOST = torch.device("cpu")
NAMES = [HOST, *(torch.device("cpu", index) for index in range(1, 5))]


@pytest.fixture(scope="module")
def vaes():
    """Wan 2.1's and 2.2's VAE; ComfyUI's object around the second keeps the size of the real one."""
    made = {version: toy_vae(width=4) for version in ("2.1", "2.2")}
    made["2.2"].first_stage_model = narrow("2.2", channels=16, width=4)
    with torch.no_grad():
        assert not any(map(fallback_reason, made.values()))
    return made


@pytest.fixture(scope="module")
def vae(vaes):
    return vaes["2.1"]


@pytest.fixture(scope="module")
def samples():
    return seeded(1, 16, 2, 5, 34)


@pytest.fixture(scope="module")
def reference(vae, samples):
    return exact.decode(vae, samples, 64)


@pytest.fixture
def five(monkeypatch):
    """ComfyUI sees five GPUs. The threads of a test all end with it."""
    before = set(threading.enumerate())
    monkeypatch.setattr(mm, "get_all_torch_devices", lambda *given, **more: NAMES, raising=False)
    # Counting what a decode needs takes longer than these small ones.
    monkeypatch.setattr(run, "decode_needs", lambda *given: tile_size.MemoryNeeds(lambda tile: 2**20, 2**20, 2**20))
    yield
    assert set(threading.enumerate()) == before


several = needs(gpu_pool_class() is not None, "a pool of GPU threads")
pytestmark = pytest.mark.usefixtures("five", "inference")


@several
@pytest.mark.parametrize(
    "version,shape,tile,count",
    [
        ("2.1", (1, 16, 2, 5, 34), 64, 2),
        ("2.1", (1, 16, 2, 7, 26), 96, 0),
        ("2.1", (2, 16, 1, 10, 7), 64, 3),
        ("2.1", (1, 16, 4, 5, 17), 80, 9),
        ("2.2", (1, 16, 3, 5, 9), 64, 3),
        ("2.2", (2, 16, 1, 9, 5), 96, 5),
    ],
)
def test_the_bits_are_those_of_one_gpu(vaes, version, shape, tile, count):
    vae, z = vaes[version], seeded(*shape)
    assert torch.equal(exact.decode(vae, z, tile, count), exact.decode(vae, z, tile))


@pytest.mark.parametrize("old", [pytest.param(False, marks=several), True])
def test_one_gpu_starts_no_thread_and_the_log_tells_why_it_is_one(monkeypatch, vae, samples, reference, caplog, old):
    monkeypatch.setattr(gpus, "Workers", None)
    if old:
        monkeypatch.setattr(gpus, "gpu_pool_class", lambda: None)
        monkeypatch.setattr(devices, "gpu_pool_class", lambda: None)
    else:
        monkeypatch.setattr(mm, "get_all_torch_devices", lambda *given, **more: NAMES[:1])
    with caplog.at_level(logging.INFO):
        for count in (1, 0):  # one that is asked for is not explained
            assert torch.equal(exact.decode(vae, samples, 64, count), reference)
    (told,) = (record.message for record in caplog.records if "one GPU" in record.message)
    assert ("need ComfyUI 0.30.0 or newer" if old else "ComfyUI sees no other of the VAE's type") in told


@pytest.mark.parametrize("count", [-1, True, 1.5, "2", None])
def test_a_count_from_a_link_is_checked_before_any_work(count):
    for use in (lambda: exact.decode(None, None, 64, count), lambda: exact_vae(None, 64, count)):
        with pytest.raises(ValueError, match="gpus must be the number of GPUs"):
            use()
    with pytest.raises(ValueError, match="gpus must be the number of GPUs"):
        exact.stream_decode(None, None, print, 64, gpus=count)


@several
def test_pieces_come_in_the_calling_thread_and_each_tiles_in_order(vae, samples, reference):
    seen, starts, reports = torch.zeros(reference.shape[:-1]), {}, []

    def write(region, pixels):
        assert threading.current_thread() is threading.main_thread()
        tile = region.rows.start, region.columns.start
        assert region.frames.start == starts.get(tile, 0)
        starts[tile] = region.frames.stop
        seen[region] += 1
        assert torch.equal(pixels, reference[region])

    exact.stream_decode(vae, samples, write, 64, lambda done, total: reports.append((done, total)), gpus=3)
    assert (seen == 1).all() and len(starts) > 4
    assert reports == [(done, reports[0][1]) for done in range(1, reports[0][1] + 1)]


@several
def test_all_gpus_work_and_few_results_wait(vae):
    sent, taken, waiting, full = Counter(), Counter(), [], threading.Event()

    def work(items, context, send):
        for item in items:
            sent[context.device] += 1
            if all(sent[device] > gpus.WAITING for device in NAMES[:3]):
                full.set()
            send(context.device, item)

    def take(device, item):
        assert full.wait(60)
        waiting.append(sent[device] - taken[device])
        taken[device] += 1
        done.append(item)

    done = []
    with gpus.decode_workers(vae, 3) as workers:
        gpus.MultiGPUPasses(vae, (), workers, workers.devices).run(range(60), work, take)
    assert sorted(done) == list(range(60)) and len(taken) == 3
    assert max(waiting) == gpus.WAITING + 1, "the last one sent waits in its thread"


class OneDevice(TorchDispatchMode):
    """Fails where an operation in a device's thread reads what another device or the host holds.

    Copies between a device and the host are allowed. A tensor belongs to the device whose thread made it, others
    (weights, features) to the host.
    """

    COPIES = ("aten::_to_copy", "aten::copy_", "aten::to")

    def __init__(self, device: torch.device, owners: weakref.WeakKeyDictionary):
        super().__init__()
        self._device, self._owners = device, owners

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = tree_leaves((args, kwargs or {}))
        storages = [leaf.untyped_storage() for leaf in given if isinstance(leaf, torch.Tensor) and leaf.ndim]
        owners = {self._owners.get(storage) for storage in storages}
        copies = func._schema.name in self.COPIES
        assert owners <= {self._device, None} and (copies or len(owners) < 2), f"{func} mixes {owners}"
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in storages and HOST not in given:
                self._owners[leaf.untyped_storage()] = self._device
        return result


@several
def test_no_operation_mixes_devices(monkeypatch, vae, samples, reference):
    owners = weakref.WeakKeyDictionary()
    on_device, used = gpus.on_device, set()

    @contextlib.contextmanager
    def tagged(device):  # the first GPU's name is the host's
        with on_device(device), OneDevice(device, owners) if device.index else contextlib.nullcontext():
            used.add(device)
            yield

    monkeypatch.setattr(gpus, "on_device", tagged)
    assert torch.equal(exact.decode(vae, samples, 64, 4), reference)
    assert len(used) == 4


def fault(monkeypatch, device: torch.device, at: int, error: BaseException) -> list[int]:
    """The `at`-th convolution on `device` raises, in the two passes together; once."""
    input_buffer, calls = CachedConv.input_buffer, Counter()
    raised = []

    def faulty(self, frames):
        if self.context.device == device:
            calls[device] += 1
            if calls[device] == at and not raised:
                raised.append(at)
                raise error
        return input_buffer(self, frames)

    monkeypatch.setattr(CachedConv, "input_buffer", faulty)
    return raised


def all_begin(monkeypatch, count: int) -> None:
    """Every device begins a tile before one of them computes: on a busy computer one could take all."""
    in_tiles, begun, waited = run.decode.in_tiles, threading.Barrier(count, timeout=60), set()

    def together(layers, features, grid, tiles, context, emit):
        def each():
            for tile in tiles:
                if context.device not in waited:
                    waited.add(context.device)
                    begun.wait()
                yield tile

        in_tiles(layers, features, grid, each(), context, emit)

    monkeypatch.setattr(run.decode, "in_tiles", together)


DRAWN = random.Random(25)
FAULTS = [
    (kind, DRAWN.randrange(3), DRAWN.randrange(1, 60))
    for kind in (ValueError, SystemExit, torch.OutOfMemoryError, MemoryError, mm.InterruptProcessingException)
    for _ in range(2)
]


@several
@pytest.mark.parametrize("kind,index,at", FAULTS)
def test_a_fault_in_any_thread_ends_all_and_the_next_decode_is_right(
    monkeypatch, vae, samples, reference, kind, index, at
):
    memory = kind in (torch.OutOfMemoryError, MemoryError)
    with monkeypatch.context() as scope:
        all_begin(scope, 3)
        raised = fault(scope, NAMES[index], at, kind("CUDA out of memory" if memory else "a test"))
        with contextlib.nullcontext() if memory else pytest.raises(kind):
            made = exact.decode(vae, samples, 128, 3)
            assert (made - reference).abs().max() < 5e-6
    assert raised
    assert torch.equal(exact.decode(vae, samples, 64, 3), reference)


@several
@pytest.mark.parametrize("at", [1, 5])
def test_an_interruption_or_error_of_the_caller_ends_all(vae, samples, reference, at):
    for error in (OSError("disk full"), None):
        pieces = []

        def write(region, pixels, error=error, pieces=pieces):
            pieces.append(region)
            if len(pieces) == at and error:
                raise error
            if len(pieces) == at:
                mm.interrupt_current_processing(True)

        with pytest.raises(OSError if error else mm.InterruptProcessingException):
            exact.stream_decode(vae, samples, write, 64, gpus=3)
        assert len(pieces) == at
    assert torch.equal(exact.decode(vae, samples, 64, 3), reference)


@several
def test_tiles_and_frames_that_are_complete_are_not_decoded_again(monkeypatch, vae):
    z = seeded(1, 16, 4, 5, 42)
    reference, frames, tiles, seen = exact.decode(vae, z, 128), [], [], Counter()
    whole, in_tiles, failed = run.decode.whole_frames, run.decode.in_tiles, set()
    begun = threading.Barrier(3, timeout=60)

    def frames_fail(layers, z, indices, context, features, written):
        def counted():
            for number, index in enumerate(indices):
                if number == 0 and "frame" not in failed:
                    begun.wait()
                    if context.device == NAMES[1]:
                        failed.add("frame")
                        raise torch.OutOfMemoryError("CUDA out of memory (a test)")
                frames.append(index)
                yield index

        whole(layers, z, counted(), context, features, written)

    def tiles_fail(layers, features, grid, items, context, emit):
        def counted():
            for number, tile in enumerate(items):
                if number == 0 and "tile" not in failed:
                    begun.wait()
                    if context.device == NAMES[2]:
                        failed.add("tile")
                        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
                yield tile
                tiles.append(tile.clip(grid.size))

        in_tiles(layers, features, grid, counted(), context, emit)

    monkeypatch.setattr(run.decode, "whole_frames", frames_fail)
    monkeypatch.setattr(run.decode, "in_tiles", tiles_fail)

    def write(region, pixels):
        assert (pixels - reference[region]).abs().max() < 5e-6
        seen[str(region)] += 1

    exact.stream_decode(vae, z, write, 128, gpus=3)
    assert failed == {"frame", "tile"} and sorted(frames) == [0, 1, 2, 3]
    assert sum(tile.rows.size * tile.columns.size for tile in tiles) == 40 * 336, "every pixel once"
    assert len({tile.size for tile in tiles}) > 1 and set(seen.values()) == {1}


@several
def test_memory_that_is_too_small_everywhere_is_an_error(monkeypatch, vae, samples, caplog):
    input_buffer = CachedConv.input_buffer

    def scarce(self, frames):
        if self.context.device == NAMES[1] and self.size[1] > 26:
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        return input_buffer(self, frames)

    monkeypatch.setattr(CachedConv, "input_buffer", scarce)
    with pytest.raises(NotEnoughMemory, match="smallest tile of 64 pixels"):
        exact.decode(vae, samples, 96, 2)
    assert "memory ran out on cpu:1" in caplog.text


@several
def test_an_error_holds_no_tensors(monkeypatch, vae, samples):
    alive, inner = weakref.WeakSet(), FeatureBuffer.read

    def read(self, *given):
        part = inner(self, *given)
        alive.add(part)
        return part

    monkeypatch.setattr(FeatureBuffer, "read", read)
    all_begin(monkeypatch, 2)
    fault(monkeypatch, NAMES[1], 40, ValueError("a test"))
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ValueError, match="a test"):
            exact.decode(vae, samples, 64, 2)
        assert not alive
    finally:
        gc.enable()


@several
def test_a_gpu_that_does_not_answer_is_named(monkeypatch, vae, samples, caplog):
    released, write = threading.Event(), FeatureBuffer.write

    def hang(self, *given):
        if threading.current_thread() is not threading.main_thread() and not released.is_set():
            released.wait(30)
        write(self, *given)

    monkeypatch.setattr(gpus, "SECONDS_WITHOUT_ANSWER", 0.3)
    monkeypatch.setattr(FeatureBuffer, "write", hang)
    shutdown = gpu_pool_class().shutdown
    monkeypatch.setattr(gpu_pool_class(), "shutdown", lambda pool: (released.set(), shutdown(pool)))
    with pytest.raises(RuntimeError, match=r"no answer from cpu, cpu:1 in 0.3 s. Decode on one GPU \(gpus 1\)"):
        exact.decode(vae, samples, 64, 2)
    assert "the thread of cpu, cpu:1 does not end" in caplog.text


def test_waiting_pieces_are_counted(vae):
    layers, shape = vae_support(vae).decoder, (16, 3, 32, 32)
    without, with_them = (
        tile_size.decode_needs(layers, shape, torch.float32, waiting=number).tile(64) for number in (0, 5)
    )
    piece = 3 * 4 * 64 * 64 * 4
    assert 5 * piece <= with_them - without <= 5 * piece * 1.2


@pytest.mark.parametrize(
    "size,gpus,tile,tiles",
    [((2160, 3840), 4, 1024, (3, 4)), ((2160, 3840), 2, 1024, (3, 4)), ((1088, 1920), 4, 1024, (2, 2))],
)
def test_several_gpus_try_larger_tiles_that_divide_well(size, gpus, tile, tiles):
    def grid(tile: int) -> TileGrid:
        return TileGrid(size, tile, 8)

    candidates = tile_size.shared_candidates(grid, gpus)
    assert candidates[0] == tile and grid(tile).counts == tiles
    assert sorted(candidates) == sorted((*tile_size.LARGE_TILES, *tile_size.TILES))
    assert candidates.index(256) < candidates.index(96)


def test_the_tile_fits_on_every_gpu_and_a_full_one_does_not_help(monkeypatch, vae, caplog):
    free, asked = {NAMES[0]: 500**2, NAMES[1]: 390**2, NAMES[2]: 200**2, NAMES[3]: 512**2}, []
    monkeypatch.setattr(tile_size, "free_memory", lambda patcher, device: free[device])
    monkeypatch.setattr(mm, "free_memory", lambda size, device, *given, **more: asked.append((size, device)))
    needs = tile_size.MemoryNeeds(lambda tile: tile**2, 100, 10)
    with caplog.at_level(logging.INFO):
        choice = tile_size.choose_tile(vae, None, 2000, needs, NAMES[1:4])
    assert choice == (384, torch.device("cpu"), (NAMES[1], NAMES[3]))
    assert [device for _, device in asked if device in NAMES[1:]] == NAMES[1:4]
    assert all(size >= 512**2 for size, device in asked if device in NAMES[1:])
    assert "cpu:2 does not help, 0.0 GiB are free there" in caplog.text and "cpu, cpu:1, cpu:3" in caplog.text
    assert tile_size.choose_tile(vae, 400, 2000, needs, NAMES[1:4])[2] == (NAMES[3],), "the user's tile is kept"
    assert tile_size.choose_tile(vae, None, 2000, needs).others == ()
    ordered = [640, 448, 384, 320, 128]
    assert tile_size.choose_tile(vae, None, 2000, needs, NAMES[1:4], ordered)[::2] == (384, (NAMES[1], NAMES[3]))
