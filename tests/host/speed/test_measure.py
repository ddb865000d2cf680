"""Measuring the card, at toy size on the CPU."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from itertools import count, cycle
from pathlib import Path

import comfy.cli_args
import comfy.ldm.wan.model as wan
import folder_paths
import pytest
import torch
from conftest import ROOT
from helpers.vae_models import toy_vae

from ultragen_core.attention.extras import ExtrasShape, ExtrasSummary
from ultragen_core.grid import TokenGrid
from ultragen_core.host.plan import plan
from ultragen_core.host.speed import command, decode, evaluation, timing
from ultragen_core.host.speed.measure import Measurement, Step, Workload, measure
from ultragen_core.host.speed.records import records_file
from ultragen_core.host.speed.setup import setup_of
from ultragen_core.plan.flops import FLOPs
from ultragen_core.plan.memory import MAX_PIECES, ActivationMemory
from ultragen_core.plan.speed import DecodeTime, Speed
from ultragen_core.rules.choice import Settings, choose_rule
from ultragen_core.rules.t3 import t3_rule
from ultragen_core.sizes import VideoSize
from ultragen_core.wan import WanShape

CPU = torch.device("cpu")
MODEL = WanShape(blocks=30, channels=128, heads=1, ffn_channels=128)
SIZE = VideoSize(128, 128, 17)
TOY = Workload(MODEL, 8, {"ultragen": SIZE, "t3": VideoSize(256, 128, 9)})


@pytest.fixture(scope="module")
def models():
    return evaluation.few_blocks(MODEL, CPU)


@pytest.fixture
def once(monkeypatch):
    """Work is run once: 5 blocks take 1 s, what is outside of blocks 0.25 s of it, a decode 1 s."""
    seconds = cycle([1.0, 0.25])

    def timed(run, device, budget):
        run()
        return next(seconds)

    monkeypatch.setattr(evaluation, "timed", timed)
    monkeypatch.setattr(decode, "timed", lambda run, *_: run().numel() and 1.0)


def test_a_measured_decode_pins_no_memory_where_comfyui_may_not(monkeypatch):
    asked = []

    class Queue(decode.PinnedCopyQueue):
        def __init__(self, pinned: bool):
            asked.append(pinned)
            super().__init__(pinned)

    monkeypatch.setattr(decode, "PinnedCopyQueue", Queue)
    monkeypatch.setattr(comfy.cli_args.args, "disable_pinned_memory", True)
    decode.decode_to_bytes(toy_vae(width=4), torch.randn(1, 16, 1, 8, 8), None)
    assert asked == [False]


def test_five_blocks_stand_for_the_published_thirty(models):
    """The same FLOPs, of attention and of products, under both rules."""
    trained = frozenset(range(3, 27))
    extras = ExtrasSummary(ExtrasShape(MODEL.channels, rank=64, refined=True), trained, dict.fromkeys(trained))
    for rule, whole in (("ultragen", choose_rule(MODEL, Settings(), extras)), ("t3", t3_rule(MODEL))):
        size = VideoSize(1920, 1088, 81)
        assert evaluation.evaluation_flops(models[rule], size, 30) == pytest.approx(plan(whole, MODEL, size).flops)


def test_the_line_names_what_was_measured(once):
    threads, before = [], torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        made = measure(CPU, TOY, lambda text: threads.append(torch.get_num_threads()))
        assert set(threads) == {4} and torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)
    card, *parts = made.line().split("; ")
    assert card.startswith("cpu, driver unknown, torch 2.") and f"attention {made.attention}" in card
    assert parts[:4] == [
        "128x128 ultragen 4.8 s a step",  # 0.25 and 6 times 0.75
        "256x128 t3 4.8 s a step",
        "128x128 decode 1 s",
        "256x128 decode 1 s",
    ]
    assert parts[4].startswith("17 frames, CFG 1, extrapolated from 5 of 30 blocks and 9 decoded frames, 20")
    assert [one.size.frames for one in made.speed.evaluations] == [17, 9] and "\n" not in made.line()


def test_every_run_of_an_evaluation_has_another_timestep(models, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluation, "timed", lambda run, *_: [run() for _ in range(3)] and 1.0)
    monkeypatch.setattr(evaluation, "evaluating", spied(evaluation.evaluating, seen))
    evaluation.measure_evaluation(models["ultragen"], SIZE._replace(frames=9), 30, CPU)
    assert len(seen) == len(set(seen)) == 3


def test_outside_of_blocks_no_block_runs(models, monkeypatch):
    ran, forward = [], wan.WanAttentionBlock.forward
    monkeypatch.setattr(wan.WanAttentionBlock, "forward", lambda *args, **kw: ran.append(1) or forward(*args, **kw))
    counts = []
    monkeypatch.setattr(evaluation, "timed", lambda run, *_: counts.append((run().shape, len(ran))) or 1.0)
    blocks = models["t3"].model.diffusion_model.blocks
    with torch.inference_mode(), evaluation.without_blocks(models["t3"].model.diffusion_model):
        assert not len(models["t3"].model.diffusion_model.blocks)
    evaluation.measure_evaluation(models["t3"], VideoSize(256, 128, 9), 30, CPU)
    (shape, with_blocks), (same, without) = counts
    assert shape == same and with_blocks == without > 0 and models["t3"].model.diffusion_model.blocks is blocks


def spied(evaluating, seen):
    @contextmanager
    def spy(model, sigmas):
        with evaluating(model, sigmas) as evaluate:
            yield lambda x, text, sigma: seen.append(sigma.item()) or evaluate(x, text, sigma)

    return spy


@torch.inference_mode()
def measured(model, size=SIZE):
    return evaluation.measure_evaluation(model, size, 30, CPU)


def needed(frames: int) -> int:
    shape = WanShape(5, MODEL.channels, MODEL.heads, MODEL.ffn_channels)
    return ActivationMemory.of(shape, TokenGrid((frames + 3) // 4, 8, 8), 1, 2).needed(MAX_PIECES)


def test_fewer_frames_where_memory_is_short(models, monkeypatch):
    monkeypatch.setattr(evaluation, "timed", lambda *_: 1.0)
    monkeypatch.setattr(evaluation.mm, "get_free_memory", lambda device: needed(17) - 1)
    assert measured(models["ultragen"]).size.frames == 9
    monkeypatch.setattr(evaluation.mm, "get_free_memory", lambda device: needed(17))
    assert measured(models["ultragen"]).size.frames == 17
    monkeypatch.setattr(evaluation.mm, "get_free_memory", lambda device: needed(9) - 1)
    assert measured(models["ultragen"]) is None
    step = Step("t3", SIZE, FLOPs(1.0, 1.0), None)
    assert step.text(Speed("2026-11-27", (), ())) == "128x128 t3 does not fit"


def test_fewer_frames_where_memory_runs_out_all_the_same(models, monkeypatch):
    calls = count()

    def timed(run, device, budget):
        if next(calls) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return 1.0

    monkeypatch.setattr(evaluation, "timed", timed)
    assert measured(models["ultragen"]).size.frames == 9


def test_fewer_frames_on_a_slow_card(models, monkeypatch):
    for seconds, frames in ((0.9 * evaluation.LONGEST, 9), (0.3 * evaluation.LONGEST, 17)):
        times = cycle([seconds, 0.0])
        monkeypatch.setattr(evaluation, "timed", lambda run, *_, times=times: next(times))
        found = measured(models["ultragen"])
        assert (found.size.frames, found.seconds) == (frames, 6 * seconds)


def test_the_other_blocks_memory_is_held(models, monkeypatch):
    """As far as ComfyUI would keep their weights on the device."""
    held = []

    def timed(*_):
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.dtype == torch.uint8]
        held.append(sum(one.nbytes for one in tensors))
        return 1.0

    gc.collect()  # or tensors that earlier tests have left go in between
    monkeypatch.setattr(evaluation, "timed", timed)
    extras = models["ultragen"].get_nested_additional_models()[0].model
    blocks = models["ultragen"].model.diffusion_model.blocks
    weights = sum(weight.nbytes for module in (blocks, extras) for weight in module.parameters())
    measured(models["ultragen"], SIZE._replace(frames=9))
    monkeypatch.setattr(evaluation.mm, "get_free_memory", lambda device: needed(9))
    measured(models["ultragen"], SIZE._replace(frames=9))
    assert held[0] == held[1] and held[2] == held[3] and held[0] - held[2] == 5 * weights


def test_decodes_are_extrapolated_by_the_frame(monkeypatch):
    """4 frames more take 0.5 s; the rest of the first 5 frames' 2 s does not grow. Slow sizes are left out."""
    times = iter([2.0, 2.5] * 2)
    monkeypatch.setattr(decode, "timed", lambda *_: next(times))
    small, large = VideoSize(64, 64, 81), VideoSize(512, 512, 81)
    made = decode.measure_decodes(None, [small, VideoSize(64, 128, 13), large], CPU)
    assert made == [DecodeTime(small, 2.0 + 19 * 0.5), DecodeTime(VideoSize(64, 128, 13), 3.0)]
    speed = Speed("2026-11-27", (), tuple(made[:1]))
    line = Measurement(setup_of(CPU), "attention", TOY._replace(sizes={"t3": large}), (), speed, 0).line()
    assert f"512x512 decode {64 * 11.5 / 60:.0f} min (from 64x64); 81 frames" in line


