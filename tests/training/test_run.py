"""A run is the same run however it was interrupted and however many processes share it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from helpers.waiting import wait_until
from safetensors.torch import load_file

from tools.console import Trouble
from tools.server import hold_port
from training.curve import Curve
from training.loop import Keeping
from training.settings_file import agree

# Of 20 steps on five clips of noise: pinned, so that no change of the arithmetic goes unseen.
LOSSES = (2.377204, 2.080008, 1.917105, 1.893843, 1.930454)


def arguments(base, cache, *more: str) -> list[str]:
    """Of `python3 -m training`, for the run of the fixture `training`."""
    files = ["--model", str(base), "--cache", str(cache.folder)]
    recipe = ["--rank", "4", "--dense-blocks", "0,3", "--batch", "4"]
    return ["train", *files, *recipe, *more]


def weights(folder, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"full-{step:06}.safetensors")


def losses(folder) -> list[float]:
    return [row.loss for row in Curve(folder).rows()]


def assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    worst = max(((one[key] - other[key]).abs().max() / other[key].abs().max().clamp(min=1)).item() for key in one)
    assert worst <= tolerance


def test_the_loss_of_twenty_steps(training, tmp_path):
    training(tmp_path, steps=20).run()
    found = losses(tmp_path)
    assert found[::4] == pytest.approx(LOSSES, rel=1e-4)
    assert found[-1] < 0.9 * found[0]


def newest_state(folder) -> int:
    """The step of a run's newest state; 0 without one."""
    return max((int(path.stem.removeprefix("state-")) for path in folder.glob("state-*.pt")), default=0)


def test_a_run_that_was_killed_ends_with_the_same_weights(training, base, cache, tmp_path):
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    options = ["--learning-rate", "2e-3", "--steps", "1000", "--state-every", "2", "--micro-batch", "4"]
    options += ["--out", str(killed)]
    with (tmp_path / "log").open("wb") as log:
        script = [sys.executable, "-m", "training", *arguments(base, cache, *options)]
        process = subprocess.Popen(script, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: newest_state(killed) >= 4 or process.poll() is not None)
    finally:
        process.kill()
        process.wait()
    steps = newest_state(killed) + 4
    resumed = training(killed, steps=steps)
    assert 4 <= resumed.step == steps - 4, (tmp_path / "log").read_text()
    resumed.run()
    training(undisturbed, steps=steps).run()
    assert_near(weights(killed, steps), weights(undisturbed, steps), 0)
    rows = [[row[:4] for row in Curve(folder).rows()] for folder in (killed, undisturbed)]
    assert rows[0] == rows[1] and len(rows[0]) == steps


@pytest.mark.parametrize("changes", [{}, {"ffn_deltas": True}], ids=str)
def test_a_run_whose_time_is_up_ends_in_order_and_goes_on(training, tmp_path, changes):
    run = training(tmp_path / "cut", keeping={"minutes": 1e-6}, **changes)
    assert not run.run() and run.step == 1
    assert (tmp_path / "cut" / "state-000001.pt").is_file() and not list((tmp_path / "cut").glob("full-*"))
    assert training(tmp_path / "cut", **changes).run() and training(tmp_path / "whole", **changes).run()
    assert_near(weights(tmp_path / "cut", 3), weights(tmp_path / "whole", 3), 0)