@pytest.mark.parametrize(
    ("each", "runs", "least"), [([9, 1], 1, 9), ([5, 4, 1], 2, 4), ([3, 1, 2, 1], 4, 1), ([7, 2, 1], 2, 2)]
)
def test_repeats_fit_into_the_budget(each, runs, least, monkeypatch):
    """The first run compiles and counts only where it took the whole budget."""
    times = iter(each)
    monkeypatch.setattr(timing, "seconds_of", lambda run, device: run() or next(times))
    done = []
    assert timing.timed(lambda: done.append(1), CPU, 8.0) == least and len(done) == runs


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def toy_measurement():
    speed = Speed("2026-11-27", (), (DecodeTime(SIZE, 2.0),))
    return Measurement(setup_of(CPU), "attention", TOY, (Step("t3", SIZE, FLOPs(1.0, 1.0), None),), speed, 2**30)


def test_the_command_prints_one_line_and_keeps_the_measurement(user_folder, toy_measurement, monkeypatch, capsys):
    monkeypatch.setattr(command, "measure", lambda *_: toy_measurement)
    command.measure_and_keep(CPU, TOY)
    assert capsys.readouterr().out == toy_measurement.line() + "\n" and "; peak 1.0 GiB; " in toy_measurement.line()
    assert list(json.loads(records_file().read_text())) == [setup_of(CPU).key]
    records_file().unlink()
    user_folder.rmdir()
    user_folder.write_text("a file in its place")
    command.measure_and_keep(CPU, TOY)
    shown = capsys.readouterr()
    assert shown.out == toy_measurement.line() + "\n" and "could not be written" in shown.err


def test_an_interrupted_command_writes_nothing(user_folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupted)
    monkeypatch.setattr(command.mm, "get_torch_device", lambda: torch.device("cuda"))
    for name in ("get_free_memory", "get_total_memory"):
        monkeypatch.setattr(command.mm, name, lambda device: 1)
    with pytest.raises(SystemExit, match="Interrupted: nothing was written"):
        command.main()
    assert not user_folder.exists()


def script():
    spec = importlib.util.spec_from_file_location("measure_script", ROOT / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_finds_the_comfyui_that_it_is_installed_in(tmp_path, monkeypatch):
    module, elsewhere = script(), tmp_path / "elsewhere"
    for tree in (tmp_path, elsewhere):
        (tree / "comfy").mkdir(parents=True)
        (tree / "comfy" / "options.py").touch()
    monkeypatch.delenv("COMFYUI_PATH")
    monkeypatch.setattr(module, "HERE", tmp_path / "custom_nodes" / "any name")
    assert module.find_comfyui(None) == tmp_path
    assert module.find_comfyui(str(elsewhere)) == elsewhere
    with pytest.raises(SystemExit, match="is not a ComfyUI folder: it has no comfy/. Name it with --comfyui PATH"):
        module.find_comfyui(str(tmp_path / "custom_nodes"))


@pytest.mark.parametrize(
    ("options", "visible"),
    [
        ([], None),
        (["--cuda-device", "1"], "1"),
        (["--default-device", "2"], ",".join(map(str, [2, 0, 1, *range(3, 32)]))),
    ],
)
def test_the_script_measures_the_gpu_that_comfyuis_options_choose(options, visible, monkeypatch):
    import comfy.cli_args

    monkeypatch.setattr(os, "environ", environment := {})
    script().set_environment(comfy.cli_args.parser.parse_args([*options, "--oneapi-device-selector", "level_zero:0"]))
    assert environment.get("CUDA_VISIBLE_DEVICES") == environment.get("HIP_VISIBLE_DEVICES") == visible
    assert environment["ONEAPI_DEVICE_SELECTOR"] == "level_zero:0"


def test_the_script_starts_as_comfyui_does_and_refuses_a_computer_without_gpu(tmp_path):
    """From another folder, with ComfyUI's own options."""
    (tmp_path / "user").mkdir()
    done = subprocess.run(
        [sys.executable, ROOT / "measure.py", "--cpu", "--user-directory", tmp_path / "user"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("This command measures a GPU, and ComfyUI uses none here.")
    assert list(Path(tmp_path).rglob("*")) == [tmp_path / "user"]