@pytest.fixture(scope="module")
def two_processes(base, cache, tmp_path_factory):
    """The folder with what they left, see two_processes.py."""
    folder = tmp_path_factory.mktemp("two_processes")
    with hold_port() as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    script = [sys.executable, str(ROOT / "tests" / "training" / "two_processes.py"), str(folder)]
    options = arguments(base, cache, "--learning-rate", "5e-4", "--steps", "3", "--keep-activations", "--ffn-deltas")
    processes = [
        subprocess.Popen([*script, *options], env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    try:
        assert [process.wait(timeout=900) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


def test_two_processes_end_with_the_weights_of_one(two_processes, training, tmp_path):
    training(tmp_path, learning_rate=5e-4, ffn_deltas=True).run()
    assert_near(weights(two_processes / "whole-no", 3), weights(tmp_path, 3), 1e-5)
    assert losses(two_processes / "whole-no") == pytest.approx(losses(tmp_path), rel=1e-5)


def test_sharded_runs_go_on_and_end_with_the_same_weights(two_processes):
    assert_near(weights(two_processes / "sharded-no", 3), weights(two_processes / "whole-no", 3), 1e-5)
    cut, done = (Curve(two_processes / name).rows() for name in ("cut", "sharded-no"))
    assert cut == done[:1] and len(done) == 3  # seconds and all: the first step was made once


def test_sharded_runs_compute_in_the_same_precision(two_processes):
    sharded, whole, full = (losses(two_processes / name) for name in ("sharded-bf16", "whole-bf16", "whole-no"))
    assert sharded[0] == pytest.approx(whole[0], rel=1e-6) != full[0]
    assert sharded == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("trains", ["extras", "lora"])
def test_what_learns_alone_goes_on_too(training, trains, tmp_path):
    training(tmp_path / "once", trains=trains, steps=2).run()
    training(tmp_path / "twice", trains=trains, steps=1).run()
    training(tmp_path / "twice", trains=trains, steps=2).run()
    once, twice = (load_file(tmp_path / name / f"{trains}-000002.safetensors") for name in ("once", "twice"))
    assert_near(once, twice, 0)


def test_what_a_run_leaves(training, tmp_path):
    from helpers.save_run import narrow_vae

    keeping = {"state_every": 1, "publish_every": 2, "preview_every": 3, "preview_steps": 2, "preview_clips": 2}
    training(tmp_path, vae=narrow_vae(), keeping=keeping).run()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        "full-000002.safetensors", "full-000003.safetensors", "state-000002.pt", "state-000003.pt",
        "preview-000003.mp4", "loss.csv", "loss.svg", "recipe.json",
    }  # fmt: skip
    from ultragen_core.video.reader import read_frames

    frames = list(read_frames(str(tmp_path / "preview-000003.mp4")))
    assert [tuple(frame.shape) for frame in frames] == [(64, 2 * 80, 3)] * 5


def test_previews_do_not_change_the_weights(training, tmp_path):
    from helpers.save_run import narrow_vae

    for name, keeping in (("with", {"preview_every": 1, "preview_steps": 1}), ("without", {})):
        training(tmp_path / name, vae=narrow_vae(), keeping=keeping, steps=2).run()
    assert_near(weights(tmp_path / "with", 2), weights(tmp_path / "without", 2), 0)


def test_weights_that_could_not_be_written_are_written_when_the_run_is_started_again(training, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("the disk is full")

    options = {"steps": 2, "keeping": {"publish_every": 1, "state_every": 1}}
    with monkeypatch.context() as broken, pytest.raises(OSError, match="the disk is full"):
        broken.setattr("training.loop.publish", full)
        training(tmp_path / "cut", **options).run()
    assert not list((tmp_path / "cut").glob("full-*"))
    assert training(tmp_path / "cut", **options).run() and training(tmp_path / "whole", **options).run()
    for step in (1, 2):
        assert_near(weights(tmp_path / "cut", step), weights(tmp_path / "whole", step), 0)
    last = tmp_path / "cut" / "full-000002.safetensors"
    last.unlink()
    assert training(tmp_path / "cut", **options).run() and last.is_file()
    last.write_bytes(b"kept")
    assert training(tmp_path / "cut", **options).run() and last.read_bytes() == b"kept"


def test_a_row_of_losses_that_was_cut_off_does_not_stop_a_run(training, tmp_path):
    training(tmp_path, steps=1).run()
    whole = (tmp_path / "loss.csv").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "loss.csv").write_bytes(whole[:length])
        Curve(tmp_path).begin(1)
    (tmp_path / "loss.csv").write_bytes(whole + b"2,0.")
    training(tmp_path, steps=2).run()
    assert [row.step for row in Curve(tmp_path).rows()] == [1, 2]


def test_the_newest_state_is_the_one_of_the_most_steps(training, tmp_path):
    run = training(tmp_path)
    for step in (999_998, 999_999, 1_000_000):
        run.states.save(step, True, "")
    assert run.states.newest()["step"] == 1_000_000


@pytest.mark.parametrize("name", ["state_every", "preview_clips", "preview_steps"])
def test_what_is_kept_every_zero_steps_is_refused(name, tmp_path):
    with pytest.raises(Trouble, match=f"{name} must be at least 1, got 0"):
        Keeping(tmp_path, **{name: 0})


@pytest.mark.parametrize("name", ["publish_every", "preview_every", "minutes"])
def test_less_than_never_is_refused(name, tmp_path):
    with pytest.raises(Trouble, match=f"{name} must be at least 0, got -1"):
        Keeping(tmp_path, **{name: -1})


def test_another_recipe_or_other_clips_are_refused(training, cache, tmp_path, monkeypatch):
    training(tmp_path, steps=1).run()
    with pytest.raises(Trouble, match=r"other settings .*: shift 5.0 -> 3.0; learning_rate 0.002 -> 0.001\."):
        training(tmp_path, learning_rate=1e-3, shift=3.0, steps=1)
    monkeypatch.setattr(cache, "names", cache.names[1:])
    with pytest.raises(Trouble, match="with the clips that it began with"):
        training(tmp_path, steps=2)


def test_a_setting_that_is_newer_than_a_run_is_at_its_default_there(tmp_path):
    path, wanted = tmp_path / "recipe.json", {"shift": 5.0, "ffn_deltas": False}
    agree(path, {"shift": 5.0})
    with pytest.raises(Trouble, match="ffn_deltas False -> True"):
        agree(path, wanted | {"ffn_deltas": True}, defaults={"ffn_deltas": False})
    agree(path, wanted, defaults={"ffn_deltas": False})


def test_the_recipe_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "recipe.json"
    agree(path, {"steps": 1, "shift": 5.0}, may_change=("steps",))
    before = path.read_bytes()

    def half(self, text, **more):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("the disk is full")

    monkeypatch.setattr(type(path), "write_text", half)
    with pytest.raises(OSError, match="the disk is full"):
        agree(path, {"steps": 2, "shift": 5.0}, may_change=("steps",))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_batch_that_cannot_be_shared_is_refused(training, tmp_path):
    with pytest.raises(Trouble, match="got 4 clips on 1 processes with 3 at once"):
        training(tmp_path, micro_batch=3)
    with pytest.raises(Trouble, match="micro-batch must be at least 1, got 0"):
        training(tmp_path, micro_batch=0)
